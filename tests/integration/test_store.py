"""JobStore on a real Redis."""

import asyncio
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from dbserve.contracts.snapshot import JobSnapshot
from dbserve.contracts.status import (
    CancelRequested,
    Checkpointed,
    CheckpointRef,
    Crashed,
    Finished,
    JobStatus,
    Launched,
    Progress,
    Reason,
    Run,
    Started,
    Stopped,
    TaskState,
)
from dbserve.errors import (
    ConfigInvalid,
    EventsGone,
    IdempotencyMismatch,
    IllegalTransition,
    JobNotFound,
    JobNotTerminal,
    JobTerminal,
    QuotaExceeded,
    StaleRun,
    StoreUnavailable,
)
from dbserve.store import JobStore, connection, history
from dbserve.store.history import Said
from tests.jobs import small_plan, small_spec


async def submit(store: JobStore, key: str | None = None, digest: str = "d", **changes: object) -> str:
    spec = small_spec(**changes)
    made, _ = await store.create_job(spec, small_plan(spec), idempotency_key=key, request_digest=digest)
    return made.record.id


async def drive(store: JobStore, run: Run, *, until: TaskState) -> None:
    """Moves a fresh task along its usual way."""
    now = time.time()
    for event, state in (
        (Launched(run=run, at=now, cluster="c"), TaskState.LAUNCHED),
        (Started(run=run, at=now, node="n", pid=1), TaskState.RUNNING),
        (Finished(run=run, at=now), TaskState.SUCCEEDED),
    ):
        await store.apply(event)
        if state is until:
            return


async def finish(store: JobStore, job_id: str) -> JobSnapshot:
    for name in ("block-0", "block-1", "assembly", "evaluation"):
        await drive(store, Run(job_id=job_id, task=name, attempt=1), until=TaskState.SUCCEEDED)
    return await store.snapshot(job_id)


async def test_a_stored_job_reads_back_as_it_was_written(store: JobStore) -> None:
    job_id = await submit(store, labels={"team": "a"})
    snapshot = await store.snapshot(job_id)
    assert snapshot.status is JobStatus.QUEUED
    assert snapshot.spec == small_spec(labels={"team": "a"})
    assert snapshot.plan == small_plan()
    assert list(snapshot.tasks) == ["block-0", "block-1", "assembly", "evaluation"]


async def test_an_unknown_job_is_said_to_be_unknown(store: JobStore) -> None:
    for call in (store.snapshot, store.wishes.cancel, store.wishes.delete, store.history.events, store.results.report):
        with pytest.raises(JobNotFound):
            await call("j00")


async def test_the_same_request_fifty_times_makes_one_job(store: JobStore) -> None:
    ids = await asyncio.gather(*(submit(store, key="k") for _ in range(50)))
    assert len(set(ids)) == 1
    jobs, _ = await store.list_jobs(limit=100)
    assert len(jobs) == 1


async def test_a_request_is_remembered_by_its_key_until_its_job_is_deleted(store: JobStore) -> None:
    assert await store.recall("k", "d") is None
    job_id = await submit(store, key="k", digest="d")
    remembered = await store.recall("k", "d")
    assert remembered is not None
    assert remembered.id == job_id
    with pytest.raises(IdempotencyMismatch):
        await store.recall("k", "other")
    await finish(store, job_id)
    await store.wishes.delete(job_id)
    assert await store.recall("k", "d") is None


async def test_a_key_used_with_another_body_is_refused(store: JobStore) -> None:
    await submit(store, key="k", digest="one")
    with pytest.raises(IdempotencyMismatch):
        await submit(store, key="k", digest="two")


async def test_a_listing_is_newest_first_and_new_jobs_do_not_shift_its_pages(store: JobStore) -> None:
    ids: list[str] = []
    for _ in range(5):
        ids.append(await submit(store))
        await asyncio.sleep(0.002)  # ids sort by the millisecond
    first, cursor = await store.list_jobs(limit=2)
    await submit(store)
    second, cursor = await store.list_jobs(limit=2, after=cursor)
    third, end = await store.list_jobs(limit=2, after=cursor)
    assert [job.record.id for page in (first, second, third) for job in page] == ids[::-1]
    assert end is None


async def test_a_listing_filters_by_state_and_label(store: JobStore) -> None:
    plain = await submit(store)
    labelled = await submit(store, labels={"team": "a"})
    await drive(store, Run(job_id=plain, task="block-0", attempt=1), until=TaskState.RUNNING)
    running, _ = await store.list_jobs(limit=10, status=JobStatus.RUNNING)
    assert [job.record.id for job in running] == [plain]
    team, _ = await store.list_jobs(limit=10, labels={"team": "a"})
    assert [job.record.id for job in team] == [labelled]


@pytest.mark.parametrize("cursor", ["", "!!", "Zm9vIGJhcg", "é", "a" * 500])
async def test_a_foreign_cursor_is_refused(store: JobStore, cursor: str) -> None:
    await submit(store)
    with pytest.raises(ConfigInvalid) as refused:
        await store.list_jobs(limit=2, after=cursor)
    assert refused.value.pointer == "/query/after"


async def test_a_job_runs_through_its_states_and_the_events_tell_it(store: JobStore) -> None:
    job_id = await submit(store)
    done = await finish(store, job_id)
    assert done.status is JobStatus.SUCCEEDED
    assert done.record.finished_at is not None
    events = await store.history.events(job_id)
    assert [event.kind for event in events] == ["job_created", *["launched", "started", "finished"] * 4, "job_finished"]
    assert events[-1].job_status is JobStatus.SUCCEEDED
    assert await store.active_outlines() == []
    assert [job.record.id for job in await store.recent()] == [job_id]
    replay = await store.history.events(job_id, after=events[3].id)
    assert replay == events[4:]


async def test_a_stale_attempt_can_write_nothing(store: JobStore) -> None:
    job_id = await submit(store)
    old = Run(job_id=job_id, task="block-0", attempt=1)
    await drive(store, old, until=TaskState.RUNNING)
    await store.apply(Crashed(run=old, at=5.0, reason=Reason.WORKER_LOST, message="gone"))
    checkpoint = CheckpointRef(step=9, path="p", sha256="0", attempt=1, at=5.0)
    for event in (
        Finished(run=old, at=6.0),
        Checkpointed(run=old, at=6.0, checkpoint=checkpoint, keep_last=1),
        Started(run=old, at=6.0, node="n", pid=1),
    ):
        with pytest.raises(StaleRun):
            await store.apply(event)
    answer = await store.record_progress(Progress(run=old, step=99, total=100, heartbeat_at=1.0))
    assert answer.run == old.next(), "the old attempt learns that it was given up"
    assert (await store.snapshot(job_id)).progress == {}


async def test_a_crash_beyond_the_budget_fails_the_job(store: JobStore) -> None:
    job_id = await submit(store, retry={"max_attempts": 1})
    run = Run(job_id=job_id, task="block-0", attempt=1)
    await drive(store, run, until=TaskState.RUNNING)
    await store.apply(Crashed(run=run, at=5.0, reason=Reason.WORKER_ERROR, message="boom"))
    snapshot = await store.snapshot(job_id)
    assert (snapshot.tasks["block-0"].state, snapshot.reason) == (TaskState.FAILED, Reason.WORKER_ERROR)
    assert snapshot.message == "block-0: boom"


async def test_cancel_before_anything_runs_ends_the_job_at_once(store: JobStore) -> None:
    job_id = await submit(store)
    await store.wishes.cancel(job_id)
    await store.wishes.cancel(job_id)
    assert (await store.outline(job_id)).status is JobStatus.CANCELLED
    assert await store.active_outlines() == []
    assert [event.kind for event in await store.history.events(job_id)].count("job_cancel_requested") == 1


async def test_cancel_of_a_running_job_waits_for_its_worker(store: JobStore) -> None:
    job_id = await submit(store)
    run = Run(job_id=job_id, task="block-0", attempt=1)
    await drive(store, run, until=TaskState.RUNNING)
    await store.wishes.cancel(job_id)
    assert (await store.outline(job_id)).status is JobStatus.CANCELLING
    await store.apply(CancelRequested(run=run, stop_by=1.0))
    with pytest.raises(IllegalTransition):
        await store.apply(Finished(run=run, at=2.0))
    await store.apply(Stopped(run=run, at=3.0))
    assert (await store.snapshot(job_id)).status is JobStatus.CANCELLED


async def test_a_job_that_succeeded_cannot_be_cancelled(store: JobStore) -> None:
    job_id = await submit(store)
    await finish(store, job_id)
    with pytest.raises(JobTerminal):
        await store.wishes.cancel(job_id)


async def test_deleting_leaves_no_key_but_the_note_to_remove_artefacts(store: JobStore, redis_url: str) -> None:
    job_id = await submit(store)
    with pytest.raises(JobNotTerminal):
        await store.wishes.delete(job_id)
    await finish(store, job_id)
    await store.wishes.delete(job_id)
    redis = Redis.from_url(redis_url, decode_responses=True)
    assert set(await redis.keys("*")) == {"dbserve:deleted", "dbserve:counters"}
    assert await store.wishes.deleted() == {job_id}
    await store.wishes.artefacts_removed(job_id)
    assert await redis.keys("*") == ["dbserve:counters"]
    await redis.aclose()


async def test_the_stores_clock_dates_every_event_whatever_the_senders_clock_says(store: JobStore) -> None:
    job_id = await submit(store)
    run = Run(job_id=job_id, task="block-0", attempt=1)
    await store.apply(Launched(run=run, at=1.0, cluster="c"))
    await store.apply(Started(run=run, at=9e9, node="n", pid=1))
    crash = Crashed(run=run, at=9e9, reason=Reason.WORKER_LOST, message="gone", retry_after=60.0)
    task = await store.apply(crash)
    now = await store.clock()
    assert abs(now - time.time()) < 60
    assert 0 < task.not_before - now <= 60.0
    assert all(abs(event.at - now) < 60 for event in await store.history.events(job_id))


async def test_a_heartbeat_is_dated_when_it_arrives(store: JobStore) -> None:
    job_id = await submit(store)
    run = Run(job_id=job_id, task="block-0", attempt=1)
    await drive(store, run, until=TaskState.RUNNING)
    await store.record_progress(Progress(run=run, step=3, total=20, heartbeat_at=1.0))
    told = (await store.snapshot(job_id)).progress["block-0"]
    assert (told.step, abs(told.heartbeat_at - await store.clock()) < 60) == (3, True)


async def test_what_a_finished_attempt_still_says_is_not_written(store: JobStore) -> None:
    job_id = await submit(store)
    run = Run(job_id=job_id, task="block-0", attempt=1)
    await drive(store, run, until=TaskState.SUCCEEDED)
    await store.record_progress(Progress(run=run, step=3, total=20, heartbeat_at=1.0))
    assert (await store.snapshot(job_id)).progress == {}


async def test_a_look_at_active_jobs_follows_every_change(store: JobStore) -> None:
    job_id, other = await submit(store), await submit(store)
    run = Run(job_id=job_id, task="block-0", attempt=1)
    assert {job.record.id for job in await store.active_outlines()} == {job_id, other}
    await drive(store, run, until=TaskState.RUNNING)
    await store.record_progress(Progress(run=run, step=3, total=20, heartbeat_at=1.0))
    await store.wishes.pause(other)
    looked = {job.record.id: job for job in await store.active_outlines()}
    assert looked[job_id] == await store.outline(job_id)
    assert looked[other] == await store.outline(other)
    assert looked[job_id].progress["block-0"].step == 3
    await store.wishes.cancel(other)
    await store.wishes.delete(other)
    assert [job.record.id for job in await store.active_outlines()] == [job_id]


async def test_a_large_job_takes_little_room(store: JobStore, redis_url: str) -> None:
    spec = small_spec(
        architecture={"kind": "vit", "options": {"depth": 16, "width": 16, "heads": 2, "patch": 4}},
        blocks={"count": 16},
    )
    made, _ = await store.create_job(spec, small_plan(spec), idempotency_key=None, request_digest="d")
    redis = Redis.from_url(redis_url)
    sizes = [await redis.memory_usage(key) for key in await redis.keys(f"dbserve:job:{made.record.id}*")]
    await redis.aclose()
    assert sum(sizes) < 16 * 1024, "10,000 of them fit into 160 MiB"


async def test_a_quota_counts_what_has_not_ended(store: JobStore) -> None:
    async def ask(owner: str) -> str:
        made, _ = await store.create_job(
            small_spec(), small_plan(), idempotency_key=None, request_digest="d", owner=owner, quota=2
        )
        return made.record.id

    first = await ask("a")
    await ask("a")
    with pytest.raises(QuotaExceeded, match="2 jobs"):
        await ask("a")
    await ask("b")
    await store.wishes.cancel(first)
    await ask("a")


async def test_fifty_requests_at_once_do_not_pass_a_quota(store: JobStore) -> None:
    async def ask() -> bool:
        try:
            await store.create_job(
                small_spec(), small_plan(), idempotency_key=None, request_digest="d", owner="a", quota=3
            )
        except QuotaExceeded:
            return False
        return True

    assert sum(await asyncio.gather(*(ask() for _ in range(50)))) == 3


async def test_dropped_events_are_said_and_never_skipped(store: JobStore, redis_url: str) -> None:
    job_id = await submit(store)
    first = (await store.history.events(job_id))[0]
    await finish(store, job_id)
    redis = Redis.from_url(redis_url)
    await redis.xtrim(f"dbserve:job:{job_id}:events", maxlen=4, approximate=False)
    await redis.aclose()
    with pytest.raises(EventsGone):
        await store.history.events(job_id, after=first.id)
    assert len(await store.history.events(job_id)) == 4


async def test_a_burst_of_requests_shares_a_few_connections(store: JobStore, redis_url: str) -> None:
    job_id = await submit(store)
    found = await asyncio.gather(*(store.outline(job_id) for _ in range(300)))
    assert {outline.record.id for outline in found} == {job_id}
    redis = Redis.from_url(redis_url)
    assert len(await redis.client_list()) <= connection.CONNECTIONS + 2  # this one, and one that a test before left
    await redis.aclose()


async def test_one_look_tells_what_arrived_to_each_of_several_jobs(store: JobStore) -> None:
    quiet, moving = await submit(store), await submit(store)
    seen = {job_id: await store.history.newest_event(job_id) for job_id in (quiet, moving)}
    await store.wishes.cancel(moving)
    arrived = await store.history.arrivals(seen)
    assert arrived[quiet] == []
    assert [event.kind for event in arrived[moving]][:1] == ["job_cancel_requested"]
    assert arrived[moving] == await store.history.events(moving, after=seen[moving])


async def test_a_look_leaves_out_jobs_that_were_deleted_or_whose_events_were_dropped(
    store: JobStore, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "EVENTS_KEPT", 3)
    deleted, trimmed, whole = await submit(store), await submit(store), await submit(store)
    seen = {job_id: await store.history.newest_event(job_id) for job_id in (deleted, trimmed, whole)}
    await store.wishes.cancel(deleted)
    await store.wishes.delete(deleted)
    await finish(store, trimmed)
    redis = Redis.from_url(redis_url)
    await redis.xtrim(f"dbserve:job:{trimmed}:events", maxlen=3, approximate=False)
    await redis.aclose()
    assert await store.history.arrivals(seen) == {whole: []}


async def test_logs_are_kept_by_task_and_attempt(store: JobStore) -> None:
    job_id = await submit(store)
    for task, attempt in (("block-0", 1), ("block-0", 2), ("block-1", 1)):
        run = Run(job_id=job_id, task=task, attempt=attempt)
        await store.history.append_logs(run, [Said(1.0, "info", f"{task} {attempt} line {n}") for n in range(3)])
    lines = await store.history.logs(job_id, task="block-0", attempt=2, tail=2)
    assert [line.message for line in lines] == ["block-0 2 line 1", "block-0 2 line 2"]
    assert len(await store.history.logs(job_id)) == 9


async def test_one_reconciler_holds_the_lease_at_a_time(store: JobStore) -> None:
    assert await store.lease.hold("a", ttl_seconds=5)
    assert not await store.lease.hold("b", ttl_seconds=5)
    assert await store.lease.hold("a", ttl_seconds=5)
    await store.lease.drop("b")
    assert not await store.lease.hold("b", ttl_seconds=5)
    await store.lease.drop("a")
    assert await store.lease.hold("b", ttl_seconds=5)


async def test_a_redis_that_is_away_is_said_to_be_away_soon(tmp_path: Path) -> None:
    store = JobStore.from_url(f"unix://{tmp_path}/nothing.sock")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.snapshot("j1")
    assert time.monotonic() - began < 5
    await store.aclose()


async def test_a_deployment_keeps_its_name(store: JobStore) -> None:
    name = await store.deployment()
    assert name.isalnum()
    assert await store.deployment() == name


async def test_a_foreign_schema_is_refused(store: JobStore, redis_url: str) -> None:
    await store.ping()
    redis = Redis.from_url(redis_url)
    await redis.set("dbserve:schema", "999")
    await redis.aclose()
    with pytest.raises(StoreUnavailable, match="999"):
        await store.ping()

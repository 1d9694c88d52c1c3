"""Redis as an earlier version left it, and a Redis that cannot be trusted."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from dbserve.contracts.snapshot import ModelRecord
from dbserve.contracts.status import Intent, JobStatus, Launched, Reason, Run, TaskState
from dbserve.contracts.webhook import Topic, Webhook
from dbserve.errors import IdempotencyMismatch, StoreUnavailable
from dbserve.jobfile import parse_job
from dbserve.store import JobStore, keys
from dbserve.store.codec import packed
from dbserve.store.lease import Lease
from dbserve.store.schema import SCHEMA
from tests.jobs import small_plan, small_spec

FIRST = json.loads((Path(__file__).parent / "fixtures" / "schema_1.json").read_text())
JOBS: dict[str, str] = FIRST["jobs"]


@pytest.fixture
async def redis(redis_url: str) -> Any:
    client = Redis.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
async def first(redis: Redis, store: JobStore) -> JobStore:
    """The store on a Redis that holds what the first schema's code wrote there."""
    for key, entry in FIRST["keys"].items():
        value: Any = entry["value"]
        match entry["type"]:
            case "string":
                await redis.set(key, value, ex=3600 if entry["ttl"] else None)
            case "hash":
                await redis.hset(key, mapping=value)
            case "set":
                await redis.sadd(key, *value)
            case "zset":
                await redis.zadd(key, dict(value))
            case _:
                for entry_id, fields in value:
                    await redis.xadd(key, fields, id=entry_id)
    return store


async def test_before_its_upgrade_an_older_schema_is_refused(first: JobStore) -> None:
    with pytest.raises(StoreUnavailable, match="being upgraded"):
        await first.ping()


async def test_the_first_schema_is_upgraded_and_nothing_of_it_is_lost(first: JobStore, redis: Redis) -> None:
    assert await first.schema.upgrade() == 6
    await first.ping()
    assert await redis.get(keys.SCHEMA_KEY) == SCHEMA
    statuses = {name: (await first.snapshot(job_id)).status for name, job_id in JOBS.items() if name != "deleted"}
    assert statuses == {
        "queued": JobStatus.QUEUED,
        "recovered": JobStatus.RUNNING,
        "succeeded": JobStatus.SUCCEEDED,
        "failed": JobStatus.FAILED,
        "cancelled": JobStatus.CANCELLED,
        "cancelling": JobStatus.CANCELLING,
    }
    recovered = await first.snapshot(JOBS["recovered"])
    task = recovered.tasks["block-0"]
    assert (task.run.attempt, task.crashes, task.preemptions, task.steps, task.micro_rows) == (3, 1, 1, 20, 32)
    assert task.restarts == {Reason.WORKER_LOST: 1, Reason.PREEMPTED: 1}
    assert [ref.step for ref in task.checkpoints] == [5]
    assert list(recovered.tasks) == ["block-0", "block-1", "assembly", "evaluation"]
    assert recovered.record.architecture == "vit"
    assert recovered.record.retry == recovered.spec.retry
    assert (await first.snapshot(JOBS["queued"])).record.labels == {"team": "a"}
    assert (await first.snapshot(JOBS["cancelling"])).record.intent is Intent.CANCEL
    assert [line.message for line in await first.history.logs(JOBS["recovered"])] == ["attempt 1 of block-0 begins"]
    assert (await first.results.model(JOBS["succeeded"])).name == "succeeded"
    assert await first.wishes.deleted() == {JOBS["deleted"]}


async def test_an_upgraded_job_goes_on(first: JobStore) -> None:
    await first.schema.upgrade()
    run = Run(job_id=JOBS["recovered"], task="block-0", attempt=3)
    assert (await first.apply(Launched(run=run, cluster="c"))).state is TaskState.LAUNCHED
    await first.wishes.pause(JOBS["queued"])
    assert (await first.outline(JOBS["queued"])).status is JobStatus.PAUSED
    assert {job.record.id for job in await first.active_outlines()} == {
        JOBS[name] for name in ("queued", "recovered", "cancelling")
    }


async def test_a_request_repeated_over_an_upgrade_still_finds_its_job(first: JobStore) -> None:
    await first.schema.upgrade()
    spec = small_spec(name="queued", labels={"team": "a"})
    found = await first.recall("key-1", parse_job(spec.model_dump_json().encode(), "json").digest())
    assert found is not None
    assert found.id == JOBS["queued"]
    with pytest.raises(IdempotencyMismatch):
        await first.recall("key-1", small_spec(name="other").digest())


async def test_an_upgrade_that_is_run_twice_or_was_cut_short_ends_the_same(first: JobStore, redis: Redis) -> None:
    await first.schema._upgrade_job(JOBS["recovered"])  # pyright: ignore[reportPrivateUsage]
    await first.schema.upgrade()
    before = await first.snapshot(JOBS["recovered"])
    assert await first.schema.upgrade() == 0
    await redis.set(keys.SCHEMA_KEY, "1")
    await first.schema.upgrade()
    assert await first.snapshot(JOBS["recovered"]) == before
    assert before.tasks["block-0"].crashes == 1


async def test_two_processes_that_upgrade_at_once_do_no_harm(first: JobStore, redis_url: str) -> None:
    other = JobStore.from_url(redis_url)
    ended = await asyncio.gather(first.schema.upgrade(), other.schema.upgrade(), return_exceptions=True)
    await other.aclose()
    assert any(isinstance(end, int) for end in ended)
    assert all(isinstance(end, int | StoreUnavailable) for end in ended)
    assert (await first.snapshot(JOBS["recovered"])).tasks["block-0"].crashes == 1


async def test_what_an_older_version_knew_of_webhooks_is_told_on(first: JobStore, redis: Redis) -> None:
    """Workers see that there are some by their ids alone, which older versions did not keep apart."""
    webhook = Webhook(id="w1", url="https://example.com/", events=(Topic.JOB_FAILED,), secret="whsec_x", created_at=0.0)
    await redis.hset(keys.WEBHOOKS, "w1", webhook.model_dump_json())
    await first.schema.upgrade()
    assert await redis.smembers(keys.WEBHOOK_IDS) == {"w1"}
    await first.wishes.cancel(JOBS["queued"])
    await first.wishes.retry(JOBS["queued"])
    assert await redis.exists(keys.OUTBOX)


async def test_a_schema_of_the_future_is_refused(store: JobStore, redis: Redis) -> None:
    await redis.set(keys.SCHEMA_KEY, "99")
    with pytest.raises(StoreUnavailable, match="'99'"):
        await store.ping()
    assert await store.schema.upgrade() == 0


@pytest.fixture
def evicting(redis_url: str) -> Iterator[None]:
    import redis as redis_sync

    client: Any = redis_sync.Redis.from_url(redis_url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    yield
    client.config_set("maxmemory-policy", "noeviction")
    client.close()


@pytest.mark.usefixtures("evicting")
async def test_a_redis_that_evicts_is_not_trusted_with_jobs(store: JobStore) -> None:
    with pytest.raises(StoreUnavailable, match="noeviction"):
        await store.ping()


async def test_what_was_there_before_projects_is_the_default_projects(first: JobStore, redis: Redis) -> None:
    await first.schema.upgrade()
    jobs, _ = await first.list_jobs(limit=100)
    assert {job.record.id for job in jobs} == {job_id for name, job_id in JOBS.items() if name != "deleted"}
    assert {job.record.project for job in jobs} == {"default"}
    models, _ = await first.results.list_models(limit=100)
    assert [model.job_id for model in models] == [JOBS["succeeded"]]


async def test_the_second_schema_is_upgraded_to_one_with_projects(store: JobStore, redis: Redis) -> None:
    spec = small_spec()
    made, _ = await store.create_job(spec, small_plan(spec), idempotency_key="k", request_digest="d")
    job_id = made.record.id
    # as the second schema had it
    await redis.delete(keys.jobs_of("default"))
    await redis.rename(keys.idempotency("default", "k"), f"dbserve:idempotency:{sha256(b'k').hexdigest()}")
    await redis.set(keys.SCHEMA_KEY, "2")
    with pytest.raises(StoreUnavailable, match="being upgraded"):
        await store.ping()
    assert await store.schema.upgrade() == 1
    jobs, _ = await store.list_jobs(limit=100)
    assert [job.record.id for job in jobs] == [job_id]
    found = await store.recall("k", "d")
    assert found is not None
    assert found.id == job_id
    assert 0 < await redis.ttl(keys.idempotency("default", "k")) <= 24 * 3600
    await redis.set(keys.SCHEMA_KEY, "2")
    assert await store.schema.upgrade() == 1, "it is run once more where it was cut short"
    assert await store.recall("k", "d") is not None


async def as_the_second_schema(store: JobStore, redis: Redis, *requests: str) -> list[str]:
    """Jobs, one by each request, as the second schema had them; returns the names of its remembered requests."""
    spec, names = small_spec(), list[str]()
    for request in requests:
        await store.create_job(spec, small_plan(spec), idempotency_key=request, request_digest="d")
        names.append(f"dbserve:idempotency:{sha256(request.encode()).hexdigest()}")
        await redis.rename(keys.idempotency("default", request), names[-1])
    await redis.delete(keys.jobs_of("default"))
    await redis.set(keys.SCHEMA_KEY, "2")
    return names


async def test_a_remembered_request_that_expires_during_the_upgrade_or_is_told_twice_does_not_stop_it(
    store: JobStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, kept = await as_the_second_schema(store, redis, "a", "b")

    async def scanned(**_: Any) -> AsyncIterator[str]:
        for name in (gone, kept, kept):
            yield name
        await redis.delete(gone)

    monkeypatch.setattr(store.schema._redis, "scan_iter", scanned)  # pyright: ignore[reportPrivateUsage]
    assert await store.schema.upgrade() == 2
    assert await store.recall("b", "d") is not None
    assert await store.recall("a", "d") is None


async def test_an_upgrade_keeps_its_lease_while_it_renames_and_lets_go_of_it_when_it_fails(
    store: JobStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await as_the_second_schema(store, redis, "a", "b", "c")
    held = Lease.hold
    at_most = 2  # the first takes it

    async def hold(lease: Lease, holder: str, *, ttl_seconds: float) -> bool:
        nonlocal at_most
        at_most -= 1
        return at_most >= 0 and await held(lease, holder, ttl_seconds=ttl_seconds)

    with monkeypatch.context() as lost:
        lost.setattr(Lease, "hold", hold)
        with pytest.raises(StoreUnavailable, match="took the upgrade over"):
            await store.schema.upgrade()
    renamed = [key async for key in redis.scan_iter("dbserve:idempotency:default:*")]
    assert len(renamed) == 1, "it looked at its lease before each"
    assert not await redis.exists(keys.UPGRADE)
    assert await store.schema.upgrade() == 3, "and another does it at once"


async def test_what_is_another_projects_does_not_become_the_default_ones(store: JobStore, redis: Redis) -> None:
    spec, made = small_spec(), dict[str, str]()
    for project in ("default", "red"):
        snapshot, _ = await store.create_job(
            spec, small_plan(spec), project=project, idempotency_key=None, request_digest="d"
        )
        made[project] = snapshot.record.id
    for project, job_id in made.items():
        model = {"id": job_id, "job_id": job_id, "name": "m", "version": 1, "created_at": 1.0, "contract_hash": "c"}
        record = ModelRecord.model_validate(model | {"path": "p", "manifest": {}, "project": project})
        await redis.set(keys.model(job_id), packed(record))
        await redis.zadd(keys.MODELS, {job_id: 0})
    await redis.delete(keys.jobs_of("default"))
    await redis.set(keys.SCHEMA_KEY, "2")
    await store.schema.upgrade()
    assert await redis.zrange(keys.jobs_of("default"), 0, -1) == [made["default"]]
    assert await redis.zrange(keys.models_of("default"), 0, -1) == [made["default"]]

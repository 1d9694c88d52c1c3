"""What users want of a job, on a real Redis: it is durable, may be repeated, and is refused where it makes no sense."""

import asyncio

import pytest

from dbserve.contracts.status import (
    NO_TIME,
    Abandoned,
    Crashed,
    Intent,
    JobStatus,
    PauseRequested,
    Reason,
    Run,
    Stopped,
    TaskState,
)
from dbserve.errors import JobNotPaused, JobTerminal, NothingToRetry, QuotaExceeded
from dbserve.store import JobStore
from tests.integration.serving import finish, start, submitted
from tests.jobs import small_plan, small_spec


async def fail(store: JobStore, job_id: str, task: str = "block-0") -> None:
    """Beyond repair, and what needs it is abandoned."""
    run = await start(store, job_id, task)
    await store.apply(Crashed(run=run, reason=Reason.DATA_ERROR, message="bad shard"))
    for name in ("assembly", "evaluation"):
        await store.apply(Abandoned(run=Run(job_id=job_id, task=name, attempt=1), message=f"{task} did not succeed"))


async def test_a_job_paused_before_it_began_is_paused_at_once_and_goes_on_when_resumed(store: JobStore) -> None:
    job_id = await submitted(store)
    await store.wishes.pause(job_id)
    await store.wishes.pause(job_id)
    paused = await store.outline(job_id)
    assert (paused.status, paused.record.intent) == (JobStatus.PAUSED, Intent.PAUSE)
    await store.wishes.resume(job_id)
    await store.wishes.resume(job_id)
    assert (await store.outline(job_id)).status is JobStatus.QUEUED
    kinds = [event.kind for event in await store.history.events(job_id)]
    assert kinds == ["job_created", "job_pause_requested", "job_resume_requested"]


async def test_a_running_job_is_paused_when_its_worker_is_gone(store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await store.wishes.pause(job_id)
    assert (await store.outline(job_id)).status is JobStatus.PAUSING
    await store.apply(PauseRequested(run=run, stop_by=0.0))
    await store.apply(Stopped(run=run))
    assert (await store.outline(job_id)).status is JobStatus.PAUSED
    await store.wishes.resume(job_id)
    task = await store.task(job_id, "block-0")
    assert (task.state, task.run.attempt, task.crashes) == (TaskState.PENDING, 2, 0)
    assert (await store.outline(job_id)).status is JobStatus.RUNNING


async def test_a_job_resumed_while_it_is_pausing_is_not_forgotten(store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await store.wishes.pause(job_id)
    await store.apply(PauseRequested(run=run, stop_by=0.0))
    await store.wishes.resume(job_id)
    task = await store.apply(Stopped(run=run))
    assert task.state is TaskState.PAUSED, "the reconciler wakes it: the job is to run"
    assert (await store.outline(job_id)).record.intent is Intent.RUN


async def test_what_has_ended_can_be_neither_paused_nor_resumed(store: JobStore) -> None:
    job_id = await submitted(store)
    await finish(store, job_id)
    with pytest.raises(JobTerminal):
        await store.wishes.pause(job_id)
    with pytest.raises(JobNotPaused):
        await store.wishes.resume(job_id)


async def test_a_cancel_wins_over_a_pause(store: JobStore) -> None:
    job_id = await submitted(store)
    await store.wishes.pause(job_id)
    await store.wishes.cancel(job_id)
    assert (await store.outline(job_id)).status is JobStatus.CANCELLED
    with pytest.raises(JobTerminal):
        await store.wishes.pause(job_id)


async def test_a_forced_cancel_leaves_its_workers_no_time(store: JobStore) -> None:
    job_id = await submitted(store)
    await start(store, job_id, "block-0")
    await store.wishes.cancel(job_id)
    assert (await store.task(job_id, "block-0")).state is TaskState.RUNNING, "its worker is asked by the reconciler"
    await store.wishes.cancel(job_id, force=True)
    task = await store.task(job_id, "block-0")
    assert task.state is TaskState.CANCELLING
    assert task.stop_by == NO_TIME


async def test_a_retried_job_is_active_again_and_says_so(store: JobStore) -> None:
    job_id = await submitted(store)
    await fail(store, job_id)
    await finish_siblings(store, job_id)
    ended = await store.outline(job_id)
    assert (ended.status, ended.reason) == (JobStatus.FAILED, Reason.DATA_ERROR)
    assert await store.active_outlines() == []
    await store.wishes.retry(job_id)
    again = await store.outline(job_id)
    assert (again.status, again.record.finished_at) == (JobStatus.RUNNING, None)
    assert [job.record.id for job in await store.active_outlines()] == [job_id]
    states = {name: (task.state, task.run.attempt) for name, task in again.tasks.items()}
    assert states == {
        "block-0": (TaskState.PENDING, 2),
        "block-1": (TaskState.SUCCEEDED, 1),
        "assembly": (TaskState.PENDING, 2),
        "evaluation": (TaskState.PENDING, 2),
    }
    with pytest.raises(NothingToRetry):
        await store.wishes.retry(job_id)


async def finish_siblings(store: JobStore, job_id: str) -> None:
    from dbserve.contracts.status import Finished

    run = await start(store, job_id, "block-1")
    await store.apply(Finished(run=run))


async def test_one_block_is_retried_with_what_was_abandoned_because_of_it_while_its_sibling_trains_on(
    store: JobStore,
) -> None:
    job_id = await submitted(store)
    sibling = await start(store, job_id, "block-1")
    await fail(store, job_id)
    await store.wishes.retry(job_id, task="block-0")
    tasks = (await store.outline(job_id)).tasks
    assert tasks["block-1"].run == sibling
    assert {name: task.state for name, task in tasks.items() if name != "block-1"} == dict.fromkeys(
        ("block-0", "assembly", "evaluation"), TaskState.PENDING
    )
    with pytest.raises(NothingToRetry):
        await store.wishes.retry(job_id, task="block-1")


async def test_what_waits_for_its_backoff_is_tried_at_once_when_asked(store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    task = await store.apply(Crashed(run=run, reason=Reason.WORKER_LOST, message="gone", retry_after=3600.0))
    assert task.not_before > await store.clock()
    await store.wishes.retry(job_id, task="block-0")
    task = await store.task(job_id, "block-0")
    assert (task.not_before, task.run.attempt, task.crashes) == (0.0, 2, 1), "it is the same attempt, only sooner"


async def test_a_cancelled_job_can_be_taken_up_again_once_it_has_ended(store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await store.wishes.cancel(job_id)
    with pytest.raises(NothingToRetry):
        await store.wishes.retry(job_id)
    await store.wishes.cancel(job_id, force=True)
    await store.apply(Stopped(run=run))
    assert (await store.outline(job_id)).status is JobStatus.CANCELLED
    await store.wishes.retry(job_id)
    assert (await store.outline(job_id)).record.intent is Intent.RUN


async def owned(store: JobStore, quota: int | None = 2) -> str:
    made, _ = await store.create_job(
        small_spec(), small_plan(), idempotency_key=None, request_digest="d", owner="a", quota=quota
    )
    return made.record.id


async def test_a_job_is_taken_up_again_within_its_owners_quota_and_counts_from_then_on(store: JobStore) -> None:
    ended = [await owned(store) for _ in range(2)]
    for job_id in ended:
        await store.wishes.cancel(job_id)
    await owned(store)
    await store.wishes.retry(ended[0], quota=2)
    with pytest.raises(QuotaExceeded, match="2 other jobs"):
        await store.wishes.retry(ended[1], quota=2)
    assert (await store.outline(ended[1])).status is JobStatus.CANCELLED
    with pytest.raises(QuotaExceeded):
        await owned(store)
    await store.wishes.cancel(ended[0])
    await store.wishes.retry(ended[1], quota=2)


async def test_what_has_not_ended_is_tried_again_whatever_the_quota(store: JobStore) -> None:
    job_id = await owned(store)
    run = await start(store, job_id, "block-0")
    await store.apply(Crashed(run=run, reason=Reason.WORKER_LOST, message="gone", retry_after=3600.0))
    await store.wishes.retry(job_id, quota=1)


async def test_ten_jobs_taken_up_again_at_once_do_not_pass_a_quota(store: JobStore) -> None:
    ended = [await owned(store, quota=10) for _ in range(10)]
    for job_id in ended:
        await store.wishes.cancel(job_id)

    async def ask(job_id: str) -> bool:
        try:
            await store.wishes.retry(job_id, quota=3)
        except QuotaExceeded:
            return False
        return True

    assert sum(await asyncio.gather(*map(ask, ended))) == 3

"""What attempts did is added up on a real Redis, whoever writes meanwhile."""

import asyncio
import math

import pytest
from redis.asyncio import Redis

from dbserve.contracts.status import CancelRequested, Crashed, Progress, Reason, Run, Stopped
from dbserve.contracts.work import STEP_BOUNDS, BandLoss, Durations, Point, Work
from dbserve.errors import StoreUnavailable
from dbserve.progress import work_of
from dbserve.store import JobStore, keys
from dbserve.store.connection import refusals
from dbserve.store.counters import Counted
from dbserve.store.courses import POINTS_KEPT
from tests.integration.serving import finish, start, submitted


def done(steps: int) -> Work:
    return Work(steps=steps, samples=steps * 32, step_seconds=Durations().observed(0.03, STEP_BOUNDS, steps))


async def tell(store: JobStore, run: Run, steps: int) -> None:
    await store.record_progress(Progress(run=run, step=steps, total=20, heartbeat_at=1.0, work=done(steps)))


async def worked(store: JobStore, job_id: str) -> Work:
    return work_of(await store.snapshot(job_id), "block-0")


async def test_the_work_of_a_lost_attempt_stays_when_the_next_one_counts_from_zero(store: JobStore) -> None:
    job_id = await submitted(store)
    await tell(store, await start(store, job_id, "block-0"), 10)
    lost = Run(job_id=job_id, task="block-0", attempt=1)
    await store.apply(Crashed(run=lost, reason=Reason.WORKER_LOST, message="killed"))
    assert await worked(store, job_id) == done(10)
    await tell(store, await start(store, job_id, "block-0", attempt=2), 5)
    assert await worked(store, job_id) == done(15)
    (looked,) = await store.active_outlines()
    assert work_of(looked, "block-0") == done(15), "the look that /metrics takes"
    await tell(store, lost, 12)
    assert await worked(store, job_id) == done(15), "a stale attempt adds nothing"


async def test_the_work_of_a_cancelled_attempt_stays_when_the_job_is_tried_again(store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await tell(store, run, 10)
    await store.wishes.cancel(job_id)
    await store.apply(CancelRequested(run=run, stop_by=0.0))
    await store.apply(Stopped(run=run))
    await store.wishes.retry(job_id)
    await tell(store, await start(store, job_id, "block-0", attempt=2), 1)
    assert await worked(store, job_id) == done(11)


async def test_no_heartbeat_that_comes_in_between_is_lost(store: JobStore) -> None:
    """Heartbeats race the end of their attempt; whatever was told before the end was counted is in the sum."""
    job_id = await submitted(store)
    total = 0
    for attempt in (1, 2):
        run = await start(store, job_id, "block-0", attempt=attempt)
        told, ended = asyncio.Event(), asyncio.Event()

        async def beat(run: Run = run, told: asyncio.Event = told, ended: asyncio.Event = ended) -> int:
            steps = 0
            while not ended.is_set():
                task = await store.record_progress(
                    Progress(run=run, step=1, total=20, heartbeat_at=1.0, work=done(steps + 1))
                )
                if task.run != run:  # this one was not taken
                    break
                steps += 1
                told.set()
            return steps

        beating = asyncio.create_task(beat())
        await told.wait()
        await store.apply(Crashed(run=run, reason=Reason.WORKER_LOST, message="killed"))
        ended.set()
        total += await beating
        assert (await worked(store, job_id)).steps == total


async def test_queue_waits_and_results_are_counted_once_a_job(store: JobStore) -> None:
    for _ in range(3):
        await finish(store, await submitted(store))
    await store.wishes.cancel(await submitted(store))
    totals = await store.counters.read()
    assert totals.durations(Counted.QUEUE_WAIT).count == 3, "a job that was cancelled before it began did not wait"
    assert totals.durations(Counted.SUCCEEDED).count == 3
    assert totals.durations(Counted.CANCELLED).count == 1
    assert totals.durations(Counted.FAILED).count == 0


async def test_ticks_are_added_up(store: JobStore) -> None:
    await store.counters.ticked(100.0, [0.004, 0.3])
    await store.counters.ticked(105.5, [0.3])
    totals = await store.counters.read()
    assert totals.ticked_at == 105.5
    told = totals.durations(Counted.RECONCILE)
    assert (told.count, told.counts[0]) == (3, 1)
    assert told.seconds == pytest.approx(0.604)


async def test_what_redis_refused_is_told_when_it_answers_again(store: JobStore) -> None:
    refusals.clear()
    away = JobStore.from_url("redis://127.0.0.1:1/0", timeout=0.5)
    with pytest.raises(StoreUnavailable):
        await away.outline("j1")
    with pytest.raises(StoreUnavailable):
        await away.counters.tell_refusals()
    await store.counters.tell_refusals()
    assert (await store.counters.read()).labelled("redis_errors") == {"read": 1, "write": 1}
    await store.counters.tell_refusals()
    assert (await store.counters.read()).labelled("redis_errors") == {"read": 1, "write": 1}, "told once"
    await away.aclose()


async def test_a_loss_that_is_not_finite_can_be_read_and_holds_up_nobody(store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    bands = (BandLoss(low=0.1, high=1.0, loss=math.nan), BandLoss(low=1.0, high=2.0, loss=0.5))
    told = Progress(run=run, step=3, total=20, heartbeat_at=1.0, loss=math.inf, eval_loss=bands, work=done(3))
    await store.record_progress(told)
    read = (await store.snapshot(job_id)).progress["block-0"]
    assert (read.loss, [band.loss for band in read.eval_loss]) == (None, [None, 0.5])
    await store.apply(Crashed(run=run, reason=Reason.WORKER_LOST, message="killed"))
    assert await worked(store, job_id) == done(3)


async def test_a_progress_that_cannot_be_read_is_passed_over(store: JobStore, redis_url: str) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    redis = Redis.from_url(redis_url, decode_responses=True)
    await redis.hset(keys.progress(job_id), keys.progress_field(run), '1.0 {"run": "of the future"}')
    assert (await store.snapshot(job_id)).progress == {}
    assert len(await store.active_outlines()) == 1
    for attempt in (1, 2):  # what was set aside is passed over, too
        current = Run(job_id=job_id, task="block-0", attempt=attempt)
        await store.apply(Crashed(run=current, reason=Reason.WORKER_LOST, message="killed"))
        if attempt == 1:
            await tell(store, await start(store, job_id, "block-0", attempt=2), 4)
    assert await worked(store, job_id) == done(4)
    await redis.aclose()


async def test_a_redis_that_forbids_to_ask_for_its_configuration_counts_no_error(redis_url: str) -> None:
    admin = Redis.from_url(redis_url, decode_responses=True)
    await admin.acl_setuser("tenant", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-config"])
    refusals.clear()
    tenant = JobStore(Redis.from_url(redis_url, username="tenant", password="secret", decode_responses=True))
    try:
        await tenant.ping()
    finally:
        await tenant.aclose()
        await admin.acl_deluser("tenant")
        await admin.aclose()
    assert not refusals


async def test_however_often_a_training_is_begun_again_its_course_has_a_beginning(store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    for attempt in range(1, 60):
        again = [Point(step=step, at=float(attempt), attempt=attempt) for step in range(500 + attempt, 1900, 70)]
        first = [Point(step=step, at=0.0, attempt=1) for step in range(1, 501, 50)] if attempt == 1 else []
        await store.courses.append(run, first + again)
    points = (await store.courses.read(job_id, ["block-0"]))["block-0"]
    assert points[0].step == 1
    assert points[-1].attempt == 59
    assert len(points) <= POINTS_KEPT

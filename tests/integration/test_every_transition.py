"""Every pair of state and event on a real store: where the table of the state machine says, or nothing is changed."""

from typing import Any

import pytest

from dbserve.contracts.status import (
    TERMINAL,
    CancelRequested,
    Crashed,
    Finished,
    Launched,
    PauseRequested,
    Progress,
    Reason,
    Restored,
    Run,
    Started,
    TaskEvent,
    TaskState,
)
from dbserve.errors import IllegalTransition, StaleRun
from dbserve.store import JobStore, keys
from tests.integration.serving import submitted
from tests.unit.test_lifecycle import EVENTS, TABLE

TASK = "block-0"

LAUNCHED = Launched(run=EVENTS[0].run, cluster="c")
STARTED = Started(run=EVENTS[0].run, node="n", pid=7)
PAUSE = PauseRequested(run=EVENTS[0].run, stop_by=1.0)
CANCEL = CancelRequested(run=EVENTS[0].run, stop_by=1.0)
BROKEN = Crashed(run=EVENTS[0].run, reason=Reason.DATA_ERROR, message="a bad shard")
FINISHED = Finished(run=EVENTS[0].run)

WAYS: dict[TaskState, tuple[TaskEvent, ...]] = {
    TaskState.PENDING: (),
    TaskState.LAUNCHED: (LAUNCHED,),
    TaskState.RUNNING: (LAUNCHED, STARTED),
    TaskState.PAUSING: (LAUNCHED, STARTED, PAUSE),
    TaskState.PAUSED: (PAUSE,),
    TaskState.CANCELLING: (LAUNCHED, STARTED, CANCEL),
    TaskState.SUCCEEDED: (LAUNCHED, STARTED, FINISHED),
    TaskState.FAILED: (LAUNCHED, STARTED, BROKEN),
    TaskState.CANCELLED: (CANCEL,),
}
PAIRS = [(state, event, after) for state, row in TABLE.items() for event, after in zip(EVENTS, row, strict=True)]


def of(run: Run, event: TaskEvent) -> TaskEvent:
    return event.model_copy(update={"run": run})


async def brought_to(store: JobStore, state: TaskState, *, attempt: int = 1) -> Run:
    job_id = await submitted(store)
    run = Run(job_id=job_id, task=TASK, attempt=1)
    for _ in range(1, attempt):
        for event in (LAUNCHED, STARTED, Crashed(run=run, reason=Reason.WORKER_LOST, message="gone")):
            await store.apply(of(run, event))
        run = run.next()
    for event in WAYS[state]:
        await store.apply(of(run, event))
    assert (await store.task(job_id, TASK)).state is state
    return run


async def looked_at(store: JobStore, run: Run) -> dict[str, object]:
    """Everything in Redis. Not as DUMP has it, whose order is that of a table that grows."""
    redis: Any = store._redis  # pyright: ignore[reportPrivateUsage]
    read = {"hash": redis.hgetall, "set": redis.smembers, "string": redis.get}
    found: dict[str, object] = {}
    async for name in redis.scan_iter():
        match await redis.type(name):
            case "stream":
                found[name] = await redis.xrange(name)
            case "zset":
                found[name] = await redis.zrange(name, 0, -1, withscores=True)
            case kind:
                found[name] = await read[kind](name)
    assert keys.tasks(run.job_id) in found
    return found


@pytest.mark.parametrize(("state", "event", "after"), PAIRS, ids=lambda value: getattr(value, "kind", value))
async def test_the_store_does_what_the_table_says_or_nothing(
    store: JobStore, state: TaskState, event: TaskEvent, after: TaskState | None
) -> None:
    run = await brought_to(store, state)
    before = await looked_at(store, run)
    if after is None:
        with pytest.raises(IllegalTransition):
            await store.apply(of(run, event))
        assert await looked_at(store, run) == before
        return
    assert (await store.apply(of(run, event))).state is after
    assert (await store.task(run.job_id, TASK)).state is after
    ended = [one.kind for one in await store.history.events(run.job_id)].count("job_finished")
    assert ended == 0, "its siblings go on"
    assert after in TERMINAL or (await store.active_outlines())[0].tasks[TASK].state is after


@pytest.mark.parametrize("state", TaskState)
async def test_an_attempt_that_was_given_up_changes_nothing(store: JobStore, state: TaskState) -> None:
    run = await brought_to(store, state, attempt=2)
    old = run.model_copy(update={"attempt": 1})
    before = await looked_at(store, run)
    for event in EVENTS:
        with pytest.raises(StaleRun):
            await store.apply(of(old, event))
    await store.record_progress(Progress(run=old, step=9, total=20, heartbeat_at=1.0))
    assert await looked_at(store, run) == before


async def test_it_is_told_where_a_training_goes_on_also_when_no_checkpoint_was_lost(store: JobStore) -> None:
    run = await brought_to(store, TaskState.RUNNING)
    await store.apply(Restored(run=run, step=0))
    told = (await store.history.events(run.job_id))[-1]
    assert (told.kind, told.data["step"], told.data["lost"]) == ("restored", 0, [])

"""Whatever users, reconcilers and workers do, and whatever dies meanwhile: the promises hold on the real store.

DBSERVE_MODEL_EXAMPLES=1000 looks longer.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis.stateful import run_state_machine_as_test

from dbserve.contracts.snapshot import Standing
from dbserve.contracts.status import (
    Crashed,
    Finished,
    Intent,
    JobRecord,
    JobStatus,
    Retried,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.lifecycle import advance, standing
from dbserve.placement import _Page  # pyright: ignore[reportPrivateUsage]
from dbserve.reconciler import Reconciler
from dbserve.store import attempts, history, jobs, keys, scripts, wishes
from tests.chaos.durable_redis import DurableRedis
from tests.chaos.machine import Machine, chosen
from tests.chaos.replay import Unexplained
from tests.chaos.world import World

MET = {  # whatever is drawn; test_every_transition has all pairs
    ("pending", "launched"),
    ("launched", "started"),
    ("running", "checkpointed"),
    ("running", "crashed"),
    ("running", "move_requested"),
    ("running", "finished"),
    ("running", "cancel_requested"),
    ("cancelling", "stopped"),
}
EXAMPLES = int(os.environ.get("DBSERVE_MODEL_EXAMPLES", "30"))


@pytest.fixture(scope="module", autouse=True)
def redis() -> Iterator[DurableRedis]:
    memory = Path("/dev/shm")  # survives what is killed here, and syncs in no time
    with tempfile.TemporaryDirectory(prefix="dbs-model-", dir=memory if memory.is_dir() else None) as directory:
        server = DurableRedis(Path(directory))
        server.start()
        Machine.redis, Machine.directory = server, Path(directory) / "artefacts"
        yield server
        server.stop()


@pytest.mark.timeout(max(180, 10 * EXAMPLES))
def test_the_promises_hold_whatever_happens() -> None:
    World.applied.clear()
    run_state_machine_as_test(Machine, settings=chosen(EXAMPLES))
    print(f"{len(World.applied)} pairs of state and event were met: {sorted(World.applied)}")
    assert World.applied >= MET, "it looks at little more than beginnings"


def test_of_two_processes_of_one_attempt_one_trains(redis: DurableRedis, tmp_path: Path) -> None:
    """The first was lost from sight before it began; a reconciler that had not asked for it asked again."""
    with World(redis, tmp_path) as world:
        world.submit(0, None, 0)
        world.tick()
        (first, *_) = world.waiting()
        first.cut_off = True
        world.take_over()
        (second,) = [one for one in world.waiting() if one.run == first.run and one is not first]
        world.begin(second, twice=True)
        world.begin(first, twice=False)
        assert (first.begun, second.begun) == (False, True)
        world.look()


# --- planted faults: a machine that finds nothing must be one that would have


def weaken(patch: pytest.MonkeyPatch, script: str, what: str, by: str) -> None:
    text = getattr(scripts, script)
    assert what in text
    patch.setattr(jobs, script, text.replace(what, by))


def unfenced_progress(patch: pytest.MonkeyPatch) -> None:
    weaken(patch, "RECORD_PROGRESS", "task.run.attempt == tonumber(ARGV[2]) and", "")


def advancing(patch: pytest.MonkeyPatch, module: ModuleType, fault: Callable[[Task, TaskEvent], Task | None]) -> None:
    """Where `fault` gives a task, it is what the event leads to."""

    def faulty(task: Task, event: TaskEvent) -> Task:
        return fault(task, event) or advance(task, event)

    patch.setattr(module, "advance", faulty)


def no_fence_at_all(patch: pytest.MonkeyPatch) -> None:
    def fault(task: Task, event: TaskEvent) -> Task | None:
        return advance(task, event.model_copy(update={"run": task.run})) if event.run != task.run else None

    advancing(patch, jobs, fault)


def finished_while_cancelling(patch: pytest.MonkeyPatch) -> None:
    def fault(task: Task, event: TaskEvent) -> Task | None:
        if task.state is not TaskState.CANCELLING or not isinstance(event, Finished):
            return None
        return task.model_copy(update={"state": TaskState.SUCCEEDED, "finished_at": event.at})

    advancing(patch, jobs, fault)


def an_attempt_number_is_used_again(patch: pytest.MonkeyPatch) -> None:
    def fault(task: Task, event: TaskEvent) -> Task | None:
        return advance(task, event).model_copy(update={"run": task.run}) if isinstance(event, Retried) else None

    advancing(patch, wishes, fault)


def a_checkpoint_is_dropped_by_a_crash(patch: pytest.MonkeyPatch) -> None:
    def fault(task: Task, event: TaskEvent) -> Task | None:
        if not isinstance(event, Crashed) or event.run != task.run:
            return None
        return advance(task, event).model_copy(update={"checkpoints": task.checkpoints[:-1]})

    advancing(patch, jobs, fault)


def a_job_that_ended_stays_active(patch: pytest.MonkeyPatch) -> None:
    def close(pipe: Any, record: JobRecord, status: JobStatus, *, at: float) -> None:
        history.close_if_ended(pipe, record, status, at=at)
        pipe.sadd(keys.ACTIVE, record.id)

    for module in (jobs, wishes):
        patch.setattr(module, "close_if_ended", close)


def an_end_is_told_twice(patch: pytest.MonkeyPatch) -> None:
    def close(pipe: Any, record: JobRecord, status: JobStatus, *, at: float) -> None:
        history.close_if_ended(pipe, record, status, at=at)
        history.close_if_ended(pipe, record, status, at=at)

    patch.setattr(jobs, "close_if_ended", close)
    patch.setattr(wishes, "close_if_ended", close)


def a_change_raises_no_revision(patch: pytest.MonkeyPatch) -> None:
    def write(pipe: Any, seen: Any, changed: Mapping[str, Task], intent: Intent) -> JobStatus:
        names = {name: task.model_dump_json() for name, task in changed.items()}
        pipe.hset(keys.tasks(seen.record.id), mapping=names)
        now_is = standing([*(seen.tasks | dict(changed)).values()], intent)
        pipe.hset(keys.job(seen.record.id), "standing", now_is.model_dump_json())
        return now_is.status

    patch.setattr(jobs, "write_tasks", write)


def a_list_is_told_late(patch: pytest.MonkeyPatch) -> None:
    def stale(tasks: Sequence[Task], intent: Intent) -> Standing:
        waits = [task.model_copy(update={"state": TaskState.PENDING, "started_at": None}) for task in tasks]
        return standing(waits, intent)

    patch.setattr(wishes, "standing", stale)


def the_work_of_an_ended_attempt_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    script = scripts.SET_ASIDE.replace("redis.call('HSET', KEYS[1], ARGV[2], told)", "")
    assert script != scripts.SET_ASIDE
    patch.setattr(attempts, "SET_ASIDE", script)


def a_key_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    weaken(patch, "CREATE_JOB", "if before and", "if false and")


def dead_is_taken_for_gone(patch: pytest.MonkeyPatch) -> None:
    async def bury(self: Any, task: Task, event: TaskEvent) -> None:
        await self._store.apply(event)

    patch.setattr(Reconciler, "_bury", bury)


def more_is_launched_than_fits(patch: pytest.MonkeyPatch) -> None:
    def room(*_: object) -> int:
        return 1

    patch.setattr(_Page, "room", room)


SOON_FOUND = [
    unfenced_progress,
    no_fence_at_all,
    an_attempt_number_is_used_again,
    a_checkpoint_is_dropped_by_a_crash,
    a_change_raises_no_revision,
    a_list_is_told_late,
    the_work_of_an_ended_attempt_is_forgotten,
]
LATER_FOUND = [
    a_job_that_ended_stays_active,
    an_end_is_told_twice,
    a_key_is_forgotten,
    dead_is_taken_for_gone,
    finished_while_cancelling,
    more_is_launched_than_fits,
]


@pytest.mark.parametrize(
    "plant",
    [*SOON_FOUND, *(pytest.param(plant, marks=pytest.mark.chaos) for plant in LATER_FOUND)],
    ids=lambda plant: plant.__name__,
)
def test_the_machine_finds_a_planted_fault(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        with pytest.raises((AssertionError, Unexplained)):
            run_state_machine_as_test(Machine, settings=chosen(200))

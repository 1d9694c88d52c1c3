"""Attempts at a training without a cluster: a task that moves as in the store, and a pulse that gives orders."""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dbserve.artefacts import Artefacts, LocalArtefacts
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import (
    Checkpointed,
    CheckpointFailed,
    Crashed,
    Launched,
    Reason,
    Restored,
    Run,
    Started,
    Task,
    TaskEvent,
)
from dbserve.lifecycle import advance, new_tasks
from tests.training import dataset, planned, spec_of
from workers.account import Account
from workers.attempt import TrainingAttempt
from workers.checkpoint import TrainingState, load
from workers.pulse import Order
from workers.saving import Saving
from workers.trainer import StepReport

TASK = "block-0"
STEPS = 10  # of a training, unless a spec says otherwise


class OneTask:
    """A store of one task, driven by the state machine itself."""

    def __init__(self, spec: JobSpec) -> None:
        plan = planned(spec)
        self.task: Task = next(task for task in new_tasks("job", plan, spec, now=0.0) if task.run.task == TASK)
        self.events: list[TaskEvent] = []
        self.begin()

    async def apply(self, event: TaskEvent) -> Task:
        self.task = advance(self.task, event)
        self.events.append(event)
        return self.task

    def begin(self) -> None:
        """The worker of the current attempt is up."""
        self.task = advance(self.task, Launched(run=self.task.run, cluster="c"))
        self.task = advance(self.task, Started(run=self.task.run, node="n", pid=1))

    def lose(self, reason: Reason = Reason.PREEMPTED) -> None:
        """The attempt is lost, and the next one begins."""
        self.task = advance(self.task, Crashed(run=self.task.run, reason=reason, message="lost"))
        self.events = []
        self.begin()

    @property
    def saved_steps(self) -> list[int]:
        return [event.checkpoint.step for event in self.events if isinstance(event, Checkpointed)]

    @property
    def failed_steps(self) -> list[int]:
        return [event.step for event in self.events if isinstance(event, CheckpointFailed)]

    @property
    def restored(self) -> list[Restored]:
        return [event for event in self.events if isinstance(event, Restored)]


class Noting(Account):
    """An account that remembers which steps it was told of."""

    def __init__(self) -> None:
        super().__init__(Run(job_id="job", task=TASK, attempt=1), steps=STEPS, batch_size=32)
        self.steps: list[int] = []

    def note(self, report: StepReport) -> None:
        self.steps.append(report.step)
        super().note(report)


class Orders:
    """A pulse that has `say` answer for it, step by step. As the true one, it may block."""

    def __init__(self, say: Callable[[int], Order] = lambda _: Order.GO) -> None:
        self.account = Noting()
        self._say = say

    @property
    def steps(self) -> list[int]:
        return self.account.steps

    def order(self) -> Order:
        return self._say(self.steps[-1])


class Wrapped:
    """A store of which `whole` goes through `meet` first: it may block, or raise."""

    def __init__(self, root: Path) -> None:
        self._inner = LocalArtefacts(root)
        self.writing = self.most_writing = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def meet(self, place: str) -> None: ...

    @contextmanager
    def whole(self, place: object, *, last: str) -> Generator[Path]:
        self.writing += 1
        self.most_writing = max(self.writing, self.most_writing)
        try:
            self.meet(str(place))
            with self._inner.whole(str(place), last=last) as staged:
                yield staged
        finally:
            self.writing -= 1


def save_before_going_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every save end before the next step, as where a store is faster than the training."""
    begin = Saving.begin

    def begin_and_wait(self: Saving, report: StepReport) -> None:
        begin(self, report)
        self._writing[1].exception()  # pyright: ignore[reportPrivateUsage, reportOptionalSubscript]

    monkeypatch.setattr(Saving, "begin", begin_and_wait)


def training_spec(**changes: Any) -> JobSpec:
    """10 steps, a checkpoint every 2, of which 2 are kept."""
    return spec_of(**{"checkpoint": {"every_steps": 2, "keep_last": 2}, **changes})


async def attempt(store: Any, artefacts: Artefacts, spec: JobSpec, pulse: Orders | None = None, **given: Any) -> None:
    """The current attempt at the task, from where it starts to how it ends."""
    task = given.pop("task", None) or store.task
    training = TrainingAttempt(store, artefacts, spec, planned(spec), task, **given)
    loop, pulse = asyncio.get_running_loop(), pulse or Orders()
    await asyncio.to_thread(training.run, dataset(), pulse, loop, trunk=None, device="cpu")


def final_state(artefacts: Artefacts, task: Task, spec: JobSpec) -> TrainingState:
    """What the task's newest checkpoint holds, verified."""
    ref = task.checkpoints[-1]
    with artefacts.fetch(ref.path) as directory:
        return load(directory, contract=planned(spec).contract, expect_sha256=ref.sha256)

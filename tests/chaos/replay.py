"""A job's events, replayed through the state machine: what the store must hold, if its history is true. Pure."""

from collections.abc import Mapping

from pydantic import TypeAdapter

from dbserve.contracts.status import (
    NO_TIME,
    TERMINAL,
    TERMINAL_JOB,
    CancelRequested,
    Intent,
    JobStatus,
    LoggedEvent,
    PauseRequested,
    Resumed,
    Retried,
    Run,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.errors import IllegalTransition
from dbserve.lifecycle import advance, job_state
from dbserve.store.history import JOB_CREATED, JOB_FINISHED

_EVENTS: TypeAdapter[TaskEvent] = TypeAdapter(TaskEvent)

# What of a task was there when it was made; all else its events did.
_FIRST = (
    *("kind", "index", "place", "steps", "cpus", "gpus", "needs", "after", "max_attempts", "max_preemptions"),
    *("micro_rows", "created_at"),
)


class Unexplained(Exception):
    """A history that cannot have happened."""


class Replay:
    """One job, event by event."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        """`tasks` as they stand at any time."""
        self.tasks = {name: fresh(task) for name, task in tasks.items()}
        self.intent = Intent.RUN
        self.ended = False
        self._begun = False

    @property
    def status(self) -> JobStatus:
        return job_state(list(self.tasks.values()), self.intent)

    def take(self, event: LoggedEvent) -> None:
        """The next event.

        Raises:
            StaleRun: it is of an attempt that was not current.
            Unexplained: it cannot have happened here, or says a job's state that the tasks do not.
        """
        self._in_turn(event)
        if event.kind == JOB_FINISHED:
            self.ended = True
        elif event.kind != JOB_CREATED:
            self.ended = False
            self._apply(event)
        if event.job_status is not self.status:
            raise Unexplained(f"{event.kind} says that the job is {event.job_status}; its tasks say {self.status}")

    def differences(self, tasks: Mapping[str, Task]) -> list[str]:
        """Where tasks as the store has them are not what their events made of them. Messages are not compared."""
        if tasks.keys() != self.tasks.keys():
            return [f"tasks are {sorted(tasks)}, not {sorted(self.tasks)}"]
        found: list[str] = []
        for name, task in tasks.items():
            told, stored = (one.model_dump(exclude={"message"}) for one in (self.tasks[name], task))
            found += [
                f"{name}: {key} is {stored[key]!r}; by its events {told[key]!r}"
                for key in stored
                if stored[key] != told[key]
            ]
        return found

    def _in_turn(self, event: LoggedEvent) -> None:
        """Created first; nothing but a retry after the end; one end for each."""
        if (event.kind == JOB_CREATED) == self._begun:
            raise Unexplained(f"{event.kind} {'comes again' if self._begun else 'comes first'}")
        self._begun = True
        if self.ended and event.kind != "job_retry_requested":
            raise Unexplained(f"{event.kind} after {JOB_FINISHED}")
        if event.kind == JOB_FINISHED and self.status not in TERMINAL_JOB:
            raise Unexplained(f"{JOB_FINISHED} while the job is {self.status}")
        if event.kind not in {JOB_FINISHED, "job_retry_requested"} and self.status in TERMINAL_JOB:
            raise Unexplained(f"{event.kind} where only {JOB_FINISHED} was missing")

    def _apply(self, event: LoggedEvent) -> None:
        try:
            match event.kind:
                case "job_cancel_requested":
                    self._cancel(event.at, force=bool(event.data.get("force")))
                case "job_pause_requested":
                    self.intent = Intent.PAUSE
                    for name, task in self._in({TaskState.PENDING}):
                        self.tasks[name] = advance(task, PauseRequested(run=task.run, at=event.at, stop_by=event.at))
                case "job_resume_requested":
                    self.intent = Intent.RUN
                    for name, task in self._in({TaskState.PAUSED}):
                        self.tasks[name] = advance(task, Resumed(run=task.run, at=event.at))
                case "job_retry_requested":
                    self.intent = Intent.RUN
                    for name in map(str, _list(event.data["tasks"])):
                        task = self.tasks[name]
                        self.tasks[name] = advance(task, Retried(run=task.run, at=event.at))
                case _:
                    self._of_a_task(event)
        except IllegalTransition as error:
            raise Unexplained(str(error)) from error

    def _cancel(self, at: float, *, force: bool) -> None:
        self.intent = Intent.CANCEL
        waiting = {TaskState.PENDING, TaskState.PAUSED}
        for name, task in self._in({*TaskState} - TERMINAL if force else waiting):
            self.tasks[name] = advance(task, CancelRequested(run=task.run, at=at, stop_by=NO_TIME))

    def _of_a_task(self, event: LoggedEvent) -> None:
        if event.task not in self.tasks or event.attempt is None:
            raise Unexplained(f"{event.kind} of {event.task!r}, attempt {event.attempt}: there is no such task")
        task = self.tasks[event.task]
        run = Run(job_id=task.run.job_id, task=event.task, attempt=event.attempt)
        after = advance(task, _EVENTS.validate_python({**event.data, "kind": event.kind, "run": run, "at": event.at}))
        if after == task and event.kind != "restored":  # which is told even where nothing was lost
            raise Unexplained(f"{event.kind} of {run} is told, and changed nothing")
        if event.data.get("state") != after.state.value:
            raise Unexplained(f"{event.kind} of {run} says {event.data.get('state')!r}, and led to {after.state}")
        self.tasks[event.task] = after

    def _in(self, states: set[TaskState]) -> list[tuple[str, Task]]:
        return [(name, task) for name, task in self.tasks.items() if task.state in states]


def fresh(task: Task) -> Task:
    """The task as it was when its job was made."""
    first = {name: getattr(task, name) for name in _FIRST}
    return Task(run=task.run.model_copy(update={"attempt": 1}), **first)


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value  # pyright: ignore[reportUnknownVariableType]

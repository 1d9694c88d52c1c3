"""THE state machine: how a task moves, and what the tasks together say of their job. Pure."""

from collections.abc import Mapping, Sequence

from dbserve.contracts.job import RetrySpec
from dbserve.contracts.plan import BASELINES, TRAINED, JobPlan, TaskKind
from dbserve.contracts.status import (
    BLAMELESS,
    HELD,
    HOPELESS,
    TERMINAL,
    Abandoned,
    CancelRequested,
    Checkpointed,
    CheckpointRef,
    Crashed,
    Finished,
    Held,
    Intent,
    JobStatus,
    Launched,
    Reason,
    Run,
    Started,
    Stopped,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.errors import IllegalTransition, StaleRun


def new_tasks(job_id: str, plan: JobPlan, retry: RetrySpec, *, now: float) -> tuple[Task, ...]:
    """Every task of a plan, pending at its first attempt, in the plan's order."""
    return tuple(
        Task(
            run=Run(job_id=job_id, task=task.name, attempt=1),
            kind=task.kind,
            index=task.index,
            needs=task.needs,
            after=task.after,
            max_attempts=retry.max_attempts,
            created_at=now,
        )
        for task in plan.tasks
    )


def advance(task: Task, event: TaskEvent) -> Task:
    """The task after the event; raises rather than guesses.

    An event that has already happened changes nothing, so that a write may be repeated after a lost answer.

    Raises:
        StaleRun: the event comes from an attempt that was given up.
        IllegalTransition: the event cannot happen to a task in this state.
    """
    if event.run != task.run:
        raise StaleRun(f"{event.run} was given up; {task.run} is current")
    match task.state, event:
        case TaskState.PENDING, Launched():
            return _moved(task, TaskState.LAUNCHED, cluster=event.cluster, reason=None, message=None)
        case TaskState.LAUNCHED, Started():
            started_at = task.started_at or event.at
            return _moved(task, TaskState.RUNNING, node=event.node, pid=event.pid, gpu=event.gpu, started_at=started_at)
        case ((TaskState.RUNNING | TaskState.CANCELLING), Checkpointed()):
            return task.model_copy(update={"checkpoints": _with(task.checkpoints, event)})
        case TaskState.RUNNING, Finished():
            return _moved(task, TaskState.SUCCEEDED, finished_at=event.at, reason=None, message=None)
        case ((TaskState.LAUNCHED | TaskState.RUNNING), Crashed()):
            return _after_crash(task, event)
        case TaskState.PENDING, CancelRequested():
            return _moved(task, TaskState.CANCELLED, reason=Reason.USER_CANCELLED, finished_at=event.at)
        case ((TaskState.LAUNCHED | TaskState.RUNNING), CancelRequested()):
            return _moved(task, TaskState.CANCELLING)
        case TaskState.CANCELLING, Stopped():
            return _moved(task, TaskState.CANCELLED, reason=Reason.USER_CANCELLED, finished_at=event.at)
        case TaskState.PENDING, Abandoned():
            return _moved(
                task,
                TaskState.CANCELLED,
                reason=Reason.DEPENDENCY_FAILED,
                message=event.message,
                finished_at=event.at,
            )
        case TaskState.PENDING, Held():
            return task.model_copy(update={"reason": event.reason, "message": event.message})
        case _ if _already(task.state, event):
            return task
        case _:
            raise IllegalTransition(f"{event.kind!r} cannot happen to a {task.state} task ({task.run})")


def _moved(task: Task, state: TaskState, **changes: object) -> Task:
    return task.model_copy(update={"state": state, **changes})


def _with(checkpoints: tuple[CheckpointRef, ...], event: Checkpointed) -> tuple[CheckpointRef, ...]:
    """The newest `keep_last` by step; a second commit of a step replaces the first.

    What an earlier attempt left at a later step was passed over, as damaged, by the one that comes to this step now.
    """
    new = event.checkpoint
    kept = [ref for ref in checkpoints if ref.step < new.step or (ref.step > new.step and ref.attempt == new.attempt)]
    return tuple(sorted([*kept, new], key=lambda ref: ref.step)[-event.keep_last :])


def _after_crash(task: Task, event: Crashed) -> Task:
    restarts = {**task.restarts, event.reason: task.restarts.get(event.reason, 0) + 1}
    blamed = sum(count for reason, count in restarts.items() if reason not in BLAMELESS)
    if event.reason in HOPELESS or blamed >= task.max_attempts:
        return _moved(
            task,
            TaskState.FAILED,
            reason=event.reason,
            message=event.message,
            restarts=restarts,
            finished_at=event.at,
        )
    return _moved(
        task,
        TaskState.PENDING,
        run=task.run.next(),
        reason=event.reason,
        message=event.message,
        restarts=restarts,
        not_before=event.retry_at,
        node=None,
        pid=None,
        gpu=None,
        cluster=None,
    )


def _already(state: TaskState, event: TaskEvent) -> bool:
    """Whether the event has brought the task to this very state before."""
    match event:
        case Launched():
            return state is TaskState.LAUNCHED
        case Started():
            return state is TaskState.RUNNING
        case Finished():
            return state is TaskState.SUCCEEDED
        case CancelRequested():
            return state in {TaskState.CANCELLING, TaskState.CANCELLED}
        case Stopped() | Abandoned():
            return state is TaskState.CANCELLED
        case Crashed():
            return state is TaskState.FAILED
        case _:
            return False


def backoff_seconds(retry: RetrySpec, attempt: int) -> float:
    """Seconds between the crash of `attempt` (from 1) and the next one: doubled each time, up to the maximum."""
    doublings = min(attempt - 1, 32)
    return min(retry.max_backoff_seconds, retry.backoff_seconds * 2.0**doublings)


def can_start(task: Task, tasks: Mapping[str, Task], now: float) -> bool:
    """Pending, its backoff over, everything it needs succeeded, and everything it waits for ended."""
    return (
        task.state is TaskState.PENDING
        and task.not_before <= now
        and all(tasks[name].state is TaskState.SUCCEEDED for name in task.needs)
        and all(tasks[name].state in TERMINAL for name in task.after)
    )


def broken_need(task: Task, tasks: Mapping[str, Task]) -> str | None:
    """The name of something a pending task needs that can never succeed any more, if there is one."""
    if task.state is not TaskState.PENDING:
        return None
    lost = {TaskState.FAILED, TaskState.CANCELLED}
    return next((name for name in task.needs if tasks[name].state in lost), None)


def job_state(tasks: Sequence[Task], intent: Intent) -> JobStatus:
    """What the tasks together say of their job. A job's state is always derived, never stored.

    A baseline that failed does not fail its job: that the whole network does not fit may be the very reason for blocks.
    """
    states = {task.state for task in tasks}
    if states <= TERMINAL:
        if any(_fails_the_job(task) for task in tasks):
            return JobStatus.FAILED
        return JobStatus.CANCELLED if TaskState.CANCELLED in states else JobStatus.SUCCEEDED
    if intent is Intent.CANCEL:
        return JobStatus.CANCELLING
    if any(task.run.attempt > 1 and task.state in {TaskState.PENDING, TaskState.LAUNCHED} for task in tasks):
        return JobStatus.RECOVERING
    if all(task.state in TERMINAL for task in tasks if task.kind in TRAINED):
        assembled = all(task.state is TaskState.SUCCEEDED for task in tasks if task.kind is TaskKind.ASSEMBLY)
        return JobStatus.EVALUATING if assembled else JobStatus.ASSEMBLING
    if states & HELD or any(task.started_at is not None for task in tasks):
        return JobStatus.RUNNING
    return JobStatus.QUEUED


def _fails_the_job(task: Task) -> bool:
    return task.state is TaskState.FAILED and task.kind not in BASELINES


def job_reason(tasks: Sequence[Task], intent: Intent) -> tuple[Reason | None, str | None]:
    """Why the job stands where it stands: the first failure, else a wait, else the user's cancel."""
    for task in tasks:
        if _fails_the_job(task):
            return task.reason, f"{task.run.task}: {task.message}"
    if intent is Intent.CANCEL and any(task.state is not TaskState.SUCCEEDED for task in tasks):
        return Reason.USER_CANCELLED, "cancelled by the user"
    for task in tasks:
        if task.state is TaskState.PENDING and task.reason is not None:
            return task.reason, f"{task.run.task}: {task.message}"
    return None, None

"""THE state machine: how a task moves, and what the tasks together say of their job. Pure."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from dbserve.contracts.job import JobSpec, ResourcesSpec, RetrySpec
from dbserve.contracts.plan import BASELINES, TRAINED, JobPlan, TaskKind, TaskPlan
from dbserve.contracts.snapshot import Standing
from dbserve.contracts.status import (
    HELD,
    HOPELESS,
    NO_TIME,
    OUT_OF_MEMORY,
    TERMINAL,
    Abandoned,
    CancelRequested,
    Checkpointed,
    CheckpointFailed,
    CheckpointRef,
    Crashed,
    Finished,
    Held,
    Intent,
    JobStatus,
    Launched,
    MoveRequested,
    PauseRequested,
    Reason,
    Restored,
    Resumed,
    Retried,
    Run,
    Started,
    Stopped,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.errors import IllegalTransition, StaleRun


def new_tasks(job_id: str, plan: JobPlan, spec: JobSpec, *, now: float) -> tuple[Task, ...]:
    """Every task of a plan, pending at its first attempt, in the plan's order."""
    retry, held = spec.retry, spec.resources
    micro_rows = plan.training.batch_size // plan.training.accumulate
    return tuple(
        Task(
            run=Run(job_id=job_id, task=task.name, attempt=1),
            kind=task.kind,
            index=task.index,
            place=place,
            steps=task.steps,
            **_held(task, held),
            placement=held.placement,
            node_labels=held.node_labels,
            needs=task.needs,
            after=task.after,
            max_attempts=retry.max_attempts,
            max_preemptions=retry.max_preemptions,
            micro_rows=micro_rows if task.kind in TRAINED else 0,
            created_at=now,
        )
        for place, task in enumerate(plan.tasks)
    )


def _held(task: TaskPlan, asked: ResourcesSpec) -> dict[str, Any]:
    """What each replica holds, and how many there are: of what is trained, those that the job asks for.

    The workers of data_parallel, each with a batch and a GPU of its own, are one replica on one node; assembly only
    copies files.
    """
    if task.kind is TaskKind.ASSEMBLY:
        return {"cpus": min(1.0, asked.cpus_per_block)}
    held: dict[str, Any] = {
        "cpus": task.workers * asked.cpus_per_block,
        "gpus": gpus_of(task, asked),
        "gpu_type": asked.gpu_type,
    }
    if task.kind in TRAINED and task.workers == 1:
        held |= {"replicas": asked.replicas, "min_replicas": asked.fewest}
    return held


def gpus_of(task: TaskPlan, asked: ResourcesSpec) -> float:
    """What each replica holds; several workers of one replica share no GPU."""
    return asked.gpus_per_block if task.workers == 1 else float(task.workers * ceil(asked.gpus_per_block))


def advance(task: Task, event: TaskEvent) -> Task:
    """The task after the event; raises rather than guesses.

    An event that has already happened changes nothing, so that a write may be repeated after a lost answer.

    Raises:
        StaleRun: the event comes from an attempt that was given up, or from a second process of the current one.
        IllegalTransition: the event cannot happen to a task in this state.
    """
    if event.run != task.run:
        raise StaleRun(f"{event.run} was given up; {task.run} is current")
    match task.state, event:
        case TaskState.PENDING, Launched() as event:
            return _moved(
                task,
                TaskState.LAUNCHED,
                cluster=event.cluster,
                nodes=event.nodes,
                trace=event.trace,
                launched_at=event.at,
                reason=None,
                message=None,
            )
        case TaskState.LAUNCHED, Started() as event:
            return _moved(
                task,
                TaskState.RUNNING,
                **event.model_dump(include={"node", "node_id", "pid", "born", "gpu"}),
                started_at=task.started_at or event.at,
                recovering=False,
            )
        case TaskState.RUNNING, Started() as event if not _is_its_process(task, event):
            # Asked for twice, as one that was lost from sight before it began may be: the first to begin has it.
            raise StaleRun(f"{event.run} is at work in another process, {task.pid} on {task.node}")
        case ((TaskState.RUNNING | TaskState.PAUSING | TaskState.CANCELLING), Restored() as event):
            lost = {ref.path for ref in event.lost}
            return _changed(task, checkpoints=tuple(ref for ref in task.checkpoints if ref.path not in lost))
        case ((TaskState.RUNNING | TaskState.PAUSING | TaskState.CANCELLING), Checkpointed() as event) if (
            task.stop_by != NO_TIME
        ):
            return _changed(task, checkpoints=_with(task.checkpoints, event), failed_saves=0, failed_save=None)
        case ((TaskState.RUNNING | TaskState.PAUSING | TaskState.CANCELLING), CheckpointFailed() as event):
            again = event.step == task.failed_save
            return _changed(task, failed_saves=task.failed_saves + (not again), failed_save=event.step)
        case ((TaskState.RUNNING | TaskState.PAUSING), Finished() as event):
            return _moved(
                task, TaskState.SUCCEEDED, finished_at=event.at, reason=None, message=None, stop_by=None, failed_saves=0
            )
        case ((TaskState.LAUNCHED | TaskState.RUNNING), Crashed() as event):
            return _after_crash(task, event, TaskState.PENDING)
        case TaskState.PAUSING, Crashed() as event:
            return _after_crash(task, event, TaskState.PAUSED)
        case TaskState.PENDING, PauseRequested():
            return _moved(task, TaskState.PAUSED)
        case ((TaskState.LAUNCHED | TaskState.RUNNING), PauseRequested() as event):
            return _moved(task, TaskState.PAUSING, stop_by=event.stop_by)
        case ((TaskState.LAUNCHED | TaskState.RUNNING), MoveRequested() as event):
            return _changed(task, stop_by=min(event.stop_by, event.stop_by if task.stop_by is None else task.stop_by))
        case TaskState.PAUSING, Stopped():
            return _moved(task, TaskState.PAUSED, run=task.run.next(), **_NO_WORKER)
        case TaskState.PAUSED, Resumed():
            return _moved(task, TaskState.PENDING)
        case ((TaskState.PENDING | TaskState.PAUSED), CancelRequested() as event):
            return _ended(task, event.reason, event.message, event.at)
        case ((TaskState.LAUNCHED | TaskState.RUNNING | TaskState.PAUSING), CancelRequested() as event):
            return _moved(task, TaskState.CANCELLING, reason=event.reason, message=event.message, stop_by=event.stop_by)
        case TaskState.CANCELLING, CancelRequested() as event:
            return _changed(task, stop_by=min(event.stop_by, event.stop_by if task.stop_by is None else task.stop_by))
        case TaskState.CANCELLING, Stopped() as event:
            return _ended(task, task.reason or Reason.USER_CANCELLED, task.message, event.at)
        case ((TaskState.PENDING | TaskState.PAUSED), Abandoned() as event):
            return _ended(task, Reason.DEPENDENCY_FAILED, event.message, event.at)
        case ((TaskState.FAILED | TaskState.CANCELLED), Retried()):
            return _moved(
                task,
                TaskState.PENDING,
                run=task.run.next(),
                crashes=0,
                preemptions=0,
                recovering=False,
                not_before=0.0,
                reason=None,
                message=None,
                finished_at=None,
                **_NO_WORKER,
            )
        case TaskState.PENDING, Retried():
            return _changed(task, not_before=0.0)
        case TaskState.PENDING, Held() as event:
            return _changed(task, reason=event.reason, message=event.message)
        case _ if _already(task.state, event):
            return task
        case _:
            raise IllegalTransition(f"{event.kind!r} cannot happen to a {task.state} task ({task.run})")


_NO_WORKER: Mapping[str, object] = {
    **dict.fromkeys(("node", "node_id", "pid", "born", "gpu", "cluster", "launched_at", "stop_by")),
    "nodes": (),
}


def _changed(task: Task, **changes: object) -> Task:
    return task.model_copy(update=changes)


def _moved(task: Task, state: TaskState, **changes: object) -> Task:
    return task.model_copy(update={"state": state, **changes})


def _ended(task: Task, reason: Reason, message: str | None, at: float) -> Task:
    """Before its time: cancelled, but failed where a deadline ended it."""
    state = TaskState.FAILED if reason is Reason.DEADLINE_EXCEEDED else TaskState.CANCELLED
    return _moved(task, state, reason=reason, message=message, finished_at=at, stop_by=None, recovering=False)


def _with(checkpoints: tuple[CheckpointRef, ...], event: Checkpointed) -> tuple[CheckpointRef, ...]:
    """The newest `keep_last` by step; a second commit of a step replaces the first.

    What an earlier attempt left at a later step was passed over, as damaged, by the one that comes to this step now.
    """
    new = event.checkpoint
    kept = [ref for ref in checkpoints if ref.step < new.step or (ref.step > new.step and ref.attempt == new.attempt)]
    return tuple(sorted([*kept, new], key=lambda ref: ref.step)[-event.keep_last :])


def _after_crash(task: Task, event: Crashed, waiting: TaskState) -> Task:
    """Another attempt, from `waiting`, where the budget of its kind allows one.

    Crashes and preemptions are counted apart. Out of memory is met once by half a micro-batch, which costs nothing of
    either; the second time it is the end, and so is what no attempt can mend.
    """
    reason, message = event.reason, event.message
    restarts = {**task.restarts, reason: task.restarts.get(reason, 0) + 1}
    preempted, out_of_memory = reason is Reason.PREEMPTED, reason in OUT_OF_MEMORY
    counted = not (preempted or out_of_memory)
    crashes, preemptions, split = task.crashes + counted, task.preemptions + preempted, task.split
    if preempted:
        over = preemptions > task.max_preemptions
    elif out_of_memory:
        over = split > 1 or task.micro_rows < 2 or task.micro_rows % 2 != 0
        split = split if over else 2
    else:
        over = reason in HOPELESS or crashes >= task.max_attempts
    counts: dict[str, object] = {"restarts": restarts, "crashes": crashes, "preemptions": preemptions}
    if over:
        return _moved(
            task,
            TaskState.FAILED,
            reason=reason,
            message=message,
            finished_at=event.at,
            stop_by=None,
            recovering=False,
            **counts,
        )
    if out_of_memory:
        half = task.micro_rows // 2
        message = (
            f"{message}; tried again with micro-batches of {half} rows instead of {task.micro_rows}, twice as many"
        )
    return _moved(
        task,
        waiting,
        run=task.run.next(),
        reason=reason,
        message=message,
        not_before=event.at + event.retry_after,
        recovering=True,
        split=split,
        **counts,
        **_NO_WORKER,
    )


def _is_its_process(task: Task, event: Started) -> bool:
    return (event.node, event.pid, event.born) == (task.node, task.pid, task.born)


def _already(state: TaskState, event: TaskEvent) -> bool:
    """Whether the event has brought the task to this very state before."""
    match event:
        case Launched():
            return state is TaskState.LAUNCHED
        case Started():
            return state is TaskState.RUNNING
        case Finished():
            return state is TaskState.SUCCEEDED
        case PauseRequested():
            return state in {TaskState.PAUSING, TaskState.PAUSED}
        case Resumed():
            return state is TaskState.PENDING
        case CancelRequested():
            return state is TaskState.CANCELLED
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
    """The name of something a waiting task needs that can never succeed any more, if there is one."""
    if task.state not in {TaskState.PENDING, TaskState.PAUSED}:
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
    if intent is Intent.PAUSE:
        return JobStatus.PAUSING if states & (HELD | {TaskState.PAUSING, TaskState.PENDING}) else JobStatus.PAUSED
    if any(task.recovering and task.state in {TaskState.PENDING, TaskState.LAUNCHED} for task in tasks):
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
        if task.state is TaskState.PENDING and task.message is not None:
            return task.reason, f"{task.run.task}: {task.message}"
    return None, None


def standing(tasks: Sequence[Task], intent: Intent) -> Standing:
    """A job in brief."""
    reason, message = job_reason(tasks, intent)
    return Standing(
        status=job_state(tasks, intent),
        reason=reason,
        message=message,
        steps_saved=sum(map(saved_steps, tasks)),
        steps=sum(task.steps for task in tasks),
    )


def saved_steps(task: Task) -> int:
    """Steps that nothing can take back: all of them, or what the last checkpoint holds."""
    if task.state is TaskState.SUCCEEDED:
        return task.steps
    return min(task.checkpoints[-1].step, task.steps) if task.checkpoints else 0

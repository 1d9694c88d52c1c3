"""How far a job has come, and when it will be done: read off one snapshot. Pure."""

from collections.abc import Iterator, Mapping

from dbserve.contracts.plan import TRAINED, TaskKind, TaskPlan
from dbserve.contracts.snapshot import JobOutline, JobSnapshot
from dbserve.contracts.status import (
    STOPPING,
    TERMINAL,
    TERMINAL_JOB,
    Condition,
    JobStatus,
    MemoryBytes,
    Reason,
    Task,
    TaskState,
)
from dbserve.contracts.work import Work
from dbserve.lifecycle import saved_steps

UNREACHABLE_SECONDS = 10.0  # heartbeats come once a second
STALLED_SECONDS = 300.0  # or half the deadline that replaces the worker, where that is sooner


def step_of(snapshot: JobOutline, name: str) -> int:
    """Steps a task has behind it: while a worker has it, what that told; else what is saved, and never less."""
    task = snapshot.tasks[name]
    saved, told = saved_steps(task), snapshot.progress.get(name)
    if told is None or (task.state is not TaskState.RUNNING and task.state not in STOPPING):
        return saved
    return min(max(saved, told.step), task.steps)  # an attempt that only begins has told no step


def work_of(job: JobOutline, name: str) -> Work:
    """What all attempts at a task did together."""
    past, told = job.past.get(name, Work()), job.progress.get(name)
    return past if told is None else past.plus(told.work)


def conditions(job: JobOutline, task: Task, now: float) -> tuple[Condition, ...]:
    """What is wrong with a task that goes on all the same, at `now` (unix seconds, the store's clock)."""
    return tuple(_conditions(job, task, now))


def _conditions(job: JobOutline, task: Task, now: float) -> Iterator[Condition]:
    if task.state is TaskState.PENDING and task.reason is Reason.UNSCHEDULABLE:
        yield Condition.UNSCHEDULABLE
    told = job.progress.get(task.run.task)
    if task.started_at is not None and (task.state is TaskState.RUNNING or task.state in STOPPING):
        heard = told.heartbeat_at if told is not None else (task.launched_at or task.started_at)
        patience = job.record.deadlines.no_progress_seconds
        longest = STALLED_SECONDS if patience is None else min(STALLED_SECONDS, patience / 2)
        if now - heard > UNREACHABLE_SECONDS:
            yield Condition.UNREACHABLE
        elif told is not None and told.last_step_at is not None and heard - told.last_step_at > longest:
            yield Condition.STALLED
    if task.failed_saves and task.state not in TERMINAL:
        yield Condition.CHECKPOINT_STALE


def task_eta_seconds(snapshot: JobSnapshot, name: str) -> float | None:
    """Remaining steps over the current attempt's own steps per second. None: it has told no speed."""
    rate = _steps_per_second(snapshot, name)
    return (snapshot.plan.task(name).steps - step_of(snapshot, name)) / rate if rate else None


def eta_seconds(snapshot: JobSnapshot) -> float | None:
    """Seconds until all training has ended, by Graham's bound for a list of tasks on as many workers as run now.

    Every unfinished task takes (remaining steps) / (steps per second), where steps per second = samples_per_second /
    (batch_size x workers) of its own current attempt; a task that has not told its speed is taken to be as fast as the
    running tasks, layer for layer. The answer is the larger of the longest task and the sum over the tasks that run
    now. It is too long while a trunk runs alone, and leaves out start-up, assembly and evaluation (seconds, usually).
    None: no running task has told its speed yet, or the job ended without success.
    """
    if snapshot.status in TERMINAL_JOB:
        return 0.0 if snapshot.status is JobStatus.SUCCEEDED else None
    waiting = [task for task in snapshot.plan.tasks if task.kind in TRAINED and _unfinished(snapshot, task.name)]
    if not waiting:
        return 0.0
    rates = {
        task.name: rate for task in waiting if (rate := _steps_per_second(snapshot, task.name)) is not None and rate > 0
    }
    if not rates:
        return None
    layer_rate = sum(rate * _layers(snapshot, snapshot.plan.task(name)) for name, rate in rates.items()) / len(rates)
    seconds = [_seconds(snapshot, task, rates, layer_rate) for task in waiting]
    return max(*seconds, sum(seconds) / len(rates))


def measured_memory_ratio(snapshot: JobSnapshot) -> float | None:
    """Largest measured block / measured end-to-end. None: one of the two has not been measured."""
    peaks = {name: peak_bytes(progress.memory) for name, progress in snapshot.progress.items()}
    blocks = [peaks.get(task.name) for task in snapshot.plan.tasks if task.kind is TaskKind.BLOCK]
    end_to_end = [peaks.get(task.name) for task in snapshot.plan.tasks if task.kind is TaskKind.END_TO_END]
    measured = [peak for peak in blocks if peak]
    if len(measured) < len(blocks) or not measured or not end_to_end or not end_to_end[0]:
        return None
    return max(measured) / end_to_end[0]


def peak_bytes(memory: MemoryBytes) -> int | None:
    """Measured bytes of one network in training; None before they were measured."""
    if memory.peak is not None:
        return memory.peak
    kinds = (memory.parameters, memory.gradients, memory.optimizer, memory.activations)
    known = [kind for kind in kinds if kind is not None]
    return sum(known) if len(known) == len(kinds) else None


def _unfinished(snapshot: JobSnapshot, name: str) -> bool:
    return snapshot.tasks[name].state not in TERMINAL


def _steps_per_second(snapshot: JobSnapshot, name: str) -> float | None:
    progress = snapshot.progress.get(name)
    if progress is None or not progress.samples_per_second or snapshot.tasks[name].state is not TaskState.RUNNING:
        return None
    return progress.samples_per_second / (snapshot.spec.training.batch_size * snapshot.plan.task(name).workers)


def _layers(snapshot: JobSnapshot, task: TaskPlan) -> int:
    start, stop = snapshot.plan.network_of(task).layers
    return max(1, stop - start)


def _seconds(snapshot: JobSnapshot, task: TaskPlan, rates: Mapping[str, float], layer_rate: float) -> float:
    rate = rates.get(task.name) or layer_rate / _layers(snapshot, task)
    return (task.steps - step_of(snapshot, task.name)) / rate

"""decide(): what must be done so that the cluster runs what the store wants, and no more. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from dbserve.contracts.cluster import Capacity, Resources
from dbserve.contracts.plan import TRAINED
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import (
    HELD,
    STOPPING,
    TERMINAL,
    Abandoned,
    CancelRequested,
    Crashed,
    Held,
    Intent,
    JobStatus,
    PauseRequested,
    Reason,
    Resumed,
    Run,
    Stopped,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.lifecycle import backoff_seconds, broken_need, can_start
from dbserve.sight import Silence

START_SECONDS = 300.0  # from a worker's launch to its first word
OCCUPYING = HELD | STOPPING  # what holds resources
_CANCELLABLE = HELD | {TaskState.PENDING, TaskState.PAUSED, TaskState.PAUSING}


@dataclass(frozen=True)
class Launch:
    """A worker, or as many as there are `nodes`, the leading one first. No nodes: one, anywhere."""

    run: Run
    resources: Resources  # of each replica
    nodes: tuple[str, ...] = ()
    trace: str = ""  # traceparent of the job


@dataclass(frozen=True)
class Stop:
    """A worker nobody wants: finished, given up, or past the time it had for its last checkpoint."""

    run: Run
    task: Task | None = None


@dataclass(frozen=True)
class Bury:
    """Kill what may be left of a task's worker; write the event when it is confirmed gone, and not before."""

    task: Task
    event: Crashed | Stopped


@dataclass(frozen=True)
class Note:
    """Write an event; nothing else is to be done."""

    event: TaskEvent


Action = Launch | Stop | Bury | Note


@dataclass(frozen=True)
class Limits:
    """Of the whole deployment. None: no limit."""

    jobs: int | None = None  # that may have workers at the same time
    tasks: int | None = None  # the same
    silence_seconds: float = 18.0  # a worker not heard of for longer has fenced itself, and is replaced


@dataclass(frozen=True)
class Scene:
    """All that decide() looks at. `alive` was read before `jobs`: who ended in between has said so."""

    jobs: Sequence[JobOutline]
    alive: AbstractSet[Run]
    capacity: Capacity
    cluster: str  # its identity
    now: float  # unix seconds, the store's clock
    asked: AbstractSet[Run] = frozenset()  # for which this reconciler has asked the cluster
    silence: Mapping[Run, Silence] = field(default_factory=dict[Run, Silence])
    limits: Limits = Limits()


def resources_of(task: Task) -> Resources:
    return Resources(task.cpus, task.gpus)


def decide(scene: Scene) -> Iterator[Action]:
    """First who must go, then what each job's tasks are due, then who may start, in their turn."""
    yield from _unwanted(scene)
    for job in scene.jobs:
        if not _only_waits(job):
            for task in job.tasks.values():
                yield from _due(job, task, scene)
    yield from _unschedulable(scene)
    yield from _launches(scene)


def _unwanted(scene: Scene) -> Iterator[Action]:
    """The set difference: whatever lives and is not wanted. Without it a superseded worker would keep its GPU."""
    jobs = {job.record.id: job for job in scene.jobs}
    for run in sorted(scene.alive, key=str):
        task = jobs[run.job_id].tasks.get(run.task) if run.job_id in jobs else None
        if task is None or task.run != run:
            yield Stop(run)
        elif task.state not in HELD and (task.state not in STOPPING or _out_of_time(task, scene.now)):
            yield Stop(run, task)


def _out_of_time(task: Task, now: float) -> bool:
    return task.stop_by is not None and now > task.stop_by


def _only_waits(job: JobOutline) -> bool:
    """Nothing can be due: of thousands of jobs, most."""
    deadlines = job.record.deadlines
    return (
        job.record.intent is Intent.RUN
        and deadlines.total_seconds is deadlines.queue_seconds is None
        and all(task.state is TaskState.PENDING for task in job.tasks.values())
    )


def _due(job: JobOutline, task: Task, scene: Scene) -> Iterator[Action]:
    run, now, intent = task.run, scene.now, job.record.intent
    if task.state in TERMINAL:
        return
    if task.state in STOPPING and run not in scene.alive:
        yield Bury(task, Stopped(run=run))
    elif intent is Intent.CANCEL and task.state in _CANCELLABLE:
        yield Note(CancelRequested(run=run, stop_by=now + _grace(job, task)))
    elif (late := _deadline(job, now)) is not None and task.state in _CANCELLABLE:
        stop_by = now + _grace(job, task)
        yield Note(CancelRequested(run=run, stop_by=stop_by, reason=Reason.DEADLINE_EXCEEDED, message=late))
    elif intent is Intent.PAUSE and (task.state in HELD or task.state is TaskState.PENDING):
        yield Note(PauseRequested(run=run, stop_by=now + _grace(job, task)))
    elif intent is Intent.RUN and task.state is TaskState.PAUSED:
        yield Note(Resumed(run=run))
    elif task.state in HELD:
        if (lost := _lost(job, task, scene)) is not None:
            yield Bury(task, lost)
    elif (need := broken_need(task, job.tasks)) is not None:
        yield Note(Abandoned(run=run, message=f"{need} did not succeed"))


def _grace(job: JobOutline, task: Task) -> float:
    """Seconds for a last checkpoint: none where there is nothing to save."""
    return job.record.grace_seconds if task.state is TaskState.RUNNING and task.kind in TRAINED else 0.0


def _deadline(job: JobOutline, now: float) -> str | None:
    """What deadline has passed, in words."""
    deadlines, age = job.record.deadlines, now - job.record.created_at
    if deadlines.total_seconds is not None and age > deadlines.total_seconds:
        return f"not done {deadlines.total_seconds:g} s after it was submitted (deadlines.total_seconds)"
    waits = job.status is JobStatus.QUEUED
    if deadlines.queue_seconds is not None and waits and age > deadlines.queue_seconds:
        return f"no worker was free within {deadlines.queue_seconds:g} s (deadlines.queue_seconds)"
    return None


def _lost(job: JobOutline, task: Task, scene: Scene) -> Crashed | None:
    """Why a task's worker must be given up; None: it works, or may still."""
    retry_after = backoff_seconds(job.record.retry, task.crashes + 1)

    def crashed(reason: Reason, message: str) -> Crashed:
        return Crashed(run=task.run, reason=reason, message=message, retry_after=retry_after)

    if task.cluster != scene.cluster:
        # The whole cluster was replaced under the task: nobody's fault, and nothing to wait for.
        return Crashed(run=task.run, reason=Reason.PREEMPTED, message="the cluster was restarted")
    if task.run not in scene.alive:
        if task.run not in scene.asked and task.state is TaskState.LAUNCHED:
            return None  # whoever recorded it may have died before asking: it is asked for again
        return crashed(Reason.WORKER_LOST, f"the worker of attempt {task.run.attempt} is gone")
    silence = scene.silence.get(task.run, Silence(0.0, 0.0))
    if task.state is TaskState.LAUNCHED:
        if silence.heartbeat > START_SECONDS:
            return crashed(Reason.WORKER_LOST, f"the worker did not begin within {START_SECONDS:g} s of its launch")
        return None
    if silence.heartbeat > scene.limits.silence_seconds:
        return crashed(Reason.STALLED, f"the worker has not been heard of for {silence.heartbeat:.0f} s")
    patience = job.record.deadlines.no_progress_seconds
    if patience is not None and task.kind in TRAINED and silence.step > patience:
        return crashed(Reason.STALLED, f"no step for {silence.step:.0f} s (deadlines.no_progress_seconds)")
    return None


def _unschedulable(scene: Scene) -> Iterator[Action]:
    """What could start, if there were a node for it: said once."""
    verdicts: dict[tuple[float, float], str | None] = {}
    for job in scene.jobs:
        for task in job.tasks.values():
            if task.state is not TaskState.PENDING:
                continue
            held = task.cpus, task.gpus
            if held not in verdicts:
                verdicts[held] = _can_never_fit(resources_of(task), scene.capacity)
            why = verdicts[held]
            if why is not None and task.message != why and _may_start(job, task, scene.now):
                yield Note(Held(run=task.run, reason=Reason.UNSCHEDULABLE, message=why))


def _launches(scene: Scene) -> Iterator[Action]:
    free, occupied = scene.capacity.total, Counter[str]()
    jobs_with_workers = 0
    by_owner = Counter[str]()
    for job in scene.jobs:
        held = [task for task in job.tasks.values() if task.state in OCCUPYING]
        occupied[job.record.id] = len(held)
        by_owner[job.record.owner] += len(held)
        jobs_with_workers += bool(held)
        for task in held:
            free = free.minus(resources_of(task))
            if task.state is TaskState.LAUNCHED and task.run not in scene.asked and task.cluster == scene.cluster:
                yield Launch(task.run, resources_of(task), task.nodes, job.record.trace)
    total = sum(occupied.values())
    for job, task in turns(scene.jobs, by_owner, scene.now):
        resources, limits, most = resources_of(task), scene.limits, job.record.queue.max_concurrent_blocks
        if free.cpus <= 0.0 or (limits.tasks is not None and total >= limits.tasks):
            return
        if most is not None and occupied[job.record.id] >= most:
            continue
        if limits.jobs is not None and not occupied[job.record.id] and jobs_with_workers >= limits.jobs:
            continue
        if _can_never_fit(resources, scene.capacity) is not None:
            continue
        if resources.fits(free):
            yield Launch(task.run, resources, trace=job.record.trace)
            jobs_with_workers += not occupied[job.record.id]
            occupied[job.record.id] += 1
            total += 1
        free = free.minus(resources)  # also where it waits: what comes later must not overtake it for ever


def turns(jobs: Sequence[JobOutline], by_owner: Mapping[str, int], now: float) -> Iterator[tuple[JobOutline, Task]]:
    """Tasks that could start, in the order in which they may. Looks no further than it is asked.

    Higher priority first; among equals, whoever submitted them takes turns, the one with the fewest workers first; what
    one owner submitted goes first come, first served, and within a job in the plan's order.
    """
    share = Counter(by_owner)
    lines: dict[int, dict[str, list[JobOutline]]] = {}
    for job in sorted(jobs, key=lambda job: job.record.id):
        lines.setdefault(job.record.queue.priority, {}).setdefault(job.record.owner, []).append(job)
    for priority in sorted(lines, reverse=True):
        queues = {owner: _startable(line, now) for owner, line in lines[priority].items()}
        heads = {owner: head for owner, queue in queues.items() if (head := next(queue, None)) is not None}
        while heads:
            owner = min(heads, key=lambda one: (share[one], heads[one][0].record.id))
            yield heads[owner]
            share[owner] += 1
            following = next(queues[owner], None)
            if following is None:
                del heads[owner]
            else:
                heads[owner] = following


def _startable(jobs: Sequence[JobOutline], now: float) -> Iterator[tuple[JobOutline, Task]]:
    return ((job, task) for job in jobs for task in job.tasks.values() if _may_start(job, task, now))


def _may_start(job: JobOutline, task: Task, now: float) -> bool:
    wanted = job.record.intent is Intent.RUN and _deadline(job, now) is None
    return wanted and can_start(task, job.tasks, now)


def _can_never_fit(resources: Resources, capacity: Capacity) -> str | None:
    if not capacity.nodes or any(
        resources.fits(node.resources) for node in capacity.nodes
    ):  # none: it is just starting
        return None
    best = max((node.resources for node in capacity.nodes), key=lambda held: (held.gpus, held.cpus))
    return (
        f"needs {resources.cpus:g} CPUs and {resources.gpus:g} GPUs on one node; "
        f"the largest node has {best.cpus:g} CPUs and {best.gpus:g} GPUs"
    )

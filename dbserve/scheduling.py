"""decide(): what must be done so that the cluster runs what the store wants, and no more. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heapreplace

from dbserve.contracts.cluster import Capacity, Demand, Node, Resources
from dbserve.contracts.plan import TRAINED
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import (
    HELD,
    OCCUPYING,
    STOPPING,
    TERMINAL,
    Abandoned,
    CancelRequested,
    Crashed,
    Held,
    Intent,
    JobStatus,
    MoveRequested,
    PauseRequested,
    Reason,
    Resumed,
    Run,
    Stopped,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.growing import MOST_WAITING, admitted, demands, whole_nodes
from dbserve.lifecycle import backoff_seconds, broken_need, can_start
from dbserve.placement import Ask, Books, ask_of, nodes_of, resources_of, shortfall
from dbserve.sight import Silence

START_SECONDS = 300.0  # from a worker's launch to its first word
LAST_SECONDS = 3.0  # before a node goes, for the reconciler to kill what is left and to write it down
MOST_KEPT = 16  # tasks that wait, and have room kept for them
MOST_SAID = 64  # of those, whose wait is put down at one look
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


@dataclass(frozen=True)
class Grow:
    """Ask the autoscaler for room for what waits beside what is in use. Neither: it may shrink as it likes."""

    in_use: tuple[Demand, ...]
    waiting: tuple[Demand, ...]  # first who is to be served first


Action = Launch | Stop | Bury | Note | Grow


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

    @cached_property
    def draining(self) -> Mapping[str, Node]:
        return {node.id: node for node in self.capacity.nodes if node.draining}

    def there(self, task: Task) -> bool:
        """All nodes that its workers were given still live, as far as is known."""
        return not self._living or self._living.issuperset(task.nodes)

    def left(self, task: Task) -> bool:
        """A node that its workers were given is gone, or about to go: Ray begins nothing there."""
        return not self.there(task) or any(node in self.draining for node in task.nodes)

    def missing(self, ask: Ask) -> str | None:
        """What the nodes there are lack for it while they are empty, in words; None: nothing."""
        if ask not in self._missing:
            self._missing[ask] = shortfall(ask, self.capacity.nodes)
        return self._missing[ask]

    def verdict(self, ask: Ask) -> str | None:
        """Why the cluster can never hold it, in words; None: it can, or may grow: then what is missing may come."""
        return self.missing(ask) if self.capacity.growth is None else None

    @cached_property
    def _living(self) -> frozenset[str]:
        return frozenset(node.id for node in self.capacity.nodes)

    @cached_property
    def _missing(self) -> dict[Ask, str | None]:
        return {}


def decide(scene: Scene) -> Iterator[Action]:
    """First who must go, then what each job's tasks are due, then who may start, in their turn, and who may not yet."""
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
        elif task.stop_by is None and (move := _move(job, task, scene)) is not None:
            yield Note(move)
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
    if task.stop_by is not None and (task.run not in scene.alive or _out_of_time(task, scene.now)):
        saved = "it was moved" if task.run not in scene.alive else "its time for a last checkpoint is over"
        return Crashed(run=task.run, reason=Reason.PREEMPTED, message=f"its node is about to go: {saved}")
    if task.run not in scene.alive:
        if task.run not in scene.asked and task.state is TaskState.LAUNCHED and scene.there(task):
            return None  # whoever recorded it may have died before asking: it is asked for again
        if task.state is TaskState.LAUNCHED and scene.left(task):
            return Crashed(run=task.run, reason=Reason.PREEMPTED, message="its node went before it had begun")
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


def _move(job: JobOutline, task: Task, scene: Scene) -> MoveRequested | None:
    """Off a node that is about to go. What has nothing to save stays until the last moment: it may be done by then."""
    going = [scene.draining[node_id] for node_id in nodes_of(task) if node_id in scene.draining]
    if not going:
        return None
    left = min((node.leaves_in for node in going if node.leaves_in is not None), default=None)
    begun = task.state is TaskState.RUNNING
    if begun and task.kind not in TRAINED and (left is None or left > LAST_SECONDS):
        return None
    grace = _grace(job, task)
    if left is not None:
        grace = max(0.0, min(grace, left - LAST_SECONDS))
    when = "" if left is None else f" in {max(0.0, left):.0f} s"
    return MoveRequested(run=task.run, stop_by=scene.now + grace, message=f"{going[0].name} is about to go{when}")


def _unschedulable(scene: Scene) -> Iterator[Action]:
    """What could start, if there were a node for it: said once, and taken back when there is one."""
    for job in scene.jobs:
        for task in job.tasks.values():
            if task.state is not TaskState.PENDING:
                continue
            why = scene.verdict(ask_of(task))
            if why is None and task.reason is Reason.UNSCHEDULABLE:
                yield Note(Held(run=task.run))
            elif why is not None and task.message != why and _may_start(job, task, scene.now):
                yield Note(Held(run=task.run, reason=Reason.UNSCHEDULABLE, message=why))


def _launches(scene: Scene) -> Iterator[Action]:
    books, occupied = Books(scene.capacity), Counter[str]()
    jobs_with_workers = 0
    by_owner = Counter[str]()
    everyone: list[Task] = []
    for job in scene.jobs:
        held = [task for task in job.tasks.values() if task.state in OCCUPYING]
        everyone += held
        occupied[job.record.id] = len(held)
        by_owner[job.record.owner] += len(held)
        jobs_with_workers += bool(held)
        for task in held:
            unasked = task.state is TaskState.LAUNCHED and task.run not in scene.asked
            if unasked and task.cluster == scene.cluster and scene.there(task):
                yield Launch(task.run, resources_of(task), task.nodes, job.record.trace)
    books.charge(everyone)
    total, waiting, waits, kept = len(everyone), list[Task](), Counter[str](), 0
    growing = scene.capacity.growth is not None
    for job, task in turns(scene.jobs, by_owner, scene.now):
        limits, most, job_id = scene.limits, job.record.queue.max_concurrent_blocks, job.record.id
        if books.full and (not growing or len(waiting) >= MOST_WAITING):
            break
        if limits.tasks is not None and total >= limits.tasks:
            break
        if most is not None and occupied[job_id] + waits[job_id] >= most:
            continue
        if limits.jobs is not None and not occupied[job_id] and jobs_with_workers >= limits.jobs:
            continue
        ask = ask_of(task)
        if scene.verdict(ask) is not None:
            continue
        nodes = books.place(ask, job_id)
        if nodes:
            yield Launch(task.run, ask.resources, nodes, job.record.trace)
            everyone.append(task.model_copy(update={"nodes": nodes}))
            jobs_with_workers += not occupied[job_id]
            occupied[job_id] += 1
            total += 1
        else:
            waiting.append(task)
            waits[job_id] += 1
            # what the nodes there could not hold if they were empty waits for others: here it would keep room for ever
            if kept < MOST_KEPT and scene.missing(ask) is None:
                books.keep(ask, job_id)
                kept += 1
    if growing:
        begun, limits = {job_id for job_id, count in occupied.items() if count}, scene.limits
        more_jobs = None if limits.jobs is None else limits.jobs - len(begun)
        more_tasks = None if limits.tasks is None else limits.tasks - total
        yield from _growth(scene, books, everyone, admitted(waiting, begun, more_jobs=more_jobs, more_tasks=more_tasks))


def _growth(scene: Scene, books: Books, held: Sequence[Task], waiting: Sequence[Task]) -> Iterator[Action]:
    """What waits is told to the autoscaler, and what it waits for is put down."""
    wanted = Counter[Ask]()
    for task in waiting:
        wanted[ask_of(task)] += task.replicas
    in_use = Counter[Ask]()
    full = {node.id: node for node in books.full_nodes(list(wanted)[:MOST_SAID])} if wanted else {}
    # what is in use is counted against what is asked for; and nodes of replicas that have not been called yet look idle
    for task in held if waiting or any(len(task.nodes) > 1 for task in held) else ():
        elsewhere = sum(node not in full for node in nodes_of(task)) if nodes_of(task) else task.replicas
        in_use[ask_of(task)] += elsewhere
    yield Grow((*whole_nodes(full.values(), wanted), *demands(in_use)), demands(wanted))
    growth = scene.capacity.growth
    left_out = growth.left_out if growth is not None else frozenset[Demand]()
    for task in waiting[:MOST_SAID]:
        missing = scene.missing(ask_of(task))
        why = f"waiting for a node: {missing or 'all that could hold it are in use'}"
        if not left_out.isdisjoint(demands({ask_of(task): 1})):
            why += "; the autoscaler says that it can add none at present"
        if task.message != why:
            yield Note(Held(run=task.run, message=why))


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
        heap = [(share[owner], job.record.id, owner) for owner, (job, _) in heads.items()]  # no job has two owners
        heapify(heap)
        while heap:
            _, _, owner = heap[0]
            yield heads[owner]
            share[owner] += 1
            following = next(queues[owner], None)
            if following is None:
                heappop(heap)
            else:
                heads[owner] = following
                heapreplace(heap, (share[owner], following[0].record.id, owner))


def _startable(jobs: Sequence[JobOutline], now: float) -> Iterator[tuple[JobOutline, Task]]:
    return ((job, task) for job in jobs for task in job.tasks.values() if _may_start(job, task, now))


def _may_start(job: JobOutline, task: Task, now: float) -> bool:
    wanted = job.record.intent is Intent.RUN and _deadline(job, now) is None
    return wanted and can_start(task, job.tasks, now)

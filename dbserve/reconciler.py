"""What must be done so that the cluster runs what the store wants: decide() decides, Reconciler.tick() acts."""

import asyncio
import logging
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dbserve.artefacts import job_directory
from dbserve.contracts.cluster import Capacity, Resources
from dbserve.contracts.job import ResourcesSpec
from dbserve.contracts.plan import TaskKind, TaskPlan
from dbserve.contracts.snapshot import JobSnapshot
from dbserve.contracts.status import (
    HELD,
    Abandoned,
    CancelRequested,
    Crashed,
    Held,
    Intent,
    Launched,
    Reason,
    Run,
    Stopped,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.errors import DbserveError, IllegalTransition, JobNotFound, StaleRun
from dbserve.lifecycle import backoff_seconds, broken_need, can_start
from dbserve.settings import Settings
from dbserve.store import JobStore

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
LEASE_SECONDS = 10.0


class Cluster(Protocol):
    """What the reconciler asks of a cluster. Calls may block."""

    @property
    def identity(self) -> str: ...
    def capacity(self) -> Capacity: ...
    def alive(self) -> set[Run]: ...
    def launch(self, run: Run, resources: Resources) -> None: ...
    def stop(self, run: Run, *, node: str | None, pid: int | None) -> None: ...
    def process_exists(self, *, node: str | None, pid: int | None) -> bool: ...


@dataclass(frozen=True)
class Launch:
    run: Run
    resources: Resources


@dataclass(frozen=True)
class Stop:
    """A worker nobody wants: finished, cancelled, or given up."""

    run: Run
    node: str | None = None
    pid: int | None = None


@dataclass(frozen=True)
class GiveUp:
    """A worker that should be there and is not."""

    task: Task
    reason: Reason
    message: str
    retry_at: float


@dataclass(frozen=True)
class Note:
    """Write an event; nothing else is to be done."""

    event: TaskEvent


Action = Launch | Stop | GiveUp | Note


def task_resources(task: TaskPlan, spec: ResourcesSpec) -> Resources:
    """Assembly only copies files; every other task holds what the job asks for, for each of its workers."""
    if task.kind is TaskKind.ASSEMBLY:
        return Resources(min(1.0, spec.cpus_per_block), 0.0)
    return Resources(task.workers * spec.cpus_per_block, task.workers * spec.gpus_per_block)


def decide(
    jobs: Sequence[JobSnapshot], alive: AbstractSet[Run], capacity: Capacity, cluster: str, now: float
) -> Iterator[Action]:
    """What must be done so that the cluster runs what the store wants, and no more.

    `alive` must have been read before `jobs`: a worker that ended in between then shows its end in the store.
    Jobs come first come, first served; a job's tasks in the order of its plan. A task that must wait for room keeps its
    place: narrower ones that come later get only what it leaves.
    """
    known = {task.run: task for job in jobs for task in job.tasks.values()}
    wanted = {run for run, task in known.items() if task.state in HELD}
    for run in sorted(alive - wanted, key=str):
        task = known.get(run)
        yield Stop(run, task.node, task.pid) if task else Stop(run)
    free = capacity.total
    for job in jobs:
        for task in job.tasks.values():
            if task.state in HELD or (task.state is TaskState.CANCELLING and task.run in alive):
                free = free.minus(task_resources(job.plan.task(task.run.task), job.spec.resources))
    for job in sorted(jobs, key=lambda job: job.record.id):
        for task in job.tasks.values():
            if task.state is TaskState.CANCELLING and task.run not in alive:
                yield Note(Stopped(run=task.run, at=now))
            elif job.record.intent is Intent.CANCEL and (task.state in HELD or task.state is TaskState.PENDING):
                yield Note(CancelRequested(run=task.run, at=now))
            elif task.state in HELD and task.run not in alive:
                yield _give_up(job, task, cluster, now)
            elif (need := broken_need(task, job.tasks)) is not None:
                yield Note(Abandoned(run=task.run, at=now, message=f"{need} did not succeed"))
            elif can_start(task, job.tasks, now):
                resources = task_resources(job.plan.task(task.run.task), job.spec.resources)
                if (why := _can_never_fit(resources, capacity)) is not None:
                    if task.message != why:
                        yield Note(Held(run=task.run, at=now, reason=Reason.UNSCHEDULABLE, message=why))
                else:
                    if resources.fits(free):
                        yield Launch(task.run, resources)
                    free = free.minus(resources)  # also where it waits: what comes later must not overtake it for ever


def _give_up(job: JobSnapshot, task: Task, cluster: str, now: float) -> GiveUp:
    if task.cluster != cluster:
        # The whole cluster was replaced under the task: nobody's fault, and nothing to wait for.
        return GiveUp(task, Reason.PREEMPTED, "the cluster was restarted", now)
    retry_at = now + backoff_seconds(job.spec.retry, sum(task.restarts.values()) + 1)
    return GiveUp(task, Reason.WORKER_LOST, f"the worker of attempt {task.run.attempt} is gone", retry_at)


def _can_never_fit(resources: Resources, capacity: Capacity) -> str | None:
    if any(resources.fits(node) for node in capacity.nodes):
        return None
    best = max(capacity.nodes, key=lambda node: (node.gpus, node.cpus), default=Resources(0, 0))
    return (
        f"needs {resources.cpus:g} CPUs and {resources.gpus:g} GPUs on one node; "
        f"the largest node has {best.cpus:g} CPUs and {best.gpus:g} GPUs"
    )


def ask_again(jobs: Sequence[JobSnapshot], alive: AbstractSet[Run]) -> Iterator[Launch]:
    """Workers that exist and have not begun.

    Whoever launched them may have died in between: Ray keeps the worker, and loses the call that starts its work.
    """
    for job in jobs:
        for task in job.tasks.values():
            if task.state is TaskState.LAUNCHED and task.run in alive:
                yield Launch(task.run, task_resources(job.plan.task(task.run.task), job.spec.resources))


class Reconciler:
    """Acts on decide(), under a lease, until stopped. The only authority that retries."""

    def __init__(self, store: JobStore, cluster: Cluster, artifacts: Path) -> None:
        self._store = store
        self._cluster = cluster
        self._artifacts = artifacts
        self._holder = uuid.uuid4().hex
        self._held_at = float("-inf")  # monotonic seconds: when the lease was last taken or renewed
        self._adopted = False  # whether what others launched was asked for again

    async def run(self, stopping: asyncio.Event) -> None:
        """Ticks until `stopping`. Errors it can explain are logged and met again at the next tick."""
        while not stopping.is_set():
            try:
                if await self._hold():
                    await self.tick()
            except DbserveError as error:
                log.warning("%s: %s", error.code, error)
            try:
                await asyncio.wait_for(stopping.wait(), TICK_SECONDS)
            except TimeoutError:
                continue
        await self._store.lease.drop(self._holder)

    async def tick(self) -> None:
        """One look and what follows from it."""
        alive = await asyncio.to_thread(self._cluster.alive)
        capacity = await asyncio.to_thread(self._cluster.capacity)
        jobs = await self._store.active_snapshots()
        alive |= self._lingering(jobs)
        actions = [*decide(jobs, alive, capacity, self._cluster.identity, time.time())]
        if not self._adopted:
            actions = [*ask_again(jobs, alive), *actions]
        for action in actions:
            if not await self._still_ours():
                return
            try:
                await self._act(action)
            except (StaleRun, IllegalTransition, JobNotFound) as passed:
                log.info("no longer true: %s", passed)  # the store moved on since the look
        self._adopted = True
        for job_id in await self._store.deleted_jobs():
            await asyncio.to_thread(shutil.rmtree, self._artifacts / job_directory(job_id), ignore_errors=True)
            await self._store.artefacts_removed(job_id)

    async def _hold(self) -> bool:
        now = time.monotonic()
        if not await self._store.lease.hold(self._holder, ttl_seconds=LEASE_SECONDS):
            self._adopted = False  # another acts, and may leave things half done
            return False
        self._held_at = now
        return True

    async def _still_ours(self) -> bool:
        """Ray may take longer than the lease lasts; what was seen before another began to act is no ground to act."""
        return time.monotonic() - self._held_at < LEASE_SECONDS / 2 or await self._hold()

    def _lingering(self, jobs: Sequence[JobSnapshot]) -> set[Run]:
        """Cancelling tasks whose process is still there, whatever Ray says: dead is not gone."""
        cancelling = (task for job in jobs for task in job.tasks.values() if task.state is TaskState.CANCELLING)
        return {task.run for task in cancelling if self._cluster.process_exists(node=task.node, pid=task.pid)}

    async def _act(self, action: Action) -> None:
        match action:
            case Launch(run, resources):
                # The store first: a worker that exists unrecorded would be stopped, a record without one is given up.
                await self._store.apply(Launched(run=run, at=time.time(), cluster=self._cluster.identity))
                log.info("launch %s", run)
                await asyncio.to_thread(self._cluster.launch, run, resources)
            case Stop(run, node, pid):
                log.info("stop %s", run)
                await asyncio.to_thread(self._cluster.stop, run, node=node, pid=pid)
            case GiveUp(task, reason, message, retry_at):
                log.warning("give up %s: %s", task.run, message)
                await asyncio.to_thread(self._cluster.stop, task.run, node=task.node, pid=task.pid)
                event = Crashed(run=task.run, at=time.time(), reason=reason, message=message, retry_at=retry_at)
                await self._store.apply(event)
            case Note(event):
                await self._store.apply(event)


async def serve(settings: Settings) -> None:
    """Reconciles until SIGTERM or SIGINT. Workers are left as they are: the next reconciler adopts them.

    Raises:
        ClusterUnavailable, StoreUnavailable: at the start; later ones are waited out.
    """
    if settings.ray_auth_token_path is not None:  # ray reads these when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(settings.ray_auth_token_path)}
    from dbserve.cluster import RayCluster  # late: ray takes seconds to import, and is not needed to decide

    store = JobStore.from_url(settings.redis_url)
    await store.ping()
    cluster = await asyncio.to_thread(RayCluster.connect, settings, await store.deployment())
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    log.info("reconciling on %s", settings.ray_address)
    try:
        await Reconciler(store, cluster, settings.artifacts).run(stopping)
    finally:
        await store.aclose()
        cluster.disconnect()


def run_reconciler(settings: Settings) -> None:
    """The program `dbserve reconcile`."""
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(settings))

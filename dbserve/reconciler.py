"""The reconciler: looks at store and cluster, and does what decide() says. The only authority that retries."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from dbserve.artefacts import Artefacts, job_directory, open_artefacts
from dbserve.cancellation import end
from dbserve.contracts.cluster import Capacity, ClusterRecord, Demand, Presence, Resources
from dbserve.contracts.status import HELD, Crashed, Launched, Reason, Run, Stopped, Task
from dbserve.errors import ClusterUnavailable, DbserveError, IllegalTransition, JobNotFound, StaleRun
from dbserve.failpoints import failpoint
from dbserve.garbage import collect_less_often
from dbserve.logs import adopt, concerning, configure
from dbserve.placement import nodes_of
from dbserve.scheduling import Action, Bury, Grow, Launch, Limits, Note, Scene, Stop, decide
from dbserve.settings import Settings, refuse_open_cluster
from dbserve.sight import Sight
from dbserve.store import JobStore
from dbserve.tracing import UNTRACED, Trace, Tracer, of_run, open_tracer
from dbserve.webhooks.deliverer import Deliverer
from dbserve.webhooks.posting import Poster

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5
ACTING_SECONDS = 0.5  # of one tick: looking again is what shows who has fallen silent
TIDY_SECONDS = 2.0
TELL_SECONDS = 5.0  # between two notes of how long ticks took
SHOW_SECONDS = 2.0  # between two notes of what the cluster has
DOUBT_SECONDS = 60.0  # in which nothing begins on a node that did not answer for one of its workers
LEASE_SECONDS = 5.0  # a reconciler that was killed keeps the next one waiting for so long
SILENCE_MARGIN_SECONDS = 3.0  # beyond a worker's lease: by then it has stopped at a step boundary of its own accord
CLUSTER_PATIENCE_SECONDS = 10.0  # without an answer from the cluster; then a new process connects anew


class Cluster(Protocol):
    """What the reconciler asks of a cluster. Calls may block; each may raise ClusterUnavailable."""

    @property
    def identity(self) -> str: ...
    def capacity(self) -> Capacity: ...
    def alive(self) -> set[Run]: ...
    def launch(self, run: Run, resources: Resources, nodes: Sequence[str]) -> None: ...
    def stop(self, run: Run, *, task: Task | None) -> None: ...
    def presence(self, task: Task) -> Presence: ...
    def cause_of_death(self, run: Run) -> tuple[Reason, str] | None: ...
    def grow(self, in_use: Sequence[Demand], waiting: Sequence[Demand]) -> None: ...


class Reconciler:
    """Acts on decide(), under a lease, until stopped."""

    def __init__(
        self,
        store: JobStore,
        cluster: Cluster,
        artefacts: Artefacts,
        *,
        limits: Limits | None = None,
        deliverer: Deliverer | None = None,
        tracer: Tracer = UNTRACED,
        alive_file: Path | None = None,
    ) -> None:
        """`alive_file` is touched at every turn, the lease held or not: where it grows old, something hangs."""
        self._store = store
        self._cluster = cluster
        self._artefacts = artefacts
        self._limits = limits or Limits()
        self._deliverer = deliverer
        self._tracer = tracer
        self._alive_file = alive_file
        self._holder = uuid.uuid4().hex
        self._held_at = float("-inf")  # monotonic seconds: when the lease was last taken or renewed
        self._asked: set[Run] = set()  # workers that we asked the cluster for; what others asked for may be lost
        self._given_up: dict[Run, Crashed] = {}  # why, as it was first seen
        self._sight = Sight()
        self._tried: set[tuple[type[Action], Run | None]] = set()  # since a tick last did all that was due
        self._ticks: list[float] = []  # seconds that those since _told_at took
        self._told_at = float("-inf")  # monotonic seconds
        self._shown_at = float("-inf")  # the same
        self._silent_nodes: dict[str, float] = {}  # by the monotonic seconds when they did not answer

    async def run(self, stopping: asyncio.Event) -> None:
        """Ticks until `stopping`. Errors it can explain are logged and met again at the next tick.

        Raises:
            ClusterUnavailable: it has not answered for CLUSTER_PATIENCE_SECONDS; a new process should connect anew.
        """
        beside = [asyncio.create_task(self._tidy_patiently())]
        if self._deliverer is not None:
            beside.append(asyncio.create_task(self._deliverer.run(self._acting)))
        try:
            await self._tick_until(stopping)
        finally:
            await end(*beside)
        await self._store.lease.drop(self._holder)

    async def _tick_until(self, stopping: asyncio.Event) -> None:
        answered_at = time.monotonic()
        while not stopping.is_set():
            try:
                if await self._hold():
                    await self._timed_tick()
                await self._tell()
                answered_at = time.monotonic()
            except ClusterUnavailable as away:
                log.warning("%s", away)
                if time.monotonic() - answered_at > CLUSTER_PATIENCE_SECONDS:
                    raise
            except DbserveError as error:
                log.warning("%s: %s", error.code, error)
            if self._alive_file is not None:
                self._alive_file.touch()
            try:
                await asyncio.wait_for(stopping.wait(), 0.0 if self._tried else TICK_SECONDS)
            except TimeoutError:
                continue

    async def _timed_tick(self) -> None:
        began = time.monotonic()
        await self.tick()
        self._ticks.append(time.monotonic() - began)

    async def _tell(self) -> None:
        """What is counted here, now and then: the lease may be another's."""
        if (now := time.monotonic()) - self._told_at < TELL_SECONDS:
            return
        await self._store.counters.tell_refusals()
        if self._ticks:
            await self._store.counters.ticked(await self._store.clock(), self._ticks)
        self._ticks, self._told_at = [], now

    async def tick(self) -> None:
        """One look and what follows from it, as far as ACTING_SECONDS reach: what is left is decided by the next look,
        which passes over what was tried, so that nothing waits for ever behind what does not succeed."""
        alive = await asyncio.to_thread(self._cluster.alive)
        capacity = await asyncio.to_thread(self._cluster.capacity)
        jobs = await self._store.active_outlines()
        await self._show(capacity := self._doubted(capacity))
        held = {task.run for job in jobs for task in job.tasks.values() if task.state in HELD}
        self._asked &= held
        self._given_up = {run: event for run, event in self._given_up.items() if run in held}
        scene = Scene(
            jobs=jobs,
            alive=alive,
            capacity=capacity,
            cluster=self._cluster.identity,
            now=await self._store.clock(),
            asked=frozenset(self._asked),
            silence=self._sight.look(jobs, time.monotonic()),
            limits=self._limits,
        )
        tried, self._tried = self._tried, set()
        until = time.monotonic() + ACTING_SECONDS
        for action in decide(scene):
            run = _run_of(action)
            if (what := (type(action), run)) in tried:
                continue
            if not await self._still_ours():
                return
            with concerning(run) if run is not None else contextlib.nullcontext():
                try:
                    await self._act(action)
                except (StaleRun, IllegalTransition, JobNotFound) as passed:
                    log.info("no longer true: %s", passed)  # the store moved on since the look
            tried.add(what)
            if time.monotonic() >= until:
                self._tried = tried
                return

    def _doubted(self, capacity: Capacity) -> Capacity:
        """Nodes that did not answer lately are marked: the cluster may take a while to find that they are gone."""
        now = time.monotonic()
        self._silent_nodes = {node: at for node, at in self._silent_nodes.items() if now - at < DOUBT_SECONDS}
        if not self._silent_nodes:
            return capacity
        nodes = tuple(replace(node, silent=node.id in self._silent_nodes) for node in capacity.nodes)
        return replace(capacity, nodes=nodes)

    async def _show(self, capacity: Capacity) -> None:
        """The cluster as it is, now and then: the API knows no more of it than this."""
        if (now := time.monotonic()) - self._shown_at < SHOW_SECONDS:
            return
        at = await self._store.clock()
        await self._store.cluster.show(ClusterRecord(at=at, cluster=self._cluster.identity, nodes=capacity.nodes))
        self._shown_at = now

    async def tidy(self) -> None:
        """Removes what deleted jobs left in the artefact store, however long that takes."""
        for job_id in await self._store.wishes.deleted():
            await asyncio.to_thread(self._artefacts.remove, job_directory(job_id))
            await self._store.wishes.artefacts_removed(job_id)

    async def _tidy_patiently(self) -> None:
        """Beside the ticks: an artefact store that hangs must not keep workers from being looked after."""
        while True:
            try:
                await self.tidy()
            except DbserveError as error:
                log.warning("what deleted jobs left is still there: %s", error)
            await asyncio.sleep(TIDY_SECONDS)

    async def _hold(self) -> bool:
        now = time.monotonic()
        if not await self._store.lease.hold(self._holder, ttl_seconds=LEASE_SECONDS):
            self._asked.clear()  # another acts, and may leave things half done
            self._given_up.clear()
            self._sight.forget()
            return False
        self._held_at = now
        return True

    async def _still_ours(self) -> bool:
        """Ray may take longer than the lease lasts; what was seen before another began to act is no ground to act."""
        return time.monotonic() - self._held_at < LEASE_SECONDS / 2 or await self._hold()

    def _acting(self) -> bool:
        """Whether the lease that was last held cannot have run out."""
        return time.monotonic() - self._held_at < LEASE_SECONDS

    async def _act(self, action: Action) -> None:
        match action:
            case Launch(run, resources, nodes, trace):
                with Trace(self._tracer, trace).span("launch", of_run(run)) as launch:
                    # The store first: a worker that exists unrecorded would be stopped, a record without one is asked
                    # for.
                    await self._store.apply(
                        Launched(run=run, cluster=self._cluster.identity, nodes=nodes, trace=launch.traceparent)
                    )
                    failpoint("launch.recorded")
                    log.info("launch %s", run)
                    await asyncio.to_thread(self._cluster.launch, run, resources, nodes)
                    failpoint("launch.asked")
                    self._asked.add(run)
            case Stop(run, task):
                log.info("stop %s", run)
                await asyncio.to_thread(self._cluster.stop, run, task=task)
                failpoint("stop.killed")
            case Bury(task, event):
                await self._bury(task, event)
            case Note(event):
                await self._store.apply(event)
            case Grow(in_use, waiting):
                await asyncio.to_thread(self._cluster.grow, in_use, waiting)

    async def _bury(self, task: Task, event: Crashed | Stopped) -> None:
        """Dead is not gone: the next attempt gets the resources only when the process does not hold them any more."""
        if isinstance(event, Crashed):
            event = await self._explained(event)
            log.warning("give up %s: %s", task.run, event.message)
        await asyncio.to_thread(self._cluster.stop, task.run, task=task)
        failpoint("giveup.stopped")
        presence = await asyncio.to_thread(self._cluster.presence, task)
        if presence is Presence.PRESENT:
            log.warning("%s: its process is still there", task.run)
        if presence in {Presence.PRESENT, Presence.ASKED}:
            return  # met again at the next tick
        if presence is Presence.UNKNOWN and not self._silent(task):
            return  # its node cannot be asked; by the end of its lease it has fenced itself
        if presence is Presence.UNKNOWN:
            self._silent_nodes |= dict.fromkeys(nodes_of(task)[:1], time.monotonic())
        with Trace(self._tracer, task.trace).span("give up", of_run(task.run)) as span:
            if isinstance(event, Crashed):
                span.fail(event.reason, event.message)
            await self._store.apply(event)

    async def _explained(self, event: Crashed) -> Crashed:
        """With the reason that was seen first: once killed for it, a worker that is looked for looks merely lost."""
        if event.run not in self._given_up and event.reason is Reason.WORKER_LOST:
            cause = await asyncio.to_thread(self._cluster.cause_of_death, event.run)
            if cause is None:
                return event
            event = event.model_copy(update={"reason": cause[0], "message": cause[1]})
        return self._given_up.setdefault(event.run, event)

    def _silent(self, task: Task) -> bool:
        return self._sight.silent_for(task.run, time.monotonic()) > self._limits.silence_seconds


def _run_of(action: Action) -> Run | None:
    """What is said while acting is about this run. None: about the whole cluster."""
    match action:
        case Launch() | Stop():
            return action.run
        case Bury():
            return action.task.run
        case Note():
            return action.event.run
        case Grow():
            return None


async def serve(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Reconciles until SIGTERM or SIGINT. Workers are left as they are: the next reconciler adopts them.

    `announce` gets the cluster's address once it is joined.

    Raises:
        StartupRefused: traces are asked for, and what they need is not installed; or the cluster can be reached from
            outside, and asks for no token.
        ClusterUnavailable, StoreUnavailable: at the start. Later ones are waited out, the cluster's for a while.
    """
    refuse_open_cluster(settings, os.environ)
    if settings.ray_auth_token_path is not None:  # ray reads these when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(settings.ray_auth_token_path)}
    from dbserve.cluster import RayCluster  # late: ray takes seconds to import, and is not needed to decide

    adopt("ray")

    tracer = open_tracer(settings.otlp_endpoint, "reconciler")
    store = JobStore.at(settings.redis)
    if upgraded := await store.schema.upgrade():
        log.info("upgraded %d jobs to this version's schema", upgraded)
    await store.ping()
    collect_less_often()
    # The first look at every job takes as long as joining the cluster does: both at once.
    joining = asyncio.create_task(asyncio.to_thread(RayCluster.connect, settings, await store.deployment()))
    await store.active_outlines()
    cluster = await joining
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    try:
        await asyncio.to_thread(cluster.refuse_open_doors)
        announce(settings.ray_address)
        log.info("the reconciler has begun", extra={"ray_address": settings.ray_address})
        artefacts = open_artefacts(settings.artifacts)
        deliverer = Deliverer(store, Poster(private_hosts=settings.webhook_private_hosts))
        reconciler = Reconciler(
            store,
            cluster,
            artefacts,
            limits=limits_of(settings),
            deliverer=deliverer,
            tracer=tracer,
            alive_file=settings.alive_file,
        )
        await reconciler.run(stopping)
    finally:
        tracer.flush()
        await store.aclose()
        cluster.disconnect()


def limits_of(settings: Settings) -> Limits:
    return Limits(
        jobs=settings.max_running_jobs,
        tasks=settings.max_running_blocks,
        silence_seconds=settings.lease_seconds + SILENCE_MARGIN_SECONDS,
    )


def run_reconciler(settings: Settings) -> None:
    """The program `dbserve reconcile`. Says on stdout when it has begun: of logs, the level may leave that out."""
    configure(settings)

    def announce(address: str) -> None:
        sys.stdout.write(f"reconciling on {address}\n")
        sys.stdout.flush()

    asyncio.run(serve(settings, announce=announce))

"""Two API replicas, reconcilers and workers on one real store, each doing one thing at a time, as a test says."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import pytest

from dbserve import reconciler as reconciling
from dbserve.artefacts import open_artefacts
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import TRAINED, JobPlan
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import (
    HELD,
    STOPPING,
    Checkpointed,
    CheckpointFailed,
    CheckpointRef,
    Crashed,
    Finished,
    JobStatus,
    LostCheckpoint,
    Progress,
    Reason,
    Restored,
    Run,
    Started,
    Task,
    TaskEvent,
)
from dbserve.contracts.work import Work
from dbserve.errors import DbserveError, IdempotencyMismatch, IllegalTransition, JobNotFound, StaleRun
from dbserve.reconciler import Reconciler
from dbserve.scheduling import Limits
from dbserve.store import JobStore, keys
from tests.chaos.durable_redis import DurableRedis
from tests.chaos.invariants import Witness
from tests.chaos.simulated import SILENCE_SECONDS, Clock, Process, SimulatedCluster
from tests.jobs import small_plan, small_spec
from workers.pulse import Order, order_of

T = TypeVar("T")

CPUS = 2.5  # room for two tasks, and not for half of a third
REPEATED = (Restored,)  # what is told again when it is written again
FLAVOURS: tuple[Mapping[str, Any], ...] = (
    {"retry": {"max_attempts": 2, "max_preemptions": 1, "backoff_seconds": 0.0}},
    {"checkpoint": {"every_steps": 5, "grace_seconds": 0.0}, "queue": {"priority": 1, "max_concurrent_blocks": 1}},
    {"deadlines": {"queue_seconds": 1e-3}},
    {"resources": {"cpus_per_block": 64.0}},  # which no node has
)


class Died(Exception):
    """The reconciler came to the failpoint where it was to die."""


@lru_cache
def _flavour(number: int) -> tuple[JobSpec, JobPlan]:
    spec = small_spec(**FLAVOURS[number])
    return spec, small_plan(spec)


class World:
    """What happened is checked by look(), which raises AssertionError."""

    applied: ClassVar[set[tuple[str, str]]] = set()  # (state, event kind) that any world has met

    def __init__(self, redis: DurableRedis, directory: Path) -> None:
        self.redis = redis
        self._runner = asyncio.Runner()
        self._patches = pytest.MonkeyPatch()
        self.clock = Clock()
        self._patches.setattr(reconciling, "time", self.clock)
        self._patches.setattr(reconciling, "failpoint", self._failpoint)
        self._dies_at: str | None = None
        self.cluster = SimulatedCluster(self.clock, cpus=CPUS)
        self._artefacts = open_artefacts(str(directory))
        redis.empty()
        self.stores = [JobStore.from_url(redis.url), JobStore.from_url(redis.url)]
        self._own = JobStore.from_url(redis.url)  # the workers' and the reconciler's
        self._witness = Witness(JobStore.from_url(redis.url), redis.client, self.cluster)
        self.accepted: set[str] = set()
        self.keys: dict[str, tuple[int, str]] = {}  # Idempotency-Key -> flavour, job
        self.reconciler = self._new_reconciler()
        self._retried: str | None = None
        self._lost: tuple[str, str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for store in (*self.stores, self._own, self._witness._store):  # pyright: ignore[reportPrivateUsage]
            self.wait(store.aclose())
        self._patches.undo()
        self._runner.close()

    def wait(self, work: Awaitable[T]) -> T:
        async def waited() -> T:
            return await work

        return self._runner.run(waited())

    # --- looking

    @property
    def jobs(self) -> list[str]:
        return sorted(self.accepted)

    @property
    def tasks(self) -> list[Task]:
        """As they stood at the last look."""
        known = self._witness.jobs
        return [task for job_id in self.jobs if job_id in known for task in known[job_id].tasks.values()]

    def outline(self, job_id: str) -> JobOutline:
        return self._witness.jobs[job_id]

    def status(self, job_id: str) -> JobStatus:
        return self.outline(job_id).status

    def look(self) -> None:
        self.wait(self._witness.look(self.accepted, retried=self._retried, lost=self._lost))
        self._retried = self._lost = None

    def bytes_of(self, job_id: str) -> list[object]:
        """Everything that the store holds of a job."""
        pipe: Any = self.redis.client.pipeline()  # pyright: ignore[reportUnknownMemberType]
        for key in (keys.job(job_id), keys.tasks(job_id), keys.progress(job_id)):
            pipe.hgetall(key)
        pipe.xlen(keys.events(job_id))
        return pipe.execute()

    # --- users

    def submit(self, replica: int, key: str | None, flavour: int) -> None:
        """Accepted once for a key, whichever replica is asked."""
        spec, plan = _flavour(flavour)
        known = self.keys.get(key) if key is not None else None
        making = self.stores[replica].create_job(spec, plan, idempotency_key=key, request_digest=str(flavour))
        try:
            made, created = self.wait(making)
        except IdempotencyMismatch:
            assert known is not None, "nobody used this key"
            assert known[0] != flavour, "it is the same request"
            return
        job_id = made.record.id
        if known is not None and known[1] in self.accepted:
            assert (known, created) == ((flavour, job_id), False), "one key, one job"
            return
        assert created
        assert job_id not in self.accepted
        self.accepted.add(job_id)
        if key is not None:
            self.keys[key] = flavour, job_id

    def wish(self, replica: int, job_id: str, wish: Callable[[JobStore], Awaitable[None]], *, refused: bool) -> bool:
        """Whether it was accepted, which is to be so unless `refused`; a refused one changes nothing."""
        before = self.bytes_of(job_id)
        try:
            self.wait(wish(self.stores[replica]))
        except DbserveError:
            if not refused:
                raise
            assert self.bytes_of(job_id) == before
            return False
        assert not refused, f"a {self.status(job_id)} job took it"
        return True

    def retry(self, replica: int, job_id: str, task: str | None, *, refused: bool) -> None:
        if self.wish(replica, job_id, lambda store: store.wishes.retry(job_id, task=task), refused=refused):
            self._retried = job_id

    def delete(self, replica: int, job_id: str, *, refused: bool) -> None:
        if self.wish(replica, job_id, lambda store: store.wishes.delete(job_id), refused=refused):
            self.accepted.discard(job_id)

    # --- the reconciler

    def tick(self, dies_at: str | None = None) -> None:
        """One look of the reconciler, which may die at a failpoint; then another takes over."""
        self._dies_at = dies_at
        before = self._states()
        try:
            self.wait(self._ticked(self.reconciler))
        except Died:
            self._dies_at = None
            self.take_over()
        self._dies_at = None
        self._note(before)

    def take_over(self) -> None:
        """A new reconciler, once the lease of the old one is over; what the old one still does is done in vain."""
        old, self.reconciler = self.reconciler, self._new_reconciler()
        self.clock.pass_by(reconciling.LEASE_SECONDS + 1.0)
        self.wait(self._own.lease.drop(old._holder))  # pyright: ignore[reportPrivateUsage]
        self.wait(self._ticked(self.reconciler))
        launches = list(self.cluster.launches)
        self.wait(self._ticked(old))
        assert self.cluster.launches == launches, "a reconciler without the lease has acted"

    def silence(self, quiet: Callable[[Process], bool]) -> None:
        """Time passes: who is not quiet tells of itself, and the reconciler looks on."""
        for _ in range(3):
            self.clock.pass_by(SILENCE_SECONDS / 2)
            for process in self.at_work():
                if not quiet(process):
                    self.beat(process)
            self.tick()

    def _new_reconciler(self) -> Reconciler:
        return Reconciler(self._own, self.cluster, self._artefacts, limits=Limits(silence_seconds=SILENCE_SECONDS))

    @staticmethod
    async def _ticked(one: Reconciler) -> None:
        if await one._hold():  # pyright: ignore[reportPrivateUsage]
            await one.tick()

    def _failpoint(self, name: str) -> None:
        if name == self._dies_at:
            raise Died(name)

    # --- workers

    def at_work(self) -> list[Process]:
        return [one for one in self.cluster.processes if one.alive and one.begun and not one.ended]

    def waiting(self) -> list[Process]:
        """Processes that have not begun."""
        return [one for one in self.cluster.processes if one.alive and not one.begun and not one.ended]

    def all_goes_well(self, *, steps: int, ends: bool) -> None:
        """What is due begins, goes on and saves, and may end: so that less usual things meet more than a beginning."""
        self.tick()
        for one in self.waiting():
            self.begin(one, twice=False)
        for one in self.at_work():
            if not one.restored:
                self.restore(one, 0, twice=False)
            if one.alive and one.trains:
                self.save(one, steps, twice=False)
            if one.alive and ends:
                self.finish(one, twice=False)
            elif one.alive:
                self.beat(one)

    def begin(self, one: Process, *, twice: bool) -> None:
        event = Started(run=one.run, node=one.node, node_id=one.node, pid=one.pid, born=float(one.pid))
        one.task = self.tell(one, event, twice=twice)
        one.begun = one.task is not None
        if one.task is not None and not one.task.checkpoints:
            one.restored = True

    def restore(self, one: Process, damaged: int, *, twice: bool) -> None:
        """Passes over the newest `damaged` checkpoints."""
        assert one.task is not None
        whole, lost = self._split(one.task.checkpoints, damaged)
        one.step = whole[-1].step if whole else 0
        told = tuple(LostCheckpoint(step=ref.step, path=ref.path, message="flipped") for ref in lost)
        self._lost = (one.run.job_id, one.run.task) if told else None
        if self.tell(one, Restored(run=one.run, step=one.step, lost=told), twice=twice) is None:
            self._lost = None
        one.restored = True

    def save(self, one: Process, steps: int, *, twice: bool) -> bool:
        """Trains on for so many steps and commits; whether it was taken."""
        assert one.task is not None
        one.step = min(one.step + steps, one.task.steps)
        path = f"jobs/{one.run.job_id}/{one.run.task}/attempt-{one.run.attempt}/step-{one.step}-{secrets.token_hex(4)}"
        ref = CheckpointRef(step=one.step, path=path, sha256="0" * 64, attempt=one.run.attempt, at=1.0)
        return self.tell(one, Checkpointed(run=one.run, checkpoint=ref, keep_last=2), twice=twice) is not None

    def fail_to_save(self, one: Process, *, twice: bool) -> None:
        self.tell(one, CheckpointFailed(run=one.run, step=one.step, message="disk full"), twice=twice)

    def finish(self, one: Process, *, twice: bool) -> None:
        assert one.task is not None
        if one.task.kind in TRAINED and one.step < one.task.steps and not self.save(one, one.task.steps, twice=twice):
            return
        one.ended = self.tell(one, Finished(run=one.run), twice=twice) is not None

    def crash(self, one: Process, reason: Reason, retry_after: float, *, lingers: bool, twice: bool) -> None:
        self.tell(one, Crashed(run=one.run, reason=reason, message="boom", retry_after=retry_after), twice=twice)
        one.ended = True
        one.alive = lingers

    def beat(self, one: Process) -> None:
        """A heartbeat, and what its answer orders."""
        before = self.bytes_of(one.run.job_id)
        one.beats += 1
        work = Work(steps=one.beats)
        progress = Progress(run=one.run, step=one.step, total=20, heartbeat_at=1.0, work=work)
        try:
            task = self.wait(self._own.record_progress(progress))
            order, counts = order_of(one.run, task), task.run == one.run and task.state in HELD | STOPPING
        except JobNotFound:
            order, counts = Order.GIVEN_UP, False
        if not counts:
            assert self.bytes_of(one.run.job_id) == before, f"{one.run} counts no more, and wrote"
            assert order is Order.GIVEN_UP
        if order is Order.GIVEN_UP:
            one.alive = False
            return
        one.heard_at = self.clock.monotonic()
        if order in {Order.SAVE_AND_STOP, Order.SAVE_AND_MOVE} and one.restored:
            assert one.task is not None
            if one.task.kind in TRAINED:
                self.save(one, 1, twice=False)
            if order is Order.SAVE_AND_MOVE:
                self.tell(one, Crashed(run=one.run, reason=Reason.PREEMPTED, message="moved"), twice=False)
            one.alive = False

    def tell(self, one: Process, event: TaskEvent, *, twice: bool) -> Task | None:
        """A worker's write. None: it was refused, and the worker leaves."""
        after = self.write(event, twice=twice)
        if after is None:
            one.alive = False
        else:
            one.heard_at = self.clock.monotonic()
        return after

    def write(self, event: TaskEvent, *, twice: bool = False) -> Task | None:
        """None: refused, and the store is as it was. A second time, after a lost answer, nothing more may change."""
        job_id = event.run.job_id
        stored = {task.run.task: task for task in self._stored(job_id)}.get(event.run.task)
        before = self.bytes_of(job_id)
        if stored is not None and stored.run == event.run:
            World.applied.add((stored.state.value, event.kind))
        try:
            after = self.wait(self._own.apply(event))
        except (StaleRun, IllegalTransition, JobNotFound):
            assert self.bytes_of(job_id) == before, f"{event.kind} of {event.run} was refused, and changed something"
            return None
        assert stored is not None
        assert stored.run == event.run, f"{event.kind} of {event.run} was taken; {stored.run} is current"
        if twice and not isinstance(event, REPEATED):
            self._again(event)
        return after

    def _again(self, event: TaskEvent) -> None:
        before = self.bytes_of(event.run.job_id)
        with suppress(StaleRun, IllegalTransition):
            self.wait(self._own.apply(event))
        assert self.bytes_of(event.run.job_id) == before, f"{event.kind} of {event.run}, written twice, is not once"

    def tell_stale_progress(self, run: Run) -> None:
        before = self.bytes_of(run.job_id)
        try:
            task = self.wait(self._own.record_progress(Progress(run=run, step=9999, total=20, heartbeat_at=1.0)))
            assert order_of(run, task) is Order.GIVEN_UP
        except JobNotFound:
            pass
        assert self.bytes_of(run.job_id) == before, f"{run} counts no more, and told of itself"

    # --- inside

    def _stored(self, job_id: str) -> list[Task]:
        raw: dict[str, str] = self.redis.client.hgetall(keys.tasks(job_id))  # pyright: ignore
        return [Task.model_validate_json(task) for task in raw.values()]

    def _states(self) -> dict[str, Task]:
        return {f"{task.run.job_id}/{task.run.task}": task for job in self.jobs for task in self._stored(job)}

    def _note(self, before: Mapping[str, Task]) -> None:
        """What the reconciler applied, by the events it left."""
        for job_id in self.jobs:
            since = self._witness.read_to.get(job_id)
            states = {
                name.partition("/")[2]: task.state.value for name, task in before.items() if name.startswith(job_id)
            }
            for event in self.wait(self._own.history.events(job_id, after=since)):
                if event.task is not None and event.task in states:
                    World.applied.add((states[event.task], event.kind))
                    states[event.task] = str(event.data["state"])

    @staticmethod
    def _split(
        refs: tuple[CheckpointRef, ...], damaged: int
    ) -> tuple[tuple[CheckpointRef, ...], tuple[CheckpointRef, ...]]:
        kept = max(0, len(refs) - damaged)
        return refs[:kept], refs[kept:]

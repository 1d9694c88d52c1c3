"""Actors of a task of several workers, without a cluster: what they say when another one is lost, or they fail."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from dbserve.contracts.status import Crashed, Reason, Started, Task
from dbserve.errors import StoreUnavailable, WorkerLost
from dbserve.store import JobStore
from tests.attempts import OneTask
from tests.training import planned, spec_of
from workers import actor, replicas
from workers.account import Account
from workers.actor import BlockWorker, WorkerConfig
from workers.lease import Lease
from workers.logs import LogBuffer
from workers.pulse import Pulse

SPEC = spec_of()
PLAN = planned(SPEC)
LOST = WorkerLost("block-0: worker 1 of 2 died")


class Away:
    """A store that takes events, and no heartbeats."""

    def __init__(self) -> None:
        self.one = OneTask(SPEC)

    async def apply(self, event: Any) -> Task:
        return self.one.task if isinstance(event, Started) else await self.one.apply(event)

    async def task(self, _job: str, _task: str) -> Task:
        return self.one.task

    async def record_progress(self, _progress: object) -> Task:
        raise StoreUnavailable("away")


class Told(Exception):
    """The training is not to begin."""


class Worker(BlockWorker):
    """It loses another worker as soon as it works, once it was told to save and stop, or was not."""

    def __init__(self, store: Away, directory: Path, *, preempted: bool) -> None:
        config = WorkerConfig(redis_url="redis://nobody:1/0", artifacts=str(directory), cache_dir=directory)
        super().__init__(store.one.task.run, config, 1.0, 0.0, termination=cast(Any, self))
        self._store = cast(JobStore, store)
        self._preempted = preempted
        self.stuck: Callable[[WorkerLost], None] | None = None

    def hand_over(self, _stop: Callable[[], None]) -> None:
        """No signal comes."""

    def _started(self, gpus: str | None) -> Started:
        return Started(run=self._run, node="n", pid=1)

    def _replicas(self, task: Task, pulse: Pulse, loop: object, stuck: Callable[[WorkerLost], None]) -> Any:
        self.stuck = stuck
        raise Told

    async def _work_at(self, task: Task, spec: object, plan: object, pulse: Pulse) -> None:
        if self._preempted:
            pulse.preempt()
        raise LOST


@pytest.fixture(autouse=True)
def by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "end_when_wedged", lambda *_: None)
    monkeypatch.setattr(actor, "gpus_held", lambda: None)


def crashes(store: Away) -> list[Crashed]:
    return [event for event in store.one.events if isinstance(event, Crashed)]


async def test_one_that_was_to_save_and_stop_and_loses_another_is_preempted_not_crashed(tmp_path: Path) -> None:
    store = Away()
    await Worker(store, tmp_path, preempted=True)._attempt(SPEC, PLAN)  # pyright: ignore[reportPrivateUsage]
    [crashed] = crashes(store)
    assert crashed.reason == Reason.PREEMPTED
    assert crashed.message == "SIGTERM: no last checkpoint (WorkerLost: block-0: worker 1 of 2 died)"
    with pytest.raises(WorkerLost):
        await Worker(store, tmp_path, preempted=False)._attempt(SPEC, PLAN)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(("preempted", "reason"), [(True, Reason.PREEMPTED), (False, Reason.WORKER_LOST)])
async def test_one_that_hangs_because_another_is_lost_says_so_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preempted: bool, reason: Reason
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    store = Away()
    worker = Worker(store, tmp_path, preempted=preempted)
    account = Account(store.one.task.run, steps=10, batch_size=32)
    pulse = Pulse(cast(JobStore, store), store.one.task.run, account=account, lease=Lease(15.0), logs=LogBuffer())
    with pytest.raises(Told):
        await worker._train(SPEC, PLAN, store.one.task, pulse)  # pyright: ignore[reportPrivateUsage]
    if preempted:
        pulse.preempt()
    assert worker.stuck is not None
    await asyncio.to_thread(worker.stuck, LOST)
    assert [crashed.reason for crashed in crashes(store)] == [reason]
    assert ended == [1]


def test_a_replica_that_fails_before_its_leader_hears_of_it_says_why_in_its_own_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replicas, "end_with_parent", lambda: None)
    kind: Any = cast(Any, replicas.ReplicaActor).__ray_metadata__.modified_class
    replica = object.__new__(kind)
    replica._call = "{}"
    replica._cache_dir = Path()

    def leave() -> None:
        raise SystemExit

    monkeypatch.setattr(replicas.ray.actor, "exit_actor", leave)
    with pytest.raises(SystemExit):
        replica.work()
    assert "ValidationError" in capfd.readouterr().err

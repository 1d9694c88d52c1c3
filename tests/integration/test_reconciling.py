"""The reconciler acts: a real store, and a cluster that only remembers what it was asked."""

import time
from pathlib import Path

from dbserve.contracts.cluster import Capacity, Resources
from dbserve.contracts.status import Launched, Run, TaskState
from dbserve.reconciler import Reconciler
from dbserve.store import JobStore, keys
from tests.integration.serving import start, submitted


class RememberingCluster:
    """Every worker asked for exists at once."""

    identity = "c"

    def __init__(self, *alive: Run) -> None:
        self.running = set(alive)
        self.launched: list[Run] = []
        self.stopped: list[Run] = []

    def capacity(self) -> Capacity:
        return Capacity((Resources(2.0, 0.0),))

    def alive(self) -> set[Run]:
        return set(self.running)

    def launch(self, run: Run, resources: Resources) -> None:
        self.launched.append(run)
        self.running.add(run)

    def stop(self, run: Run, *, node: str | None, pid: int | None) -> None:
        self.stopped.append(run)
        self.running.discard(run)

    def process_exists(self, *, node: str | None, pid: int | None) -> bool:
        return False


async def test_a_worker_whose_launcher_died_before_it_began_is_asked_again_and_once(
    store: JobStore, tmp_path: Path
) -> None:
    job_id = await submitted(store)
    begun = await start(store, job_id, "block-1")
    idle = Run(job_id=job_id, task="block-0", attempt=1)
    await store.apply(Launched(run=idle, at=time.time(), cluster="c"))
    cluster = RememberingCluster(idle, begun)
    reconciler = Reconciler(store, cluster, tmp_path)
    await reconciler.tick()
    await reconciler.tick()
    assert (cluster.launched, cluster.stopped) == ([idle], []), "the one that trains is left alone"
    assert (await store.task(job_id, "block-0")).run.attempt == 1


async def test_a_reconciler_that_looked_longer_than_its_lease_does_not_act(store: JobStore, tmp_path: Path) -> None:
    job_id = await submitted(store)
    assert await store.lease.hold("another, which took over", ttl_seconds=10)
    cluster = RememberingCluster()
    await Reconciler(store, cluster, tmp_path).tick()
    assert cluster.launched == []
    assert (await store.task(job_id, "block-0")).state is TaskState.PENDING


async def test_the_files_of_a_deleted_job_are_removed(store: JobStore, tmp_path: Path) -> None:
    job_id = await submitted(store)
    await store.wishes.cancel(job_id)
    await store.wishes.delete(job_id)
    left = tmp_path / "jobs" / job_id / "block-0"
    left.mkdir(parents=True)
    await Reconciler(store, RememberingCluster(), tmp_path).tick()
    assert not left.parent.exists()
    assert await store.wishes.deleted() == set()


async def test_what_a_worker_says_last_does_not_bring_a_deleted_job_back(store: JobStore) -> None:
    job_id = await submitted(store)
    await store.wishes.cancel(job_id)
    await store.wishes.delete(job_id)
    run = Run(job_id=job_id, task="block-0", attempt=1)
    await store.history.append_logs(run, [(1.0, "info", "stopped: the job is not known")])
    assert not await store._redis.exists(keys.logs(job_id))  # pyright: ignore[reportPrivateUsage]

"""The reconciler acts: a real store, and a cluster that only remembers what it was asked."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from dbserve.artefacts import open_artefacts
from dbserve.contracts.cluster import Capacity, Demand, Node, Presence, Resources
from dbserve.contracts.status import (
    Crashed,
    Launched,
    PauseRequested,
    Progress,
    Reason,
    Run,
    Started,
    Task,
    TaskState,
)
from dbserve.errors import ClusterUnavailable
from dbserve.reconciler import Reconciler
from dbserve.scheduling import Limits
from dbserve.store import JobStore, keys
from dbserve.store.history import Said
from tests.integration.serving import start, submitted


class RememberingCluster:
    """Every worker asked for exists at once; one that is stopped is gone, unless `presences` says otherwise."""

    identity = "c"

    def __init__(self, *alive: Run) -> None:
        self.running = set(alive)
        self.launched: list[Run] = []
        self.stopped: list[Run] = []
        self.presences: dict[Run, Presence] = {}
        self.causes: dict[Run, tuple[Reason, str]] = {}
        self.refuses = False

    def capacity(self) -> Capacity:
        return Capacity((Node("node", "node", Resources(2.0, 0.0)),))

    def alive(self) -> set[Run]:
        return set(self.running)

    def launch(self, run: Run, resources: Resources, nodes: Sequence[str]) -> None:
        if self.refuses:
            raise ClusterUnavailable("Ray does not answer")
        self.launched.append(run)
        self.running.add(run)

    def stop(self, run: Run, *, task: Task | None) -> None:
        self.stopped.append(run)
        self.running.discard(run)

    def presence(self, task: Task) -> Presence:
        return self.presences.get(task.run, Presence.GONE)

    def cause_of_death(self, run: Run) -> tuple[Reason, str] | None:
        return self.causes.get(run)

    def grow(self, in_use: Sequence[Demand], waiting: Sequence[Demand]) -> None:
        raise AssertionError("nobody said that it could grow")


def reconciler_of(store: JobStore, cluster: RememberingCluster, directory: Path, **limits: float) -> Reconciler:
    return Reconciler(store, cluster, open_artefacts(str(directory)), limits=Limits(**limits))  # pyright: ignore[reportArgumentType]


async def test_a_worker_whose_launcher_died_before_it_began_is_asked_again_and_once(
    store: JobStore, tmp_path: Path
) -> None:
    job_id = await submitted(store)
    begun = await start(store, job_id, "block-1")
    idle = Run(job_id=job_id, task="block-0", attempt=1)
    await store.apply(Launched(run=idle, cluster="c"))
    cluster = RememberingCluster(idle, begun)
    reconciler = reconciler_of(store, cluster, tmp_path)
    await reconciler.tick()
    await reconciler.tick()
    assert (cluster.launched, cluster.stopped) == ([idle], []), "the one that trains is left alone"
    assert (await store.task(job_id, "block-0")).run.attempt == 1


async def test_a_launch_that_the_cluster_refused_is_asked_again_as_the_same_attempt(
    store: JobStore, tmp_path: Path
) -> None:
    job_id = await submitted(store)
    cluster = RememberingCluster()
    reconciler = reconciler_of(store, cluster, tmp_path)
    cluster.refuses = True
    with pytest.raises(ClusterUnavailable):
        await reconciler.tick()
    cluster.refuses = False
    await reconciler.tick()
    assert {(run.task, run.attempt) for run in cluster.launched} == {("block-0", 1), ("block-1", 1)}
    assert (await store.task(job_id, "block-0")).crashes == 0


async def test_a_reconciler_that_looked_longer_than_its_lease_does_not_act(store: JobStore, tmp_path: Path) -> None:
    job_id = await submitted(store)
    assert await store.lease.hold("another, which took over", ttl_seconds=10)
    cluster = RememberingCluster()
    await reconciler_of(store, cluster, tmp_path).tick()
    assert cluster.launched == []
    assert (await store.task(job_id, "block-0")).state is TaskState.PENDING


async def test_two_reconcilers_at_once_launch_every_worker_once(
    store: JobStore, redis_url: str, tmp_path: Path
) -> None:
    other_store = JobStore.from_url(redis_url)
    for _ in range(3):
        await submitted(store)
    cluster = RememberingCluster()
    one, other = reconciler_of(store, cluster, tmp_path), reconciler_of(other_store, cluster, tmp_path)
    stopping = asyncio.Event()
    both = [asyncio.create_task(one.run(stopping)), asyncio.create_task(other.run(stopping))]
    async with asyncio.timeout(30):
        while len(cluster.launched) < 2:  # noqa: ASYNC110  the cluster knows nothing of asyncio
            await asyncio.sleep(0.02)
    stopping.set()
    await asyncio.gather(*both)
    await other_store.aclose()
    assert len(cluster.launched) == len(set(cluster.launched)) == 2, "what fits, and each once"
    assert cluster.stopped == []


@pytest.mark.parametrize("told", [Presence.PRESENT, Presence.ASKED])
async def test_resources_are_not_given_again_before_the_old_process_is_gone(
    store: JobStore, tmp_path: Path, told: Presence
) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    sibling = await start(store, job_id, "block-1")
    cluster = RememberingCluster(sibling)
    cluster.presences[run] = told
    reconciler = reconciler_of(store, cluster, tmp_path)
    for _ in range(3):
        await reconciler.tick()
    assert (await store.task(job_id, "block-0")).run == run, "dead is not gone"
    assert cluster.stopped == [run] * 3, "it is killed again and again"
    cluster.presences[run] = Presence.GONE
    await reconciler.tick()
    assert (await store.task(job_id, "block-0")).run == run.next()


async def test_who_is_killed_for_its_silence_is_written_down_as_silent_however_long_it_takes_to_go(
    store: JobStore, tmp_path: Path
) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await store.record_progress(Progress(run=run, step=1, total=20, heartbeat_at=1.0))
    cluster = RememberingCluster(run, await start(store, job_id, "block-1"))
    cluster.presences[run] = Presence.ASKED
    reconciler = reconciler_of(store, cluster, tmp_path, silence_seconds=-1.0)
    for _ in range(3):
        await reconciler.tick()
    assert run not in cluster.running, "killed, and looked for"
    cluster.presences[run] = Presence.GONE
    await reconciler.tick()
    task = await store.task(job_id, "block-0")
    assert (task.run, task.reason) == (run.next(), Reason.STALLED)


async def test_who_cannot_be_asked_for_is_given_up_only_after_its_lease(store: JobStore, tmp_path: Path) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    sibling = await start(store, job_id, "block-1")
    for each in (run, sibling):
        await store.record_progress(Progress(run=each, step=1, total=20, heartbeat_at=1.0))
    cluster = RememberingCluster(sibling)
    cluster.presences[run] = Presence.UNKNOWN
    patient = reconciler_of(store, cluster, tmp_path, silence_seconds=3600.0)
    for _ in range(3):
        await patient.tick()
    assert (await store.task(job_id, "block-0")).run == run, "out of sight is not out of work"
    await store.lease.drop(patient._holder)  # pyright: ignore[reportPrivateUsage]
    hasty = reconciler_of(store, cluster, tmp_path, silence_seconds=-1.0)
    await hasty.tick()
    assert (await store.task(job_id, "block-0")).run == run.next()


async def test_nothing_is_begun_on_a_node_that_did_not_answer_for_its_worker(store: JobStore, tmp_path: Path) -> None:
    """The cluster may take longer than a lease to find that it is gone."""
    job_id = await submitted(store)
    run = Run(job_id=job_id, task="block-0", attempt=1)
    await store.apply(Launched(run=run, cluster="c", nodes=("node",)))
    await store.apply(Started(run=run, node="host", node_id="node", pid=7))
    await store.record_progress(Progress(run=run, step=1, total=20, heartbeat_at=1.0))
    cluster = RememberingCluster(await start(store, job_id, "block-1"))
    cluster.presences[run] = Presence.UNKNOWN
    reconciler = reconciler_of(store, cluster, tmp_path, silence_seconds=-1.0)
    for _ in range(3):
        await reconciler.tick()
    assert (await store.task(job_id, "block-0")).run == run.next(), "given up"
    assert cluster.launched == [], "and not begun again where nobody answers"


async def test_what_the_cluster_knows_of_a_death_is_the_reason(store: JobStore, tmp_path: Path) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    cluster = RememberingCluster(await start(store, job_id, "block-1"))
    cluster.causes[run] = Reason.HOST_OOM, "killed by the memory monitor"
    await reconciler_of(store, cluster, tmp_path).tick()
    task = await store.task(job_id, "block-0")
    assert (task.restarts, task.split) == ({Reason.HOST_OOM: 1}, 2)


async def test_a_pause_is_confirmed_when_the_worker_is_gone_and_a_resume_starts_the_next(
    store: JobStore, tmp_path: Path
) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    sibling = await start(store, job_id, "block-1")
    cluster = RememberingCluster(run, sibling)
    reconciler = reconciler_of(store, cluster, tmp_path)
    await store.wishes.pause(job_id)
    await reconciler.tick()
    states = {name: task.state for name, task in (await store.outline(job_id)).tasks.items()}
    assert states["block-0"] is states["block-1"] is TaskState.PAUSING
    assert cluster.stopped == [], "they have their grace"
    cluster.running.clear()  # they saved, and left
    await reconciler.tick()
    assert (await store.task(job_id, "block-0")).state is TaskState.PAUSED
    await store.wishes.resume(job_id)
    await reconciler.tick()
    assert set(cluster.launched) == {run.next(), sibling.next()}


async def test_a_worker_that_does_not_stop_in_its_grace_is_killed(store: JobStore, tmp_path: Path) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await store.wishes.pause(job_id)
    await store.apply(PauseRequested(run=run, stop_by=1.0))
    cluster = RememberingCluster(run)
    reconciler = reconciler_of(store, cluster, tmp_path)
    await reconciler.tick()
    assert cluster.stopped == [run]
    await reconciler.tick()
    assert (await store.task(job_id, "block-0")).state is TaskState.PAUSED


async def test_an_attempt_that_crashed_waits_its_backoff_by_the_stores_clock(store: JobStore, tmp_path: Path) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    sibling = await start(store, job_id, "block-1")
    await store.apply(Crashed(run=run, at=9e9, reason=Reason.WORKER_ERROR, message="boom", retry_after=0.0))
    cluster = RememberingCluster(sibling)
    await reconciler_of(store, cluster, tmp_path).tick()
    assert cluster.launched == [run.next()], "a worker whose clock is years ahead delays nothing"


async def test_a_worker_that_said_it_began_after_it_was_given_up_is_refused_and_stopped(
    store: JobStore, tmp_path: Path
) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    cluster = RememberingCluster(await start(store, job_id, "block-1"))
    reconciler = reconciler_of(store, cluster, tmp_path)
    await reconciler.tick()
    cluster.running.add(run)  # it was only out of sight
    await reconciler.tick()
    assert cluster.stopped.count(run) == 2
    assert run not in cluster.running
    started = Started(run=run, node="n", pid=7)
    with pytest.raises(Exception, match="given up"):
        await store.apply(started)


async def test_the_files_of_a_deleted_job_are_removed(store: JobStore, tmp_path: Path) -> None:
    job_id = await submitted(store)
    await store.wishes.cancel(job_id)
    await store.wishes.delete(job_id)
    left = tmp_path / "jobs" / job_id / "block-0"
    left.mkdir(parents=True)
    await reconciler_of(store, RememberingCluster(), tmp_path).tidy()
    assert not left.parent.exists()
    assert await store.wishes.deleted() == set()


async def test_what_a_worker_says_last_does_not_bring_a_deleted_job_back(store: JobStore) -> None:
    job_id = await submitted(store)
    await store.wishes.cancel(job_id)
    await store.wishes.delete(job_id)
    run = Run(job_id=job_id, task="block-0", attempt=1)
    await store.history.append_logs(run, [Said(1.0, "info", "stopped: the job is not known")])
    assert not await store._redis.exists(keys.logs(job_id))  # pyright: ignore[reportPrivateUsage]

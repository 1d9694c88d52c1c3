"""A real process is killed between any two durable effects; whoever comes next makes good of it, and nothing is lost.

Each test sees that the fault did happen: the process died of SIGKILL, and the failpoint's marker is there.
"""

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from dbserve.artefacts import Artefacts, model_directory, open_artefacts
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import Crashed, JobStatus, Launched, Reason, Run, TaskState
from dbserve.datasets import inspect
from dbserve.failpoints import FAILPOINTS, VARIABLE
from dbserve.planner import load_card, plan_job
from dbserve.store import JobStore, keys
from tests.chaos import rayless
from tests.chaos.history import History, JobHistory, Submission, check
from tests.chaos.manifests import found_checkpoints
from tests.chaos.process_cluster import ProcessCluster, all_ended
from tests.chaos.processes import cluster_of
from tests.integration.serving import submitted
from tests.jobs import small_spec
from tests.object_storage import ObjectStorage, object_storage
from tests.waiting import eventually

OF_THE_API = ["submit.planned", "submit.stored"]
OF_THE_RECONCILER = ["launch.recorded", "launch.asked", "giveup.stopped", "stop.killed"]
OF_A_WORKER = [
    ("actor.started", "directory"),
    ("finish.pointer", "directory"),
    ("assembly.files", "directory"),
    ("evaluation.report", "directory"),
]
IN_A_SAVE = [  # of which test_killed_saves looks at each step on its own
    ("checkpoint.staged", "directory"),
    ("checkpoint.content", "bucket"),
    ("checkpoint.manifest", "directory"),
    ("checkpoint.pointer", "directory"),
]
IN_A_DELIVERY = ["webhook.claimed", "webhook.answered"]  # at which test_webhooks looks
SECONDS = 60.0  # for whatever a test waits for


def test_every_failpoint_has_its_test() -> None:
    of_workers = [name for name, _ in OF_A_WORKER + IN_A_SAVE]
    assert sorted([*OF_THE_API, *OF_THE_RECONCILER, *of_workers, *IN_A_DELIVERY]) == sorted(FAILPOINTS)


async def well_told(store: JobStore, job_id: str, artefacts: Artefacts | None = None) -> JobOutline:
    """The job as it ended, once its history is found to be without a fault."""
    outline = await store.outline(job_id)
    found = found_checkpoints(artefacts, job_id) if artefacts is not None else []
    job = JobHistory(outline, await store.history.events(job_id))
    assert check(History([Submission(None, "b", job_id)], {job_id: job}, [], found)) == []
    return outline


# --- the API


@contextlib.contextmanager
def api(redis_url: str, directory: Path, failpoints: str = "") -> Generator[tuple[subprocess.Popen[str], str]]:
    """A process that serves the API, and its address."""
    command = [sys.executable, "-m", "dbserve", "api", "--port", "0", "--redis-url", redis_url]
    environment = {VARIABLE: failpoints, "DBSERVE_CACHE_DIR": str(directory / "cache")}
    environment["DBSERVE_ARTIFACTS"] = str(directory / "artefacts")
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.mark.parametrize(("name", "jobs_stored"), [("submit.planned", 0), ("submit.stored", 1)])
async def test_a_submission_that_was_never_answered_is_there_or_not_at_all_and_the_repeat_makes_one_job(
    name: str, jobs_stored: int, store: JobStore, redis_url: str, tmp_path: Path
) -> None:
    body = small_spec().model_dump(mode="json", exclude_unset=True)
    headers, marker = {"Idempotency-Key": "k"}, tmp_path / "marker"
    with api(redis_url, tmp_path, f"{name}={marker}") as (process, url):
        async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:
            with pytest.raises(httpx.TransportError):
                await client.post("/v1/jobs", json=body, headers=headers)
        assert await asyncio.to_thread(process.wait, SECONDS) == -signal.SIGKILL
        assert await asyncio.to_thread(marker.exists)
    before, _ = await store.list_jobs(limit=10)
    assert len(before) == jobs_stored
    with api(redis_url, tmp_path) as (_, url):
        async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:
            again = await client.post("/v1/jobs", json=body, headers=headers)
    (stored,), _ = await store.list_jobs(limit=10)
    assert (again.status_code, again.json()["id"]) == (202, stored.record.id)
    assert ("Idempotent-Replayed" in again.headers) is bool(before)


# --- the reconciler


@dataclass
class Reconciling:
    """Reconcilers, one after the other, on one store and one cluster of idle workers."""

    store: JobStore
    redis_url: str
    directory: Path
    cluster: ProcessCluster

    @property
    def hold(self) -> Path:
        """While it is there, workers go on."""
        return self.directory / "hold"

    @contextlib.asynccontextmanager
    async def at_work(self, failpoints: str = "") -> AsyncGenerator[asyncio.subprocess.Process]:
        """A new one, which need not wait for the lease of the one before."""
        redis = self.store._redis  # pyright: ignore[reportPrivateUsage]
        await redis.delete(keys.LEASE)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.processes", "reconcile", self.redis_url, str(self.directory)),
            env=os.environ | {VARIABLE: failpoints},
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def dies_at(self, name: str) -> None:
        marker = self.directory / "marker"
        async with self.at_work(f"{name}={marker}") as process:
            assert await asyncio.wait_for(process.wait(), SECONDS) == -signal.SIGKILL
        assert marker.exists()

    async def ended(self, job_id: str) -> bool:
        return (await self.store.outline(job_id)).record.finished_at is not None


@pytest.fixture
async def reconciling(store: JobStore, redis_url: str, tmp_path: Path) -> AsyncIterator[Reconciling]:
    made = Reconciling(store, redis_url, tmp_path, cluster_of(redis_url, tmp_path))
    made.hold.touch()
    with all_ended(made.cluster):
        yield made


@pytest.mark.parametrize("name", ["launch.recorded", "launch.asked"])
async def test_a_launch_that_a_reconciler_died_over_happens_once(reconciling: Reconciling, name: str) -> None:
    store = reconciling.store
    job_id = await submitted(store)
    await reconciling.dies_at(name)
    launched = {run: reconciling.cluster.pid(run) for run in reconciling.cluster.alive()}
    assert len(launched) == (0 if name == "launch.recorded" else 1)
    async with reconciling.at_work():
        await eventually(lambda: len(reconciling.cluster.alive()) == 2, seconds=SECONDS, what="both blocks work")
        for run, pid in launched.items():
            assert reconciling.cluster.pid(run) == pid, "the worker is found again"
        reconciling.hold.unlink()
        await eventually(lambda: reconciling.ended(job_id), seconds=SECONDS, what="the job ends")
        await eventually(lambda: not reconciling.cluster.alive(), seconds=SECONDS, what="nothing is left running")
    outline = await well_told(store, job_id)
    assert outline.status is JobStatus.SUCCEEDED
    assert {task.run.attempt for task in outline.tasks.values()} == {1}, "no attempt was lost over it"


async def test_a_worker_that_a_dying_reconciler_gave_up_is_replaced_and_counted_once(reconciling: Reconciling) -> None:
    store = reconciling.store
    job_id = await submitted(store)
    first = Run(job_id=job_id, task="block-0", attempt=1)

    async def running() -> bool:
        return (await store.task(job_id, "block-0")).state is TaskState.RUNNING

    async with reconciling.at_work():
        await eventually(running, seconds=SECONDS, what="the block runs")
    reconciling.cluster.stop(first, task=None)
    await eventually(lambda: first not in reconciling.cluster.alive(), seconds=SECONDS, what="its worker is gone")
    await reconciling.dies_at("giveup.stopped")
    assert (await store.task(job_id, "block-0")).run == first, "it is not told yet"
    reconciling.hold.unlink()
    async with reconciling.at_work():
        await eventually(lambda: reconciling.ended(job_id), seconds=SECONDS, what="the job ends")
    outline = await well_told(store, job_id)
    assert outline.status is JobStatus.SUCCEEDED
    block = outline.tasks["block-0"]
    assert (block.run.attempt, block.crashes, block.restarts) == (2, 1, {Reason.WORKER_LOST: 1})


async def test_a_cancel_whose_reconciler_died_once_the_worker_was_killed_ends_once(reconciling: Reconciling) -> None:
    store = reconciling.store
    job_id = await submitted(store)

    async def running() -> bool:
        tasks = (await store.outline(job_id)).tasks
        return tasks["block-0"].state is tasks["block-1"].state is TaskState.RUNNING

    async with reconciling.at_work():
        await eventually(running, seconds=SECONDS, what="both blocks run")
    await store.wishes.cancel(job_id, force=True)
    await reconciling.dies_at("stop.killed")
    assert (await store.outline(job_id)).status is JobStatus.CANCELLING
    async with reconciling.at_work():
        await eventually(lambda: reconciling.ended(job_id), seconds=SECONDS, what="the job ends")
        await eventually(lambda: not reconciling.cluster.alive(), seconds=SECONDS, what="nothing is left running")
    assert (await well_told(store, job_id)).status is JobStatus.CANCELLED


# --- a worker


@dataclass
class Training:
    """A tiny job on real digits, whose attempts are processes."""

    store: JobStore
    redis_url: str
    location: str
    cache_dir: Path
    failpoints: str = ""
    killed: int = 0

    async def ended_job(self) -> str:
        """Submitted, and every task brought to its end, in as many attempts as it takes."""
        spec = digits_spec()
        plan = digits_plan(spec, self.cache_dir)
        made, _ = await self.store.create_job(spec, plan, idempotency_key=None, request_digest="d")
        for name in made.tasks:
            while (await self.store.task(made.record.id, name)).state is not TaskState.SUCCEEDED:
                await self.attempt((await self.store.task(made.record.id, name)).run)
        return made.record.id

    async def attempt(self, run: Run) -> None:
        await self.store.apply(Launched(run=run, cluster="c"))
        worker = rayless.start(run, self.redis_url, self.location, self.cache_dir, failpoints=self.failpoints)
        await asyncio.to_thread(worker.join, SECONDS)
        assert worker.exitcode in {0, -signal.SIGKILL}, f"{run} ended with {worker.exitcode}"
        if worker.exitcode == 0:
            assert (await self.store.task(run.job_id, run.task)).state is TaskState.SUCCEEDED
        else:
            self.killed += 1
            await self.store.apply(Crashed(run=run, reason=Reason.WORKER_LOST, message="killed"))


def digits_spec() -> JobSpec:
    return small_spec(training={"steps": 6, "batch_size": 32}, checkpoint={"every_steps": 2, "keep_last": 2})


def digits_plan(spec: JobSpec, cache_dir: Path) -> JobPlan:
    card = load_card(spec.architecture.kind)
    return plan_job(spec, card, inspect(spec.data, modality=card.modality, cache_dir=cache_dir))


def answers(artefacts: Artefacts, outline: JobOutline) -> dict[str, str]:
    """The digest of every trained weight, and of the model's own."""
    found: dict[str, str] = {}
    places = {name: task.checkpoints[-1].path for name, task in outline.tasks.items() if task.checkpoints}
    for name, place in (places | {"model": str(model_directory(outline.record.id))}).items():
        with artefacts.fetch(place) as directory:
            for path in sorted(directory.glob("*.safetensors")):
                # Its metadata name the run; the tensors lie behind them.
                data = path.read_bytes()
                tensors = data[8 + int.from_bytes(data[:8], "little") :]
                found[f"{name}/{path.name}"] = hashlib.sha256(tensors).hexdigest()
    return found


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def bucket() -> Iterator[ObjectStorage]:
    with object_storage() as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """What a job answers that nothing happened to; the first test that needs it finds out."""
    return {}


@pytest.mark.parametrize(
    ("name", "kind"), [*OF_A_WORKER, *(pytest.param(*one, marks=pytest.mark.chaos) for one in IN_A_SAVE)]
)
async def test_a_worker_killed_there_is_followed_by_one_that_ends_as_if_nothing_had_happened(
    store: JobStore,
    redis_url: str,
    tmp_path: Path,
    cache_dir: Path,
    undisturbed: dict[str, str],
    request: pytest.FixtureRequest,
    name: str,
    kind: str,
) -> None:
    if not undisturbed:
        calm = Training(store, redis_url, str(tmp_path / "calm"), cache_dir)
        undisturbed |= answers(open_artefacts(calm.location), await store.outline(await calm.ended_job()))
    assert {"block-0/weights.safetensors", "block-1/weights.safetensors"} <= undisturbed.keys()
    directory = tmp_path / "artefacts"
    location = str(directory) if kind == "directory" else request.getfixturevalue("bucket").location("killed")
    marker = tmp_path / "marker"
    training = Training(store, redis_url, location, cache_dir, f"{name}={marker}")
    job_id = await training.ended_job()
    assert (training.killed, marker.exists()) == (1, True)

    artefacts = open_artefacts(location)
    outline = await well_told(store, job_id, artefacts)
    assert outline.status is JobStatus.SUCCEEDED
    assert sum(task.crashes for task in outline.tasks.values()) == 1
    assert answers(artefacts, outline) == undisturbed
    assert artefacts.names("models") == (job_id,)
    await store.results.report(job_id)
    await store.results.model(job_id)

"""One trainer a block, whatever is stopped, killed or asked to go: hangs, SIGTERM, a dead raylet, Ctrl-C."""

import asyncio
import os
import signal
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dbserve.client import Client
from dbserve.contracts.job import JobSpec, RetrySpec
from dbserve.contracts.status import Crashed, JobStatus, Reason, Run, TaskState
from dbserve.settings import Settings
from dbserve.store import JobStore
from tests.acceptance.conftest import Service
from tests.acceptance.digests import digests
from tests.acceptance.jobs import long_job, patient_job
from tests.acceptance.test_wishes import trains
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(900), pytest.mark.chaos]
LEASE_SECONDS = float(Settings.model_fields["lease_seconds"].default)


def pid_of(client: Client, job_id: str, block: int = 0) -> int:
    pid = client.blocks(job_id)[block].pid
    assert pid is not None
    return pid


def ended(processes: Sequence[psutil.Process]) -> bool:
    return not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)


def resumed_step(client: Client, job_id: str, task: str, attempt: int) -> int:
    """Where the attempt's training went on. Its log comes with the heartbeat after the one that tells a step."""

    def said() -> list[str]:
        lines = [line.message for line in client.logs(job_id, task=task, attempt=attempt, tail=10_000)]
        return [line for line in lines if "resumed from the checkpoint of step" in line]

    wait_for(lambda: len(said()) == 1, seconds=30, what=f"{task} says where attempt {attempt} goes on")
    return int(said()[0].split("of step ")[1].split()[0])


def without_spare_attempts(spec: JobSpec) -> JobSpec:
    return spec.model_copy(update={"retry": RetrySpec(max_attempts=1, backoff_seconds=0.0)})


@contextmanager
def stopped(*processes: psutil.Process) -> Generator[None]:
    """SIGSTOP, and SIGCONT afterwards to those that are still there."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        for process in processes:
            wait_for(lambda p=process: p.status() == psutil.STATUS_STOPPED, seconds=10, what=f"{process} is stopped")
        yield
    finally:
        for process in processes:
            if not ended([process]):
                process.send_signal(signal.SIGCONT)


def test_a_trainer_that_hangs_is_replaced_and_the_weights_are_those_of_an_undisturbed_run(
    client: Client, service: Service, patient_digests: dict[str, str]
) -> None:
    job = client.submit(patient_job("hung"))
    wait_for(trains(client, job.id), seconds=120, what="block 0 trains")
    hung = psutil.Process(pid_of(client, job.id))
    with stopped(hung):
        wait_for(lambda: client.blocks(job.id)[0].attempt == 2, seconds=120, what="it is given up")
        assert ended([hung]), "its resources are not given away while it holds them"
    assert client.wait(job.id, timeout=400).status is JobStatus.SUCCEEDED
    restarts = client.blocks(job.id)[0].restarts
    assert restarts in ({Reason.STALLED: 1}, {Reason.WORKER_LOST: 1}), "the fault did happen"
    assert digests(service.data_dir / "artifacts", job.id) == patient_digests


def test_of_trainers_stopped_beyond_their_lease_the_one_given_up_ends_by_itself_and_the_other_goes_on(
    client: Client, service: Service, patient_digests: dict[str, str]
) -> None:
    """The reconciler is stopped too: so nobody can kill the trainers, as on a node that is cut off and comes back."""
    job = client.submit(patient_job("fenced"))
    for block in (0, 1):
        wait_for(trains(client, job.id, block), seconds=120, what=f"block {block} trains")
    reconciler = service.child("reconcile")
    given_up, kept = (psutil.Process(pid_of(client, job.id, block)) for block in (0, 1))
    with stopped(reconciler):
        with stopped(given_up, kept):
            time.sleep(LEASE_SECONDS + 1.0)  # the fault itself
            give_up(service, Run(job_id=job.id, task="block-0", attempt=1))
        wait_for(lambda: ended([given_up]), seconds=30, what="the trainer that was given up ends")
        step = client.blocks(job.id)[1].step
        wait_for(
            lambda: client.blocks(job.id)[1].step > step or client.blocks(job.id)[1].status is TaskState.SUCCEEDED,
            seconds=60,
            what="the other goes on",
        )
    assert client.wait(job.id, timeout=400).status is JobStatus.SUCCEEDED
    assert [block.attempt for block in client.blocks(job.id)] == [2, 1]
    lines = [line.message for line in client.logs(job.id, task="block-0", attempt=1, tail=10_000)]
    assert any("was given up; it stops at step" in line for line in lines), "it was told, and not killed"
    events = [event for event in client.events(job.id) if event.task == "block-0"]
    crash = next(place for place, event in enumerate(events) if event.kind == "crashed")
    assert all(event.attempt == 2 for event in events[crash + 1 :]), "nothing of the first attempt was taken after it"
    assert digests(service.data_dir / "artifacts", job.id) == patient_digests


def give_up(service: Service, run: Run) -> None:
    """What a reconciler writes that cannot reach the worker."""

    async def write() -> None:
        store = JobStore.from_url(f"unix://{service.data_dir / 'redis' / 'redis.sock'}")
        try:
            await store.apply(Crashed(run=run, reason=Reason.WORKER_LOST, message="its node is cut off"))
        finally:
            await store.aclose()

    asyncio.run(write())


def test_a_sigterm_costs_no_attempt_and_the_next_goes_on_from_that_very_step(
    client: Client, service: Service, patient_digests: dict[str, str]
) -> None:
    job = client.submit(without_spare_attempts(patient_job("preempted")))
    wait_for(lambda: client.blocks(job.id)[1].status is TaskState.RUNNING, seconds=120, what="block 1 begins")
    os.kill(pid_of(client, job.id, 1), signal.SIGTERM)  # before its first step, if that takes as long as it does
    wait_for(trains(client, job.id), seconds=120, what="block 0 trains")
    os.kill(pid_of(client, job.id), signal.SIGTERM)
    assert client.wait(job.id, timeout=400).status is JobStatus.SUCCEEDED
    blocks = client.blocks(job.id)
    assert [block.restarts for block in blocks] == [{Reason.PREEMPTED: 1}] * 2, "the fault did happen, twice"
    step = resumed_step(client, job.id, "block-0", 2)
    assert step > 10, "saved at the SIGTERM"
    assert step % patient_job().checkpoint.every_steps != 0, "and not before"
    assert digests(service.data_dir / "artifacts", job.id) == patient_digests


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_ray_killed_while_blocks_train_comes_back_and_the_job_goes_on(
    tmp_path: Path, patient_digests: dict[str, str], victim: str
) -> None:
    service = Service(tmp_path / "data")
    try:
        with service.client() as client:
            job = client.submit(without_spare_attempts(patient_job(f"{victim}-killed")))
            wait_for(trains(client, job.id), seconds=120, what="block 0 trains")
            [killed] = [each for each in service.descendants() if each.name() == victim]
            old = [each for each in service.descendants() if each.name().startswith(("ray::", "raylet", "gcs_server"))]
            assert len(old) > 3
            killed.kill()
            wait_for(lambda: ended(old), seconds=30, what="nothing is left of the old cluster")
            assert client.wait(job.id, timeout=400).status is JobStatus.SUCCEEDED
            assert client.blocks(job.id)[0].restarts == {Reason.PREEMPTED: 1}, "the fault did happen, and costs nothing"
            assert digests(service.data_dir / "artifacts", job.id) == patient_digests
            left = service.descendants()
    finally:
        assert service.stop() == 0, service.said()
    assert ended(left), "no process is left behind"


def test_ctrl_c_saves_where_every_block_is_and_leaves_no_process(tmp_path: Path) -> None:
    first = Service(tmp_path / "data")
    with first.client() as client:
        job = client.submit(without_spare_attempts(long_job(name="stopped", checkpoint={"every_steps": 1_000_000})))
        for block in (0, 1):
            wait_for(trains(client, job.id, block), seconds=120, what=f"block {block} trains")
        reached = [block.step for block in client.blocks(job.id)]
        assert client.checkpoints(job.id) == ()
        processes = first.descendants()
    assert first.stop(signal.SIGINT) == 0, first.said()
    assert "stopping: 2 workers save their last checkpoints" in first.said()
    assert ended(processes), "no process is left behind"

    second = Service(tmp_path / "data")
    try:
        with second.client() as client:
            for block in (0, 1):
                wait_for(trains(client, job.id, block, attempt=2), seconds=120, what=f"block {block} trains again")
                assert resumed_step(client, job.id, f"block-{block}", 2) >= reached[block]
            assert [block.restarts for block in client.blocks(job.id)] == [{Reason.PREEMPTED: 1}] * 2
            client.cancel(job.id, force=True)
            client.wait(job.id, timeout=60)
    finally:
        assert second.stop() == 0

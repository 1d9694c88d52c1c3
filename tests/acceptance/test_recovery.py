"""What breaks, and what goes on: workers, the API, the whole service."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dbserve.client import Client
from dbserve.contracts.status import JobStatus, Reason, TaskState
from tests.acceptance.conftest import Service
from tests.acceptance.jobs import digits_job, long_job
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(600)  # a shared machine can be three times slower than itself


def block_weights(service: Service, job_id: str) -> list[dict[str, torch.Tensor]]:
    directory = service.data_dir / "artifacts" / "models" / job_id
    return [load_file(path) for path in sorted(directory.glob("block-*.safetensors"))]


def test_a_worker_killed_while_training_resumes_to_bitwise_the_same_weights(client: Client, service: Service) -> None:
    training = {"steps": 600, "batch_size": 64, "lr": 3e-3}
    options = {"depth": 2, "width": 32, "heads": 2, "patch": 2, "dropout": 0.1}
    spec = digits_job(
        name="killed",
        architecture={"kind": "vit", "options": options},
        data={"uri": "builtin:digits", "augment": {"crop_padding": 1}},
        training=training,
        checkpoint={"every_steps": 37},
    )
    undisturbed = client.submit(spec)
    assert client.wait(undisturbed.id, timeout=400).status is JobStatus.SUCCEEDED
    killed = client.submit(spec)
    wait_for(
        lambda: (block := client.blocks(killed.id)[0]).last_checkpoint is not None and block.pid is not None,
        seconds=120,
        what="block 0 has a checkpoint and still trains",
    )
    pid = client.blocks(killed.id)[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert client.wait(killed.id, timeout=400).status is JobStatus.SUCCEEDED
    block = client.blocks(killed.id)[0]
    assert (block.attempt, block.restarts) == (2, {Reason.WORKER_LOST: 1}), "the fault did happen"
    first, again = ([line.message for line in client.logs(killed.id, block=0, attempt=n)] for n in (1, 2))
    assert first[0] == "attempt 1 of block-0 begins"
    assert all("is still being written" in line for line in first[1:]), "a worker that is killed has no last words"
    assert any("resumed from the checkpoint" in line for line in again)
    for ours, theirs in zip(block_weights(service, undisturbed.id), block_weights(service, killed.id), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_api_that_is_killed_comes_back_and_training_does_not_notice(client: Client, service: Service) -> None:
    job = client.submit(long_job(name="api-killed"))
    wait_for(lambda: client.blocks(job.id)[0].step > 0, seconds=120, what="block 0 trains")
    before = client.blocks(job.id)[0]
    service.child("api").kill()
    wait_for(lambda: _answers(service), seconds=30, what="the API is back")
    wait_for(lambda: client.blocks(job.id)[0].step > before.step, seconds=30, what="training goes on")
    assert client.blocks(job.id)[0].attempt == 1
    client.cancel(job.id)
    client.wait(job.id, timeout=60)


def test_a_reconciler_that_is_killed_adopts_the_workers_it_finds(client: Client, service: Service) -> None:
    job = client.submit(long_job(name="reconciler-killed"))
    wait_for(
        lambda: all(block.status is TaskState.RUNNING and block.step > 0 for block in client.blocks(job.id)),
        seconds=120,
        what="both blocks train",
    )
    pids = [block.pid for block in client.blocks(job.id)]
    service.child("reconcile").kill()
    wait_for(lambda: "reconciler ended" in service.said(), seconds=20, what="its end is noticed")
    wait_for(lambda: _reconciles_again(service), seconds=60, what="a new one")
    time.sleep(3.0)  # several ticks of the new reconciler: it must do nothing
    assert [(block.pid, block.attempt) for block in client.blocks(job.id)] == [(pid, 1) for pid in pids]
    client.cancel(job.id)
    assert client.wait(job.id, timeout=60).status is JobStatus.CANCELLED


def _answers(service: Service) -> bool:
    import httpx

    try:
        return httpx.get(f"{service.url}/readyz", timeout=1.0).status_code == 200
    except httpx.HTTPError:
        return False


def _reconciles_again(service: Service) -> bool:
    log = (service.data_dir / "logs" / "reconciler.log").read_text(errors="replace")
    return log.count("reconciling on") >= 2


def test_stopped_and_started_again_on_its_data_the_service_goes_on_with_its_jobs(tmp_path: Path) -> None:
    first = Service(tmp_path / "data")
    with first.client() as client:
        training = {"steps": 1500, "batch_size": 64, "lr": 3e-3}
        every = {"every_steps": 100}
        job = client.submit(digits_job(name="survivor", training=training, checkpoint=every, retry={"max_attempts": 1}))
        wait_for(
            lambda: client.blocks(job.id)[0].last_checkpoint is not None, seconds=120, what="a checkpoint of block 0"
        )
        reached = client.blocks(job.id)[0].last_checkpoint
        assert reached is not None
    descendants = first.descendants()
    assert len(descendants) > 5
    assert first.stop(signal.SIGINT) == 0, first.said()
    wait_for(
        lambda: not [p for p in descendants if p.is_running() and p.status() != "zombie"],
        seconds=10,
        what="no process is left behind",
    )

    second = Service(tmp_path / "data")
    try:
        with second.client() as client:
            ended = client.wait(job.id, timeout=400)
            block = client.blocks(job.id)[0]
            assert ended.status is JobStatus.SUCCEEDED, ended
            assert block.restarts == {Reason.PREEMPTED: 1}, "a restart costs no attempt"
            lines = [line.message for line in client.logs(job.id, task="block-0", attempt=2)]
            [resumed] = [line for line in lines if "resumed from the checkpoint of step" in line]
            assert int(resumed.split("step ")[1].split()[0]) >= reached.step
    finally:
        assert second.stop() == 0

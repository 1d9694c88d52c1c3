"""Redis dies, stalls, comes back; the disk fills; the API dies between the write and the answer. All for real."""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import JobStatus, TaskState
from dbserve.errors import ServerUnreachable
from tests.acceptance.conftest import Service
from tests.acceptance.digests import digests
from tests.acceptance.jobs import digits_job, patient_job
from tests.acceptance.test_wishes import trains
from tests.waiting import wait_for

REQUIRED = bool(os.environ.get("DBSERVE_REQUIRE_SERVERS"))
pytestmark = [pytest.mark.timeout(600), pytest.mark.chaos]


def test_redis_killed_while_blocks_train_costs_no_attempt_and_no_job(
    client: Client, service: Service, patient_digests: dict[str, str]
) -> None:
    job = client.submit(patient_job("redis-killed"))
    wait_for(trains(client, job.id), seconds=120, what="block 0 trains")
    old = service.child("redis-server")
    old.kill()
    wait_for(lambda: not old.is_running() or old.status() == "zombie", seconds=10, what="Redis is dead")
    wait_for(lambda: _ready(service), seconds=30, what="Redis is back")
    assert service.child("redis-server").pid != old.pid
    accepted = client.submit(digits_job(name="after-redis"))
    assert client.wait(job.id, timeout=400).status is JobStatus.SUCCEEDED
    assert [block.attempt for block in client.blocks(job.id)] == [1, 1], "nobody was restarted for it"
    assert digests(service.data_dir / "artifacts", job.id) == patient_digests
    assert client.wait(accepted.id, timeout=300).status is JobStatus.SUCCEEDED


def test_redis_stalled_beyond_the_lease_pauses_the_training_and_restarts_nobody(tmp_path: Path) -> None:
    service = Service(tmp_path / "data", lease_seconds="4")
    try:
        with service.client() as client:
            job = client.submit(patient_job("stalled"))
            wait_for(trains(client, job.id), seconds=120, what="block 0 trains")
            redis = service.child("redis-server")
            os.kill(redis.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                refused = httpx.get(f"{service.url}/v1/jobs/{job.id}", timeout=10.0)
                assert refused.status_code == 503
                assert int(refused.headers["Retry-After"]) >= 1
                assert time.monotonic() - began < 10
                time.sleep(
                    max(0.0, 12.0 - (time.monotonic() - began))
                )  # well beyond lease and liveness: the fault itself
            finally:
                os.kill(redis.pid, signal.SIGCONT)
            wait_for(lambda: _ready(service), seconds=30, what="Redis answers again")
            ended = client.wait(job.id, timeout=400)
            assert ended.status is JobStatus.SUCCEEDED, ended
            assert [block.attempt for block in client.blocks(job.id)] == [1, 1]
            lines = [line.message for line in client.logs(job.id, tail=10_000)]
            assert any("has not been heard of" in line for line in lines), "it fenced itself meanwhile"
    finally:
        assert service.stop() == 0


def test_requests_during_a_stall_are_answered_or_refused_and_each_key_makes_one_job(
    client: Client, service: Service
) -> None:
    spec = digits_job(name="once").model_dump_json()
    answers: list[httpx.Response] = []

    def submit() -> None:
        with httpx.Client(base_url=service.url, timeout=20.0) as http:
            headers = {"Content-Type": "application/json", "Idempotency-Key": "stall-1"}
            answers.append(http.post("/v1/jobs", content=spec, headers=headers))

    with service.redis() as redis:
        redis.execute_command("CLIENT", "PAUSE", "4000", "ALL")
        threads = [threading.Thread(target=submit) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {answer.status_code for answer in answers} <= {202, 503}
    assert 503 in {answer.status_code for answer in answers}, "the stall was felt"
    wait_for(lambda: _ready(service), seconds=30, what="Redis answers again")
    job = client.submit(JobSpec.model_validate_json(spec), idempotency_key="stall-1")
    made = {answer.json()["id"] for answer in answers if answer.status_code == 202} | {job.id}
    assert made == {job.id}, "the same key made one job, whoever was answered"
    assert client.wait(job.id, timeout=300).status is JobStatus.SUCCEEDED


def test_an_api_killed_with_the_job_stored_and_unanswered_gives_the_same_job_to_a_repeat(tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    service = Service(tmp_path / "data", failpoints=f"submit.stored={marker}")
    try:
        with service.client() as client:
            with pytest.raises(ServerUnreachable):  # the client asks again for a second, and the API takes longer
                client.submit(digits_job(name="unanswered"), idempotency_key="k-1")
            assert marker.exists(), "the API died after the durable write"
            wait_for(lambda: _ready(service), seconds=60, what="the API is back")
            job = client.submit(digits_job(name="unanswered"), idempotency_key="k-1")
            assert len([each for each in client.jobs() if each.name == "unanswered"]) == 1
            assert client.wait(job.id, timeout=300).status is JobStatus.SUCCEEDED
    finally:
        assert service.stop() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few megabytes, gone afterwards."""
    if (os.geteuid() != 0 or shutil.which("mount") is None) and not REQUIRED:
        pytest.skip("only root can mount a small file system")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def filled(disk: Path) -> Path:
    """The file that leaves no room on the disk."""
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        _write_without_end(filler)
    return filler


def _write_without_end(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(64 * 1024))


def test_a_full_disk_for_checkpoints_is_said_and_costs_nothing_once_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "artifacts").symlink_to(small_disk)
    service = Service(data)
    try:
        with service.client() as client:
            training = {"steps": 3000, "batch_size": 64, "lr": 3e-3}
            job = client.submit(digits_job(name="disk-full", training=training, checkpoint={"every_steps": 50}))
            wait_for(
                lambda: client.blocks(job.id)[0].last_checkpoint is not None, seconds=120, what="a first checkpoint"
            )
            filler = filled(small_disk)
            wait_for(
                lambda: "checkpoint_stale" in client.blocks(job.id)[0].conditions, seconds=60, what="the loss is said"
            )
            block = client.blocks(job.id)[0]
            assert (block.status, block.attempt) == (TaskState.RUNNING, 1), "training goes on"
            filler.unlink()
            wait_for(lambda: not client.blocks(job.id)[0].conditions, seconds=60, what="saved again")
            ended = client.wait(job.id, timeout=400)
            assert ended.status is JobStatus.SUCCEEDED, ended
            assert [each.attempt for each in client.blocks(job.id)] == [1, 1]
            failed = [event for event in client.events(job.id) if event.kind == "checkpoint_failed"]
            assert failed
            assert "No space left" in str(failed[0].data["message"])
    finally:
        assert service.stop() == 0


def test_a_full_disk_for_redis_refuses_what_it_cannot_keep_and_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "redis").symlink_to(small_disk)
    service = Service(data)
    try:
        with service.client() as client:
            kept = client.submit(digits_job(name="kept", resources={"gpus_per_block": 1}))
            filler = filled(small_disk)
            refused = _submit_until_refused(service)
            assert refused.status_code == 503
            assert refused.headers["content-type"] == "application/problem+json"
            filler.unlink()
            wait_for(lambda: _ready(service), seconds=60, what="there is room again")
            before = {job.id for job in client.jobs()}
            assert kept.id in before
            service.child("redis-server").kill()
            wait_for(lambda: _ready(service), seconds=60, what="Redis is back from its file")
            assert {job.id for job in client.jobs()} == before, "what was answered 202 is in the file"
    finally:
        assert service.stop() == 0


def _submit_until_refused(service: Service) -> httpx.Response:
    """Redis may still have a page or two of the file; each answer is a 202 that counts, until one is not."""
    spec = digits_job(name="filling", resources={"gpus_per_block": 1}).model_dump_json()
    with httpx.Client(base_url=service.url, timeout=20.0) as http:
        for _ in range(200):
            answer = http.post("/v1/jobs", content=spec, headers={"Content-Type": "application/json"})
            if answer.status_code != 202:
                return answer
    raise AssertionError("two hundred jobs fitted onto a full disk")


def _ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/readyz", timeout=3.0).status_code == 200
    except httpx.HTTPError:
        return False

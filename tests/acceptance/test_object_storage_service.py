"""The whole service with its checkpoints and models in object storage: real S3 requests, real Ray, a worker killed."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbserve.contracts.status import JobStatus, Reason
from tests.acceptance.conftest import Service
from tests.acceptance.jobs import digits_job
from tests.object_storage import ObjectStorage, object_storage
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(600), pytest.mark.chaos]


@pytest.fixture
def server() -> Iterator[ObjectStorage]:
    with object_storage() as running:
        yield running


def test_a_job_whose_artefacts_lie_in_object_storage_survives_its_worker_and_is_downloaded(
    tmp_path: Path, server: ObjectStorage
) -> None:
    service = Service(tmp_path / "data", "--artifacts", server.location("team"))
    try:
        with service.client() as client:
            training = {"steps": 600, "batch_size": 64, "lr": 3e-3}
            job = client.submit(digits_job(name="in-s3", training=training, checkpoint={"every_steps": 50}))
            wait_for(
                lambda: (block := client.blocks(job.id)[0]).last_checkpoint is not None and block.pid is not None,
                seconds=120,
                what="a first checkpoint in the bucket",
            )
            pid = client.blocks(job.id)[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            ended = client.wait(job.id, timeout=400)
            assert ended.status is JobStatus.SUCCEEDED, ended
            assert client.blocks(job.id)[0].restarts == {Reason.WORKER_LOST: 1}, "the fault did happen"
            restored = [event for event in client.events(job.id) if event.kind == "restored"]
            assert restored
            assert int(str(restored[0].data["step"])) >= 50, "it went on from what lay in the bucket"
            model = client.download_model(job.id, tmp_path)
            assert sorted(path.name for path in model.iterdir()) == [
                "block-0.safetensors", "block-1.safetensors", "model.json",
            ]  # fmt: skip
            assert not (service.data_dir / "artifacts").exists(), "nothing of it lies on this machine"
            assert "key:secret" not in service.said()
            client.delete(job.id)
    finally:
        assert service.stop() == 0

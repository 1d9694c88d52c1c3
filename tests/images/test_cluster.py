"""Both images together, as compose has them: a job trained to its end on a node of one, led by the other."""

import pytest

from dbserve.client import Client
from dbserve.contracts.status import JobStatus
from tests.acceptance.jobs import digits_job
from tests.images.compose import passwords, start
from tests.images.engine import Engine

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]


def test_a_node_is_of_the_python_and_the_ray_that_drive_it(engine: Engine, control: str, worker: str) -> None:
    look = "import platform, ray, importlib.util as u; print(platform.python_version(), ray.__version__)"
    versions = {engine.in_image(image, "python", "-c", look, options=("--tmpfs=/tmp",)) for image in (control, worker)}
    assert len(versions) == 1
    torch = "import os, torch, workers.trainer; print(torch.__version__, os.getuid())"
    assert engine.in_image(worker, "python", "-c", torch, options=("--tmpfs=/tmp",)).endswith(" 10001")


def test_a_job_is_trained_to_its_end(engine: Engine, control: str, worker: str, network: str) -> None:
    ours = dict.fromkeys(("ray-head", "reconciler", "api", "redis-users"), control)
    order = ("redis-users", "redis", "ray-head", "ray-worker", "reconciler", "api")
    images = {**ours, "redis": engine.redis(), "ray-worker": worker}
    given = passwords()
    start(engine, network, {service: images[service] for service in order}, given)
    address = engine.podman("port", f"{network}-api", "8000")
    with Client(f"http://{address}", api_key=given["DBSERVE_API_KEY"]) as client:
        job = client.submit(digits_job())
        ended = client.wait(job.id, timeout=900)
        assert ended.status is JobStatus.SUCCEEDED, [engine.logs(f"{network}-{each}") for each in order]
        assert client.report(job.id).blocks

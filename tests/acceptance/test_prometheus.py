"""A real Prometheus scrapes a running service."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dbserve.client import Client
from dbserve.contracts.status import JobStatus
from tests.acceptance.conftest import Service, wait_for
from tests.acceptance.jobs import long_job

pytestmark = pytest.mark.timeout(600)  # a shared machine can be three times slower than itself

if shutil.which("prometheus") is None and not os.environ.get("DBSERVE_REQUIRE_SERVERS"):
    pytest.skip("prometheus is not installed (apt install prometheus)", allow_module_level=True)


@pytest.fixture
def prometheus(service: Service, tmp_path: Path) -> Iterator[str]:
    """A Prometheus that scrapes the service every second; its address."""
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "scrape_configs:\n"
        "- job_name: dbserve\n"
        "  scrape_interval: 1s\n"
        "  static_configs:\n"
        f"  - targets: ['127.0.0.1:{service.port}']\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/-/ready").status_code == 200
        return False

    try:
        wait_for(is_ready, seconds=30, what="prometheus is ready")
        yield url
    finally:
        server.terminate()
        server.wait(20)


def value_of(prometheus: str, query: str) -> float | None:
    """The one value a query returns; None while it returns nothing."""
    result = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}).json()["data"]["result"]
    assert len(result) <= 1, result
    return float(result[0]["value"][1]) if result else None


def test_prometheus_stores_throughput_and_memory_of_each_block(
    client: Client, service: Service, prometheus: str
) -> None:
    job = client.submit(long_job(name="scraped"))
    labels = f'job_id="{job.id}",block="1"'
    rate = f"rate(dbserve_block_samples_total{{{labels}}}[10s])"
    wait_for(lambda: (value_of(prometheus, rate) or 0) > 0, seconds=120, what="a rate of samples")
    for metric in ("steps_total", "loss", "grad_norm", "heartbeat_timestamp_seconds", "target_steps"):
        assert value_of(prometheus, f"dbserve_block_{metric}{{{labels}}}") is not None, metric
    predicted, measured = (
        value_of(prometheus, f'dbserve_block_memory_bytes{{{labels},kind="{kind}"}}') for kind in ("predicted", "peak")
    )
    assert predicted == pytest.approx(measured, rel=0.05)
    assert value_of(prometheus, f'dbserve_block_status{{{labels},status="running"}}') == 1
    assert value_of(prometheus, "dbserve_build_info") == 1
    client.cancel(job.id)
    assert client.wait(job.id, timeout=60).status is JobStatus.CANCELLED


def test_promtool_finds_nothing_wrong_with_the_metrics(service: Service) -> None:
    text = httpx.get(f"{service.url}/metrics").text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr

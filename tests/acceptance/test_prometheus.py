"""A real Prometheus, configured as deploy/ has it, scrapes a running service; Grafana's queries are put to it."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dashboards.__main__ import built
from dbserve.client import Client, NotFound
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import JobStatus
from dbserve.contracts.views import JobView
from tests.acceptance.conftest import Service
from tests.acceptance.jobs import long_job
from tests.ports import free_port
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(600)  # a shared machine can be three times slower than itself

if shutil.which("prometheus") is None and not os.environ.get("DBSERVE_REQUIRE_SERVERS"):
    pytest.skip("prometheus is not installed (apt install prometheus)", allow_module_level=True)

DEPLOYED = Path(__file__).parents[2] / "deploy/prometheus"

# Panels whose queries need what is not here. All others must return points.
NEEDS_DCGM = "NVIDIA's DCGM exporter"
UNANSWERED = {
    ("dbserve-hardware", "GPU utilisation"): NEEDS_DCGM,
    ("dbserve-hardware", "GPU memory in use"): NEEDS_DCGM,
    ("dbserve-hardware", "Power"): NEEDS_DCGM,
    ("dbserve-hardware", "Temperature"): NEEDS_DCGM,
    ("dbserve-hardware", "XID errors"): NEEDS_DCGM,
    ("dbserve-memory", "CUDA allocator"): "a GPU",
    ("dbserve-control-plane", "Webhook deliveries"): "a webhook",
}


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    http: httpx.Client

    def values(self, query: str) -> list[float]:
        """Of every series that the query returns now, NaN left out."""
        answer = self.http.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        found = (float(series["value"][1]) for series in answer["data"]["result"])
        return [value for value in found if not math.isnan(value)]

    def value(self, query: str) -> float | None:
        """The one value a query returns; None while it returns nothing."""
        found = self.values(query)
        assert len(found) <= 1, (query, found)
        return found[0] if found else None

    def get(self, path: str) -> Any:
        return self.http.get(f"/api/v1/{path}").json()["data"]


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """What deploy/ configures, but for its targets (the service, and its Ray) and for looking every second."""
    home = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOYED / path) for path in config["rule_files"]]
    [ours] = config["scrape_configs"]
    ours["static_configs"] = [{"targets": [f"127.0.0.1:{service.port}"]}]
    exporters = ray_exporters(service)
    config["scrape_configs"].append({"job_name": "ray", "static_configs": [{"targets": exporters}]})
    targets = 1 + len(exporters)
    (home / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={home / 'prometheus.yml'}",
                f"--storage.tsdb.path={home / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        assert server.poll() is None, (home / "log").read_text()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/-/ready").status_code == 200
        return False

    try:
        wait_for(is_ready, seconds=30, what="prometheus is ready")
        with httpx.Client(base_url=url) as http:
            running = Prometheus(http)
            # What happens before the first scrape is no increase to it.
            wait_for(lambda: len(running.values("up == 1")) == targets, seconds=30, what="every target is scraped")
            yield running
    finally:
        server.terminate()
        server.wait(20)


def ray_exporters(service: Service) -> list[str]:
    """Where the service's Ray exports its metrics: Ray tells it on its dashboard alone, which is off here."""
    found: list[str] = []

    def exports() -> bool:
        for process in service.descendants():
            with contextlib.suppress(psutil.Error):
                ports = {
                    each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN
                }
                found.extend(f"127.0.0.1:{port}" for port in ports if _exports_ray(port))
        return bool(found)

    wait_for(exports, seconds=60, what="Ray's agent exports metrics")
    return found


def _exports_ray(port: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return "ray_node_cpu_utilization" in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=1.0).text
    return False


def watched_job(shard: Path) -> JobSpec:
    """A job on text, with an end-to-end and a data-parallel baseline, that trains on until it is cancelled."""
    pq.write_table(pa.table({"text": ["one for the master, one for the dame. three bags full, sir. "] * 200}), shard)
    return JobSpec.model_validate(
        {
            "name": "watched",
            "architecture": {"kind": "mdm", "options": {"width": 32, "heads": 2, "depth": 2}},
            "data": {"uri": str(shard), "sequence_length": 32, "test_fraction": 0.1},
            "blocks": {"count": 2},
            "training": {"steps": 1_000_000, "batch_size": 16, "lr": 3e-3},
            "checkpoint": {"every_steps": 50},
            "retry": {"max_attempts": 10, "backoff_seconds": 0.0},
            "resources": {"cpus_per_block": 0.25},
            "evaluation": {"baselines": ["end_to_end", "data_parallel"]},
        }
    )


@pytest.fixture
def in_training(client: Client, prometheus: Prometheus, tmp_path: Path) -> Iterator[JobView]:
    """Such a job, submitted when Prometheus already looks; cancelled whatever the test comes to."""
    job = client.submit(watched_job(tmp_path / "rhymes.parquet"))
    yield job
    client.cancel(job.id)
    assert client.wait(job.id, timeout=120).status is JobStatus.CANCELLED


def lose_workers(client: Client, job_id: str, block: int, count: int) -> None:
    """Kills the block's worker, and then the next one's."""
    for attempt in range(1, count + 1):
        wait_for(lambda: client.blocks(job_id)[block].attempt == attempt, seconds=60, what=f"attempt {attempt}")  # noqa: B023
        wait_for(lambda: client.blocks(job_id)[block].pid is not None, seconds=120, what=f"a worker for {attempt}")
        pid = client.blocks(job_id)[block].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Asked:
    """A query of a panel, as Grafana would put it."""

    board: str
    panel: str
    query: str

    def __str__(self) -> str:
        return f"{self.board}, {self.panel}: {self.query}"


def asked(variables: dict[str, str]) -> Iterator[Asked]:
    """Every query of every panel, its variables replaced."""
    known = {"__rate_interval": "15s", "__range": "10m", **variables}
    for path, text in built().items():
        for panel in json.loads(text)["panels"]:
            for target in panel.get("targets", ()):
                query = re.sub(r"\$([a-z_]\w*)", lambda found: known[found[1]], target["expr"])
                yield Asked(path.stem, panel["title"], query)


def test_every_query_of_every_panel_returns_points(
    client: Client, prometheus: Prometheus, in_training: JobView
) -> None:
    job = in_training
    given_up = client.submit(long_job(name="given-up"))
    client.cancel(given_up.id)
    with pytest.raises(NotFound):
        client.job("of-nobody")
    lose_workers(client, job.id, 1, count=3)  # three within an hour are an alert

    node = re.escape(client.blocks(job.id)[0].node or "")
    all_of_it = {"job_id": ".+", "block": ".+", "node": ".*"}
    chosen = {"job_id": job.id, "block": "(0|1|end_to_end|data_parallel)", "node": f"({node})"}
    waiting = [each for variables in (all_of_it, chosen) for each in asked(variables)]
    empty = [each for each in waiting if (each.board, each.panel) in UNANSWERED]
    assert {(each.board, each.panel) for each in empty} == UNANSWERED.keys()
    waiting = [each for each in waiting if each not in empty]

    def all_answered() -> bool:
        waiting[:] = [each for each in waiting if not prometheus.values(each.query)]
        return not waiting

    with contextlib.suppress(AssertionError):
        wait_for(all_answered, seconds=180, what="points")
    assert not waiting, "no points:\n" + "\n".join(map(str, waiting))

    undisturbed, disturbed = (f'job_id="{job.id}",block="{block}"' for block in (0, 1))
    predicted, measured = (
        prometheus.value(f'dbserve_block_memory_bytes{{{undisturbed},kind="{kind}"}}') for kind in ("predicted", "peak")
    )
    assert predicted == pytest.approx(measured, rel=0.05)
    assert prometheus.value(f"dbserve_block_gradient_sent_bytes_total{{{undisturbed}}}") == 0
    assert prometheus.value(f"sum(dbserve_block_restarts_total{{{disturbed}}})") == 3
    alert = f'ALERTS{{alertname="DbserveBlockRestarts",alertstate="firing",{disturbed}}}'
    wait_for(lambda: prometheus.value(alert) == 1, seconds=30, what="the alert fires")
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}, [rule for rule in rules if rule["health"] != "ok"]


def test_promtool_finds_no_fault_with_the_metrics(service: Service) -> None:
    exposed = httpx.get(f"{service.url}/metrics").text
    checked = subprocess.run(["promtool", "check", "metrics"], input=exposed, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr

"""The network is cut, a shard is bad, memory is short: each injected for real."""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import JobStatus, Reason, TaskState
from dbserve.embedded import redis_server_binary
from tests.acceptance.conftest import Service
from tests.acceptance.jobs import digits_job, patient_job
from tests.acceptance.test_wishes import trains
from tests.ports import free_port
from tests.shards import cycle, pixels, write_shard
from tests.waiting import wait_for

pytestmark = [pytest.mark.timeout(600), pytest.mark.chaos]

REQUIRED = bool(os.environ.get("DBSERVE_REQUIRE_SERVERS"))


@pytest.fixture
def redis_port(tmp_path: Path) -> Iterator[int]:
    """A Redis of its own, behind a port of the loopback interface that the test may cut off."""
    port = free_port()
    command = [str(redis_server_binary()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"]
    with subprocess.Popen([*command, *durable], stdout=subprocess.DEVNULL) as server:
        yield port
        server.terminate()


def _cut(port: int, *, how: str) -> None:
    """`-A` drops every packet to and from the port, `-D` lets them through again."""
    for match in ("--dport", "--sport"):
        rule = ["iptables", how, "INPUT", "-i", "lo", "-p", "tcp", match, str(port), "-j", "DROP"]
        subprocess.run(rule, check=True)


@pytest.mark.skipif(
    (os.geteuid() != 0 or shutil.which("iptables") is None) and not REQUIRED,
    reason="cutting the network takes root and iptables",
)
def test_a_network_cut_beyond_the_lease_pauses_the_training_and_restarts_nobody(
    tmp_path: Path, redis_port: int
) -> None:
    service = Service(tmp_path / "data", "--redis-url", f"redis://127.0.0.1:{redis_port}/0", lease_seconds="4")
    try:
        with service.client() as client:
            job = client.submit(patient_job("cut"))
            wait_for(trains(client, job.id), seconds=120, what="block 0 trains")
            _cut(redis_port, how="-A")
            try:
                until = time.monotonic() + 15.0
                wait_for(lambda: _unready(service), seconds=15, what="the cut is felt")
                wait_for(lambda: time.monotonic() > until, seconds=20, what="the cut outlasts every lease")
            finally:
                _cut(redis_port, how="-D")
            ended = client.wait(job.id, timeout=400)
            assert ended.status is JobStatus.SUCCEEDED, ended
            assert [block.attempt for block in client.blocks(job.id)] == [1, 1], "out of sight is not out of work"
    finally:
        assert service.stop() == 0


def _unready(service: Service) -> bool:
    import httpx

    try:
        return httpx.get(f"{service.url}/readyz", timeout=10.0).status_code == 503
    except httpx.HTTPError:
        return False


def test_a_shard_that_went_bad_after_it_was_planned_fails_the_job_at_once_with_its_reason(
    client: Client, tmp_path: Path
) -> None:
    shard = write_shard(tmp_path / "train-0.parquet", pixels(400, (8, 8, 1)), cycle(400))
    job = client.submit(digits_job(name="bad-shard", data={"uri": str(tmp_path / "train-*.parquet")}))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:200] + bytes(len(whole) - 400) + whole[-200:])
    ended = client.wait(job.id, timeout=120)
    assert (ended.status, ended.reason) == (JobStatus.FAILED, Reason.DATA_ERROR)
    assert [block.attempt for block in client.blocks(job.id)] == [1, 1], "another attempt would read the same bytes"


def test_a_step_that_does_not_fit_into_memory_is_tried_once_in_two_halves_and_the_events_say_so(
    client: Client,
) -> None:
    spec = JobSpec.model_validate(
        {
            **digits_job(name="too-large").model_dump(mode="json"),
            "architecture": {
                "kind": "vit",
                "options": {"depth": 6, "width": 256, "heads": 8, "patch": 1, "mlp": 1024},
            },
            "blocks": {"count": 2, "train": [0]},
            "training": {"steps": 1, "batch_size": 512, "lr": 1e-3},  # 1.2 GB, as planned
        }
    )
    job = client.submit(spec)
    limited: list[int] = []

    def has_begun() -> bool:
        block = client.blocks(job.id)[0]
        if block.pid is not None and block.status is TaskState.RUNNING and block.step == 0:
            limited.append(_limit_data(block.pid, 700 * 1024 * 1024))
        return bool(limited)

    wait_for(has_begun, seconds=120, what="its worker is there and has not stepped yet")
    wait_for(lambda: client.blocks(job.id)[0].attempt == 2, seconds=120, what="out of memory, for real")
    ended = client.wait(job.id, timeout=400)
    block = client.blocks(job.id)[0]
    assert (block.status, block.restarts) == (TaskState.SUCCEEDED, {Reason.HOST_OOM: 1}), ended
    [crash] = [event for event in client.events(job.id) if event.kind == "crashed"]
    assert "micro-batches of 256 rows instead of 512" in str(crash.data["message"])
    lines = [line.message for line in client.logs(job.id, block=0, attempt=2)]
    assert any("2 micro-batches a step instead of 1" in line for line in lines), "it says how it trains"


def _limit_data(pid: int, more: int) -> int:
    """Lets a process map at most so many more bytes of private memory than it has now."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Vm")
    )
    limit = int(fields["VmData"].split()[0]) * 1024 + more
    resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
    assert psutil.Process(pid).rlimit(psutil.RLIMIT_DATA)[0] == limit
    return limit

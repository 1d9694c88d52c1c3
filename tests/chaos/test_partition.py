"""A network that falls apart, between real hosts: who is cut off fences itself, and its block goes on elsewhere."""

import json
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from dbserve.client import Client
from dbserve.contracts.views import BlockView, JobView
from tests.acceptance.conftest import Service
from tests.acceptance.jobs import long_job
from tests.chaos.namespaces import Host, Lan, lan, require
from tests.cluster.machines import FAST, RAY
from tests.redis_servers import redis_server
from tests.waiting import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

LEASE_SECONDS = 8.0


@pytest.fixture(autouse=True)
def namespaces() -> None:
    require()


@contextmanager
def redis_on(address: str, directory: Path) -> Iterator[str]:
    """Its URL. Any host of the network may ask it."""
    arguments = ["--bind", address, "--port", "7379", "--protected-mode", "no"]
    with redis_server(directory, arguments, host=address, port=7379):
        yield f"redis://{address}:7379/0"


@contextmanager
def ray_on(network: Lan, directory: Path) -> Iterator[str]:
    """A head on this machine, and a node of one CPU on each host."""
    address = f"{network.address}:7380"
    head = [RAY, "start", "--head", "--block", "--num-cpus", "0", "--port", "7380", "--disable-usage-stats"]
    head += ["--node-ip-address", network.address, "--temp-dir", str(directory / "ray"), "--include-dashboard", "false"]
    with (directory / "head.log").open("wb") as log:
        started = subprocess.Popen(
            [*head, "--system-config", json.dumps(FAST)], stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(
            lambda: b"Ray runtime started" in (directory / "head.log").read_bytes(), seconds=120, what="Ray's head"
        )
        for host in network.hosts:
            node = [RAY, "start", "--block", "--address", address, "--node-ip-address", host.address, "--num-cpus", "1"]
            host.run([*node, "--disable-usage-stats"], directory / f"{host.name}.log")
        yield address
    finally:
        for process in [*psutil.Process(started.pid).children(recursive=True), started]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        started.wait(20)


def block_of(client: Client, job: JobView) -> BlockView:
    [block] = client.blocks(job.id)
    return block


def work_done_by(pid: int) -> float:
    """CPU seconds."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With a short name: Ray's sockets lie deep in it."""
    with tempfile.TemporaryDirectory(prefix="dbs-", ignore_cleanup_errors=True) as name:
        (Path(name) / "ray").mkdir()
        (Path(name) / "token").write_text(secrets.token_hex(32))
        monkeypatch.setenv("RAY_AUTH_MODE", "token")  # a cluster that can be reached from outside needs one
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", f"{name}/token")
        monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")  # on a machine that does something else besides
        yield Path(name)


def test_who_is_cut_off_fences_itself_and_is_refused_when_the_network_heals(directory: Path) -> None:
    with (
        lan(["one", "two"], private=[directory / "ray"]) as network,
        redis_on(network.address, directory) as redis_url,
        ray_on(network, directory) as ray_address,
    ):
        service = Service(
            directory / "data",
            *("--redis-url", redis_url, "--ray-address", ray_address),
            lease_seconds=str(LEASE_SECONDS),
            ray_auth_token_path=str(directory / "token"),
        )
        try:
            with service.client() as client:
                live_through_a_partition(client, network)
        finally:
            service.stop()


def live_through_a_partition(client: Client, network: Lan) -> None:
    wait_for(lambda: len(client.cluster().nodes) == 3, seconds=180, what="both hosts have joined")
    job = client.submit(long_job(name="cut", blocks={"count": 2, "train": [0]}, checkpoint={"every_steps": 200}))
    wait_for(lambda: block_of(client, job).last_checkpoint is not None, seconds=240, what="a checkpoint")
    first = block_of(client, job)
    assert first.node is not None
    assert first.pid is not None
    cut, other = _apart(network, first.node)

    cut.pull_the_cable()
    began = time.monotonic()
    wait_for(lambda: block_of(client, job).attempt > 1, seconds=180, what="it is given up")
    print(f"given up {time.monotonic() - began:.1f} s after the cable was pulled")
    assert psutil.pid_exists(first.pid), "its process lives, and nobody can reach it"
    idle_from = work_done_by(first.pid)
    wait_for(
        lambda: (block := block_of(client, job)).status == "running" and block.step > 0,
        seconds=240,
        what="the block goes on elsewhere",
    )
    print(f"goes on {time.monotonic() - began:.1f} s after")
    second = block_of(client, job)
    assert (second.node, second.attempt) == (other.name, 2), "at once where somebody answers"
    saved = first.last_checkpoint
    assert saved is not None
    assert second.step >= saved.step
    assert psutil.pid_exists(first.pid)
    used = work_done_by(first.pid) - idle_from
    assert used < 0.5 * (time.monotonic() - began), f"it has fenced itself, and yet worked for {used:.1f} s"
    print(f"meanwhile the one that was cut off used {used:.2f} s of CPU")

    cut.plug_it_in()
    wait_for(lambda: not psutil.pid_exists(first.pid), seconds=120, what="the old worker leaves")
    wait_for(lambda: block_of(client, job).step > second.step, seconds=120, what="the block trains on, undisturbed")
    now = block_of(client, job)
    assert (now.attempt, now.pid, now.restarts) == (2, second.pid, second.restarts)
    said = [line.message for line in client.logs(job.id) if line.attempt == 1]
    print("\n".join(said[-6:]))
    assert any("the store has not been heard of" in line for line in said), "it said so as soon as it could"
    client.cancel(job.id, force=True)


def _apart(network: Lan, node: str) -> tuple[Host, Host]:
    """The host of that name, and the other one."""
    [cut] = [host for host in network.hosts if host.name == node]
    [other] = [host for host in network.hosts if host.name != node]
    return cut, other

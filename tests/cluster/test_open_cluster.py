"""A cluster that others can reach: it is joined where it asks strangers for a token, and nowhere else."""

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.ports import free_ports
from tests.redis_servers import redis_server
from tests.waiting import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

REFUSED = 5
STARTS = [
    "-m",
    "ray.scripts.scripts",
    "start",
    "--head",
    "--block",
    "--disable-usage-stats",
    "--include-dashboard=false",
]


def own_address() -> str:
    """One of this machine that is not its loopback's."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not found:
        pytest.skip("this machine has no address but its loopback's")
    return found[0]


@pytest.fixture
def redis_url() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="dbs-") as directory:
        path = Path(directory) / "redis.sock"
        arguments = ["--port", "0", "--unixsocket", str(path)]
        with redis_server(Path(directory), arguments, unix_socket_path=str(path)):
            yield f"unix://{path}"


@contextlib.contextmanager
def _running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        started = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment, start_new_session=True
        )
    try:
        yield started
    finally:
        family = [started, *psutil.Process(started.pid).children(recursive=True)] if started.poll() is None else []
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        started.wait(20)


@contextlib.contextmanager
def ray_head(directory: Path, environment: dict[str, str]) -> Iterator[str]:
    """Its address."""
    port, client_port, agent_port = free_ports(3)
    address = own_address()
    with tempfile.TemporaryDirectory(prefix="dbs-ray-", ignore_cleanup_errors=True) as home:
        command = [sys.executable, *STARTS, f"--node-ip-address={address}", f"--port={port}", f"--temp-dir={home}"]
        command += [
            "--num-cpus=1",
            f"--ray-client-server-port={client_port}",
            f"--dashboard-agent-listen-port={agent_port}",
        ]
        log = directory / "ray.log"
        with _running(command, log, {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1", **environment}) as head:
            wait_for(lambda: head.poll() is not None or "runtime started" in log.read_text(), seconds=150, what="Ray")
            assert head.poll() is None, log.read_text()
            yield f"{address}:{port}"


def reconcile(redis_url: str, address: str, log: Path, environment: dict[str, str]) -> tuple[int | None, str]:
    """How the reconciler ended, None: it reconciles; and what it said."""
    command = [sys.executable, "-m", "dbserve", "reconcile", "--redis-url", redis_url, "--ray-address", address]
    command += ["--artifacts", str(log.parent / "artifacts")]
    with _running(command, log, environment) as started:
        wait_for(
            lambda: started.poll() is not None or "reconciling on" in log.read_text(), seconds=150, what="an answer"
        )
        return started.poll(), log.read_text()


def test_a_cluster_that_answers_strangers_is_not_joined(redis_url: str, tmp_path: Path) -> None:
    """Neither without a token, nor with one that nobody asks for."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    with ray_head(tmp_path, {"RAY_AUTH_MODE": "disabled"}) as address:
        code, said = reconcile(redis_url, address, tmp_path / "1.log", {"RAY_AUTH_MODE": "disabled"})
        assert code == REFUSED
        assert "RAY_AUTH_MODE=token" in said
        code, said = reconcile(redis_url, address, tmp_path / "2.log", {"DBSERVE_RAY_AUTH_TOKEN_PATH": str(token)})
        assert code == REFUSED, said
        assert "answers without a token" in said


def test_a_cluster_that_asks_for_its_token_is_joined_with_it(redis_url: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    guarded = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with ray_head(tmp_path, guarded) as address:
        code, said = reconcile(redis_url, address, tmp_path / "1.log", {"DBSERVE_RAY_AUTH_TOKEN_PATH": str(token)})
        assert code is None, said

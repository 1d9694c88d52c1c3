"""The service as a user starts it: `dbserve up` as a process of its own, on real Redis and real Ray."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis as redis_sync

from dbserve.client import Client
from tests.acceptance.digests import undisturbed
from tests.acceptance.jobs import patient_job
from tests.collector import Collector, collecting
from tests.ports import free_port
from tests.waiting import wait_for

START_SECONDS = 150.0


class Service:
    """A running `dbserve up`."""

    def __init__(self, data_dir: Path, *arguments: str, port: int | None = None, **settings: str) -> None:
        """`arguments` of `dbserve up`; `settings` by the names of Settings' fields."""
        self.data_dir = data_dir
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._output = data_dir.with_suffix(".out")
        self._said_before = self._output.stat().st_size if self._output.exists() else 0  # by an earlier one
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DBSERVE_")}
        environment |= {f"DBSERVE_{name.upper()}": value for name, value in settings.items()}
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "dbserve",
                    "up",
                    "--data-dir",
                    str(data_dir),
                    "--port",
                    str(self.port),
                    *arguments,
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        try:
            wait_for(self._is_up, seconds=START_SECONDS, what="dbserve up")
        except BaseException:
            self.stop()
            raise

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.said()
        return "dbserve is up" in self.said()

    def said(self) -> str:
        return self._output.read_bytes()[self._said_before :].decode(errors="replace")

    def client(self) -> Client:
        return Client(self.url)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, name: str) -> psutil.Process:
        """The process of `api`, `reconcile`, or `redis-server`."""
        [found] = [
            process
            for process in psutil.Process(self.process.pid).children()
            if re.search(rf"dbserve {name}\b|/{name}\b", " ".join(process.cmdline()))
        ]
        return found

    def redis(self) -> redis_sync.Redis:
        """A client of the service's own Redis."""
        return redis_sync.Redis(unix_socket_path=str(self.data_dir / "redis" / "redis.sock"), decode_responses=True)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Gets the spans of the service."""
    with collecting() as opened:
        yield opened


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Service]:
    """One service for the tests that leave it as they found it: its start costs many seconds."""
    directory = tmp_path_factory.mktemp("acceptance") / "data"
    running = Service(directory, otlp_endpoint=collector.url, webhook_private_hosts="true")
    yield running
    assert running.stop() == 0, running.said()


@pytest.fixture(scope="session")
def patient_digests(service: Service) -> dict[str, str]:
    """What patient_job comes to when nothing happens to it; one run serves every test that disturbs it."""
    with service.client() as opened:
        return undisturbed(opened, service.data_dir / "artifacts", patient_job())


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with service.client() as opened:
        yield opened

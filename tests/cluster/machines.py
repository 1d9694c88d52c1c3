"""Ray nodes on this machine, each with GPUs that are not there, and the service on them."""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from dbserve.client import Client, Unavailable
from dbserve.contracts.cluster_view import NodeView
from dbserve.contracts.views import BlockView, EventView, JobView, Page
from tests.acceptance.conftest import Service
from tests.ports import free_port
from tests.waiting import wait_for

FAST = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
RAY = str(Path(sys.executable).with_name("ray"))
NAME = "machine"  # the label that tells nodes apart, since all have the name of this host


class Machines:
    """A head that holds no work, and nodes with a cache directory each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.token = directory / "token"
        self.token.write_text(secrets.token_hex(32))
        self._environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "120",  # on a machine that does something else besides
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        system = ["--system-config", json.dumps(FAST), "--temp-dir", str(directory / "ray")]
        self._start(
            "head", ["--head", "--port", str(free_port()), "--num-cpus", "0", "--include-dashboard", "false", *system]
        )
        self.address = self._said("head").partition("--address='")[2].partition("'")[0]

    def add(self, name: str, *, cpus: int, gpus: int = 0, labels: dict[str, str] | None = None) -> None:
        told = ",".join(f"{key}={value}" for key, value in {NAME: name, **(labels or {})}.items())
        node = ["--address", self.address, "--num-cpus", str(cpus), "--num-gpus", str(gpus), "--labels", told]
        self._start(name, node, DBSERVE_CACHE_DIR=str(self.cache(name)))

    def cache(self, name: str) -> Path:
        return self._directory / "caches" / name

    def kill(self, name: str) -> None:
        """As a machine that loses its power: the raylet and all it started but its workers, which watch it."""
        process = self._running.pop(name)
        for child in psutil.Process(process.pid).children(recursive=True):
            if "ray::" not in "".join(child.cmdline()[:1]):
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
        process.wait(20)

    def drain(self, node_id: str, *, seconds: int) -> None:
        """As a cloud announces the end of a spot machine."""
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command = [RAY, "drain-node", "--address", self.address, "--node-id", node_id, *reason]
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, env=self._environment, check=True, capture_output=True, timeout=120)

    def close(self) -> None:
        for name in [*self._running]:
            process = self._running.pop(name)
            everybody = [*psutil.Process(process.pid).children(recursive=True)]
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for child in everybody:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait(20)

    def _start(self, name: str, options: list[str], **environment: str) -> None:
        """And waits for it: two that start at once in one session directory choose the same names and ports."""
        ports = ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        command = [RAY, "start", "--block", *ports, *options]
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env={**self._environment, **environment}, start_new_session=True
            )
        process = self._running[name]

        def started() -> bool:
            assert process.poll() is None, f"{name} did not start: {self._said(name)[-2000:]}"
            return "Ray runtime started" in self._said(name)

        wait_for(started, seconds=150, what=f"{name} has started: {self._said(name)}")

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def _said(self, name: str) -> str:
        return self._log(name).read_text(errors="replace")


class Floor:
    """The service on machines, seen as a user sees it."""

    def __init__(self, machines: Machines, client: Client) -> None:
        self.machines = machines
        self.client = client

    def add(self, name: str, *, cpus: int, gpus: int = 0, labels: dict[str, str] | None = None) -> None:
        self.machines.add(name, cpus=cpus, gpus=gpus, labels=labels)

    def wait_for(self, condition: Callable[[], bool], *, seconds: float, what: str) -> None:
        """A service that is out of breath, on a machine that is, counts as not yet."""

        def holds() -> bool:
            try:
                return condition()
            except Unavailable:
                return False

        wait_for(holds, seconds=seconds, what=what)

    def wait_for_nodes(self, *names: str) -> None:
        self.wait_for(lambda: self.nodes().keys() >= set(names), seconds=180, what=f"{names} have joined")

    def nodes(self) -> dict[str, NodeView]:
        return {node.labels.get(NAME, "head"): node for node in self.client.cluster().nodes}

    def workers(self, job_id: str) -> dict[str, list[str]]:
        """Tasks of a job by the machine they are on."""
        found = {
            name: [one.task for one in node.workers if one.job_id == job_id] for name, node in self.nodes().items()
        }
        return {name: sorted(tasks) for name, tasks in found.items() if tasks}

    def blocks(self, job: JobView) -> tuple[BlockView, ...]:
        return self.client.blocks(job.id)

    def events(self, job: JobView, kind: str) -> list[EventView]:
        """Until now; the client's own are followed until the job has ended."""
        every = self.client._all(Page[EventView], f"/v1/jobs/{job.id}/events", {})  # pyright: ignore[reportPrivateUsage]
        return [event for event in every if event.kind == kind]

    def wait_until_training(self, job: JobView, *, steps: int = 1, seconds: float = 240.0) -> None:
        """Every block runs, and is past so many steps."""
        self.wait_for(
            lambda: all(block.status == "running" and block.step >= steps for block in self.blocks(job)),
            seconds=seconds,
            what="all blocks train",
        )

    def end(self, job: JobView) -> None:
        self.client.cancel(job.id, force=True)
        self.wait_for(lambda: not self.workers(job.id), seconds=60, what="its workers have ended")


@contextmanager
def floor_of(directory: Path) -> Iterator[Floor]:
    """`directory` wants a short name: Ray's sockets lie deep in it."""
    machines = Machines(directory)
    try:
        where = ("--ray-address", machines.address)
        service = Service(directory / "data", *where, ray_auth_token_path=str(machines.token))
        try:
            with service.client() as client:
                yield Floor(machines, client)
        finally:
            service.stop()
    finally:
        machines.close()

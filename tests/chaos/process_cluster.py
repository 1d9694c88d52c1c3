"""A cluster whose workers are plain processes of this machine: for tests that kill real processes, without Ray.

A worker holds a lock on the file of its Run, which the kernel drops with it. So any process, also one that comes after
the one that launched it, sees who is alive, and nobody launches a Run twice.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from dbserve.contracts.cluster import Capacity, Demand, Node, Presence, Resources
from dbserve.contracts.status import Reason, Run, Task
from workers.presence import end, look

NAME_SECONDS = 10.0  # for a process that was just started to be named in its file


class ProcessCluster:
    """dbserve.reconciler.Cluster. `command` gets the Run, as JSON, as its last argument."""

    identity = "processes"

    def __init__(self, directory: Path, command: Sequence[str], *, cpus: float = 2.0) -> None:
        self._directory = directory
        self._command = list(command)
        self._cpus = cpus
        directory.mkdir(parents=True, exist_ok=True)

    def capacity(self) -> Capacity:
        return Capacity((Node("node", "node", Resources(self._cpus, 0.0)),))

    def alive(self) -> set[Run]:
        return {run for path in self._directory.iterdir() if _held(path) and (run := _run(path.name)) is not None}

    def launch(self, run: Run, resources: Resources, nodes: Sequence[str]) -> None:
        path = self._path(run)
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # it lives
            file.truncate(0)
            child = subprocess.Popen(
                [*self._command, run.model_dump_json()],
                pass_fds=(file.fileno(),),  # the lock is the child's, too, and stays when ours is closed
                start_new_session=True,
            )
            file.write(f"{child.pid}\n")

    def stop(self, run: Run, *, task: Task | None) -> None:
        path = self._path(run)
        if path.exists() and _held(path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid(run), signal.SIGKILL)
        if task is not None and task.pid is not None:
            end(task.pid, task.born)

    def presence(self, task: Task) -> Presence:
        if task.pid is None:
            return Presence.PRESENT if task.run in self.alive() else Presence.GONE
        return look(task.pid, task.born, gpu=False)

    def cause_of_death(self, run: Run) -> tuple[Reason, str] | None:
        return None

    def grow(self, in_use: Sequence[Demand], waiting: Sequence[Demand]) -> None:
        raise AssertionError("nobody said that it could grow")

    def pid(self, run: Run) -> int:
        """Of a worker that lives."""
        deadline = time.monotonic() + NAME_SECONDS
        while not (text := self._path(run).read_text()).endswith("\n"):
            assert time.monotonic() < deadline, f"{run} was launched, and its process is not named"
            time.sleep(0.01)
        return int(text)

    def _path(self, run: Run) -> Path:
        return self._directory / f"{run.job_id}.{run.task}.{run.attempt}"


@contextlib.contextmanager
def all_ended(cluster: ProcessCluster) -> Generator[None]:
    """Whatever happens in the block, no worker outlives it."""
    try:
        yield
    finally:
        for run in cluster.alive():
            cluster.stop(run, task=None)


def _held(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _run(name: str) -> Run | None:
    job_id, task, attempt = name.rsplit(".", 2)
    return Run(job_id=job_id, task=task, attempt=int(attempt))

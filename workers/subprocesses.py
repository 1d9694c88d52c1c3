"""The other workers of a task as processes of this one, on its machine: where there is no Ray, and for the baseline."""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from dbserve.errors import ConfigInvalid, WorkerLost
from workers.group import LOOPBACK
from workers.orders import Orders, Rows, place_rows
from workers.parallel import STOP_SECONDS, Call, Death


@dataclass(frozen=True)
class Subprocesses:
    """A crew of this machine, which shares out this process's threads."""

    size: int
    threads: int
    host: str = LOOPBACK
    come_seconds: float = 600.0
    silence_seconds: float = 15.0
    when_stuck: Callable[[WorkerLost], None] | None = None  # gloo's calls end with a connection, NCCL's need not

    @classmethod
    def of(
        cls, size: int, device: torch.device, when_stuck: Callable[[WorkerLost], None] | None = None
    ) -> "Subprocesses":
        """Raises ConfigInvalid where there are fewer GPUs than workers."""
        if device.type == "cuda" and torch.cuda.device_count() < size:
            raise ConfigInvalid(
                f"{size} workers of one task need {size} GPUs on this machine; it has {torch.cuda.device_count()}",
                "/resources/gpus_per_block",
            )
        return cls(size, max(1, torch.get_num_threads() // size), when_stuck=when_stuck)

    @contextlib.contextmanager
    def rows(self, orders: Orders) -> Generator[Rows, None, None]:
        """Files of a directory that nobody else may look into."""
        with tempfile.TemporaryDirectory(prefix="dbserve-rows-") as name:
            yield place_rows(Path(name), orders)

    def device(self, rank: int, leading: torch.device) -> str:
        return f"cuda:{rank}" if leading.type == "cuda" else "cpu"

    def hire(self, call: Call) -> "Process":
        paths = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "OMP_NUM_THREADS": str(call.threads), "PYTHONPATH": paths}
        said = tempfile.TemporaryFile()  # noqa: SIM115  it is read, and closed, when the process has ended
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.follower"],
            env=environment,
            stdin=subprocess.PIPE,  # others may read a command line
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(call.model_dump_json().encode() + b"\n")
            process.stdin.close()
        return Process(process, said)

    def came(self, rank: int, node: str, gpu: str | None) -> None:
        """It is here."""

    def wanted(self, rank: int) -> None:
        """Whoever wants this machine tells this process, too."""

    def stuck(self, lost: WorkerLost) -> None:
        """Whoever has this process is told, where somebody wants to be."""
        if self.when_stuck is not None:
            self.when_stuck(lost)


class Process:
    """One of the other workers, and the file of what it says, which is closed when it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        self._process, self._said = process, said
        self._last_line: str | None = None  # known once it has ended
        self._asking = threading.Lock()

    def death(self, wait: float) -> Death | None:
        try:
            code = self._process.wait(wait)
        except subprocess.TimeoutExpired:
            return None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Death(f"died ({how}): {self._ended()}")

    def end(self) -> None:
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._ended()

    def _ended(self) -> str:
        with self._asking:
            if self._last_line is None:
                self._said.seek(0)
                lines = self._said.read().decode(errors="replace").strip().splitlines()
                self._last_line = lines[-1] if lines else "it said nothing"
                self._said.close()
            return self._last_line

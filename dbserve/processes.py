"""Child processes of `dbserve up`: started, awaited, watched, and stopped without a remainder."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dbserve.errors import StartupRefused

START_SECONDS = 90.0
STOP_SECONDS = 15.0
LONGEST_RESTART_WAIT = 30.0  # seconds
MOST_DOUBLINGS = 5  # 2.0 ** restarts alone would overflow, after a night of restarts
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One program. Its output goes to `log`; it dies with us, whatever happens to us."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    restart: bool = False  # bring it back when it dies; otherwise its death ends the service
    keeps_open: Sequence[int] = ()  # file descriptors it inherits
    started_at: float = field(default_factory=time.monotonic)
    log_start: int = 0  # where in the log this start of it begins

    def start(self) -> None:
        parent = os.getpid()
        with self.log.open("ab") as log:
            self.log_start = log.seek(0, os.SEEK_END)
            self.process = subprocess.Popen(  # noqa: S603
                self.command,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we stop the children in order
                pass_fds=self.keeps_open,
                preexec_fn=partial(_die_with_parent, parent) if sys.platform == "linux" else None,
            )
        self.started_at = time.monotonic()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to whatever of its process group is left."""
        if self.process is None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def said(self) -> str:
        """What it wrote since it was last started; the log holds earlier starts too."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
            return log.read().decode(errors="replace")

    def last_lines(self, count: int = 15) -> str:
        return "\n".join(self.said().splitlines()[-count:])


def _die_with_parent(parent: int) -> None:
    """In the child, before exec: the kernel sends SIGTERM when `dbserve up` is gone, however it went."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # gone before the kernel was asked
        os._exit(1)


def watch(children: Sequence[Child], say: Callable[[str], None]) -> None:
    """Brings back what may be brought back; raises StartupRefused when something else died."""
    while True:
        time.sleep(0.5)
        for child in children:
            code = child.process.poll() if child.process else None
            if code is None:
                continue
            if not child.restart:
                raise StartupRefused(f"{child.name} has ended with {code}; its last words:\n{child.last_lines()}")
            if time.monotonic() - child.started_at < _restart_wait(child.restarts):
                continue  # it dies at once: wait longer each time
            child.restarts += 1
            say(f"{child.name} ended with {code}; starting it again")
            child.start()


def _restart_wait(restarts: int) -> float:
    """Seconds between two starts of a child."""
    return min(2.0 ** min(restarts, MOST_DOUBLINGS), LONGEST_RESTART_WAIT)


def wait_until_ready(child: Child, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        code = child.process.poll() if child.process else None
        if code is not None:
            raise StartupRefused(f"{child.name} ended with {code}; its last words:\n{child.last_lines()}")
        if time.monotonic() > deadline:
            raise StartupRefused(f"{child.name} is not ready after {START_SECONDS:.0f} s; see {child.log}")
        time.sleep(0.05)

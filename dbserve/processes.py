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
from workers.presence import birth

START_SECONDS = 90.0
STOP_SECONDS = 15.0
LONGEST_RESTART_WAIT = 30.0  # seconds
MOST_DOUBLINGS = 5  # 2.0 ** restarts alone would overflow, after a night of restarts
LONG_LIFE = 60.0  # seconds after which a death is not a failed start
LOOK_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One program. Its output goes to `log`; it dies with us, whatever happens to us, and is brought back when it dies.

    It has a session of its own, which its descendants do not leave: so they are found when it is gone.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    answers: Callable[[], bool] = lambda: True  # whether others can use it
    leans_on: "Child | None" = None  # ends with that one, and starts when it answers
    keeps_open: Sequence[int] = ()  # file descriptors it inherits
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0  # since it last lived long
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None  # when its end was seen
    log_start: int = 0  # where in the log this start of it begins
    ground: subprocess.Popen[bytes] | None = None  # the very process that it was started to lean on

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
        self.ended_at = None
        self.ground = self.leans_on.process if self.leans_on else None

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to whatever of its session is left."""
        if self.process is None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole of its session; returns when nothing of it is left."""
        if self.process is None:
            return
        deadline = time.monotonic() + STOP_SECONDS
        while True:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            left = self.session()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if (self.process.poll() is not None and not left) or time.monotonic() > deadline:
                return
            time.sleep(0.02)

    def session(self) -> list[int]:
        """The living processes that it started, they started, and so on; itself too."""
        found: list[int] = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pid = int(entry.name)
                if self.process and os.getsid(pid) == self.process.pid and birth(pid) is not None:
                    found.append(pid)
        return found

    def ended(self) -> int | None:
        """Its exit code; None while it lives. What it leaves behind is killed when its end is first seen."""
        code = self.process.poll() if self.process else None
        if code is not None and self.ended_at is None:
            self.ended_at = time.monotonic()
            self.kill()
        return code

    def may_start(self, now: float) -> bool:
        """At once after a long life; after a short one it waits longer each time. Never before what it leans on."""
        if self.leans_on is not None and (self.leans_on.ended() is not None or not self.leans_on.answers()):
            return False
        return self.lived_long() or now - self.started_at >= _restart_wait(self.restarts)

    def lived_long(self) -> bool:
        return self.ended_at is not None and self.ended_at - self.started_at >= LONG_LIFE

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
    """Brings back whatever dies, for ever."""
    while True:
        time.sleep(LOOK_SECONDS)
        for child in children:
            revive(child, say)


def revive(child: Child, say: Callable[[str], None]) -> None:
    """One look at a child: starts it again where it has ended and may start."""
    if child.ended() is None:
        if child.leans_on is not None and (
            child.leans_on.ended() is not None or child.leans_on.process != child.ground
        ):
            child.kill()  # it may hang in a call that nobody answers any more
        return
    if child.may_start(time.monotonic()):
        assert child.process is not None
        say(f"{child.name} ended with {child.process.returncode}; starting it again")
        child.restarts = 0 if child.lived_long() else child.restarts + 1
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

"""What a node does that must go: it says so, waits for its workers, and tells those that stay."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import wait_for
from workers import leaving
from workers.leaving import leave, workers_of

OBEDIENT = "signal.signal(15, lambda *_: sys.exit(7))"
STUBBORN = "signal.signal(15, signal.SIG_IGN)"


@contextlib.contextmanager
def running(how: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that meets SIGTERM as `how` says, from when this yields."""
    program = f"import signal, sys, time; {how}; print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def _looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "LOOK_SECONDS", 0.02)


def pids(*processes: subprocess.Popen[bytes]) -> list[int]:
    return [process.pid for process in processes if process.poll() is None]


def test_a_node_without_workers_goes_at_once_and_has_said_so() -> None:
    said: list[float] = []
    assert leave(60.0, announce=said.append, workers=list)
    assert said == [60.0]


def test_workers_that_leave_by_themselves_are_waited_for_and_not_disturbed() -> None:
    with running(OBEDIENT) as worker:
        looks = iter([[worker.pid], [worker.pid], []])
        assert leave(600.0, announce=lambda _: None, workers=lambda: next(looks))
        assert worker.poll() is None


def test_workers_that_nobody_moved_get_sigterm_at_half_time() -> None:
    with running(OBEDIENT) as worker:
        assert leave(1.0, announce=lambda _: None, workers=lambda: pids(worker))
        assert worker.wait() == 7


def test_the_wait_ends_though_a_worker_does_not() -> None:
    with running(STUBBORN) as worker:
        assert not leave(0.3, announce=lambda _: None, workers=lambda: pids(worker))
        assert worker.poll() is None


def test_a_head_that_does_not_answer_keeps_nobody_waiting() -> None:
    never = threading.Event()
    assert leave(2.0, announce=lambda _: never.wait() and None, workers=list), "it hung for ever, otherwise"
    never.set()


@pytest.mark.parametrize(
    ("title", "found"),
    [("ray::BlockActor.work", True), ("ray::IDLE", False), ("ray::DashboardAgent", False), ("sleep", False)],
)
def test_workers_are_the_processes_that_ray_names_so_on_this_node(title: str, found: bool) -> None:
    environment = {**os.environ, "RAY_CLOUD_INSTANCE_ID": "this-pod"}
    process = subprocess.Popen(["bash", "-c", f"exec -a {title} sleep 60"], env=environment)
    try:
        wait_for(lambda: _cmdline(process.pid).startswith(title), seconds=10, what="its name")
        assert (process.pid in workers_of("this-pod")) is found
        assert process.pid not in workers_of("another-pod")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()

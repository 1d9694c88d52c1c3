"""A SIGTERM that comes too early is not lost."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from workers.termination import Termination


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


async def test_one_that_came_before_anybody_could_stop_is_told_when_somebody_can() -> None:
    termination, stopped = Termination(), asyncio.Event()
    os.kill(os.getpid(), signal.SIGTERM)
    termination.hand_over(stopped.set)
    assert stopped.is_set()


def test_a_process_that_never_has_anybody_to_tell_ends_all_the_same() -> None:
    code = """
import signal, time
from workers import termination
termination.TOLD_WITHIN_SECONDS = 0.05
made = termination.Termination()
print("made", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


async def test_one_that_comes_later_is_told_then() -> None:
    termination, stopped = Termination(), asyncio.Event()
    termination.hand_over(stopped.set)
    assert not stopped.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await stopped.wait()

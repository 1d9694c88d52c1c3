"""A SIGTERM that comes too early is not lost."""

import asyncio
import os
import signal
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


async def test_one_that_comes_later_is_told_then() -> None:
    termination, stopped = Termination(), asyncio.Event()
    termination.hand_over(stopped.set)
    assert not stopped.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await stopped.wait()

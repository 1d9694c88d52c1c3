"""Waiting for what must become true, in an event loop and outside of any."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

LOOK_SECONDS = 0.05


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Returns as soon as the condition holds; fails with `what` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(LOOK_SECONDS)


async def until(condition: Callable[[], bool]) -> None:
    """Lets everything else go on until it is; TimeoutError after ten seconds."""
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0)


async def eventually(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """The condition's first answer that counts as true; fails with `what` when there is none in time.

    The condition may be a coroutine's function, and one that hangs is not waited for either.
    """
    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            while True:
                answer = condition()
                if inspect.isawaitable(answer):
                    answer = await answer
                if answer:
                    return answer
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        assert not deadline.expired(), f"not within {seconds:g} s: {what}"
        raise

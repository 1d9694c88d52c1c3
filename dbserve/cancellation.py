"""Ending tasks that talk to Redis."""

import asyncio
from typing import Any

AGAIN_SECONDS = 0.2


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks until they have ended, however they end.

    Once is not enough: `asyncio.wait_for` of Python 3.11 drops a cancellation that comes when what it waits for is just
    done, and redis-py sends by it. A loop around Redis that is cancelled then simply goes on.
    """
    while pending := {task for task in tasks if not task.done()}:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=AGAIN_SECONDS)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # asked for, so that nobody warns of it

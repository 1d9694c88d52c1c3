"""SIGTERM, met from the worker's first line on: a machine that is wanted must not look like a crash."""

import asyncio
import signal
from collections.abc import Callable
from types import FrameType


class Termination:
    """Remembers a SIGTERM until there is something that can be told of it. Made in the process's main thread."""

    def __init__(self) -> None:
        self._came = False
        signal.signal(signal.SIGTERM, self._remember)

    def hand_over(self, stop: Callable[[], None]) -> None:
        """From now on `stop` is called, in the running event loop; at once where the signal has come already."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        if self._came:
            stop()

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True

"""SIGTERM, met from the worker's first line on: a machine that is wanted must not look like a crash."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

TOLD_WITHIN_SECONDS = 5.0


class Termination:
    """Remembers a SIGTERM until there is something that can be told of it. Made in the process's main thread.

    Ends the process where nothing can be told within TOLD_WITHIN_SECONDS: its store is away, or it never got work.
    """

    def __init__(self) -> None:
        self._came = False
        self._untold = threading.Timer(TOLD_WITHIN_SECONDS, os._exit, (0,))
        self._untold.daemon = True
        signal.signal(signal.SIGTERM, self._remember)

    def hand_over(self, stop: Callable[[], None]) -> None:
        """From now on `stop` is called, in the running event loop; at once where the signal has come already."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        self._untold.cancel()
        if self._came:
            stop()

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        if not self._came:
            self._came = True
            self._untold.start()

"""Lease: how long an attempt may take steps without a word from the store, by a clock that nobody sets."""

import time
from collections.abc import Callable

MARGIN_SECONDS = 1.0  # the worker's lease ends so much before the store's: it stops before another may start


class Lease:
    """Lasts `seconds` from when the last heartbeat that was answered had been sent.

    The monotonic clock runs on while the process is stopped, so that who was stopped for long finds its lease over.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self._lasts = seconds - MARGIN_SECONDS
        self._heard_at = clock()

    def renew(self, sent_at: float) -> None:
        """The store has answered what was sent at `sent_at` (of `now`)."""
        self._heard_at = max(self._heard_at, sent_at)

    @property
    def silence(self) -> float:
        """Seconds since the last answered heartbeat was sent."""
        return self.now() - self._heard_at

    @property
    def over(self) -> bool:
        return self.silence >= self._lasts

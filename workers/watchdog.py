"""What ends a worker that nobody else would: one whose raylet is gone, or whose event loop hangs."""

import os
import sys
import threading
import time
from collections.abc import Callable

from workers.lease import Lease

LOOK_SECONDS = 1.0
WEDGED_SECONDS = 30.0  # without a heartbeat even tried


def end_with_parent() -> None:
    """Ends the process once its parent (the raylet) is gone. Returns at once: a thread of its own looks."""
    parent = os.getppid()

    def look() -> str | None:
        return None if os.getppid() == parent else "its raylet is gone"

    _start("watch-parent", look)


def end_when_wedged(beats: Callable[[], int], lease: Lease) -> None:
    """Ends the process once its lease is over and `beats`, a count of heartbeats tried, has stood still for too long.

    Nobody would tell such a worker that it was given up. Returns at once: a thread of its own looks.
    """
    looks, seen = 0, beats()

    def look() -> str | None:
        # Looks are counted, not seconds: a process that was stopped and goes on has not hung meanwhile.
        nonlocal looks, seen
        before, seen = seen, beats()
        looks = looks + 1 if seen == before else 0
        return "its event loop hangs" if looks * LOOK_SECONDS >= WEDGED_SECONDS and lease.over else None

    _start("watch-event-loop", look)


def _start(name: str, look: Callable[[], str | None]) -> None:
    def watch() -> None:
        while (why := look()) is None:
            time.sleep(LOOK_SECONDS)
        sys.stderr.write(f"the worker ends: {why}\n")
        os._exit(1)  # no clean-up: the event loop or the training may be in a call that never returns

    threading.Thread(target=watch, name=name, daemon=True).start()

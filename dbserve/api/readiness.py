"""What the service needs, asked for without ever waiting long: a probe that hangs looks like a service that does."""

import asyncio
import logging
from collections.abc import Mapping

from starlette.concurrency import run_in_threadpool

from dbserve.artefacts import open_artefacts
from dbserve.errors import StorageError

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 2.0
AWAY = "unavailable"  # all that is said to whoever asks


class ArtefactProbe:
    """Asks the artefact store whether it is there; at most one question is open at a time, however many ask."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._asking: asyncio.Task[str | None] | None = None

    async def missing(self) -> str | None:
        """What is wrong with the store, in words; None: it is there."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(run_in_threadpool(self._ask))
        done, _ = await asyncio.wait({self._asking}, timeout=PATIENCE_SECONDS)
        return self._asking.result() if done else f"the artefact store has not answered for {PATIENCE_SECONDS:g} s"

    def _ask(self) -> str | None:
        try:
            open_artefacts(self._location).check()
        except StorageError as missing:
            return str(missing)
        return None


class Readiness:
    """What is missing: its name for whoever asks; for the log, once, why, in words that may name hosts and users."""

    def __init__(self) -> None:
        self._missing: frozenset[str] = frozenset()

    def told(self, needs: Mapping[str, str | None]) -> dict[str, str]:
        """What is missing. `needs`: what is wrong with each need, in words; None: it is there."""
        missing = {name: why for name, why in needs.items() if why is not None}
        for name in missing.keys() - self._missing:
            log.warning("not ready: %s: %s", name, missing[name])
        for name in self._missing - missing.keys():
            log.info("%s is there again", name)
        self._missing = frozenset(missing)
        return dict.fromkeys(missing, AWAY)

"""What the service needs, asked for without ever waiting long: a probe that hangs looks like a service that does."""

import asyncio

from starlette.concurrency import run_in_threadpool

from dbserve.artefacts import open_artefacts
from dbserve.errors import StorageError

PATIENCE_SECONDS = 2.0


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

"""A Redis that hangs is waited for once: until it answers again, requests are refused at once."""

import asyncio
import contextlib
from collections.abc import Generator

from dbserve.cancellation import end
from dbserve.errors import StoreSilent, StoreUnavailable
from dbserve.store import JobStore

PROBE_SECONDS = 0.25  # between one question in vain and the next


class Outage:
    """Begins when a request has waited for Redis in vain; ends when Redis answers a probe."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._why = ""
        self._probing: asyncio.Task[None] | None = None

    @property
    def lasts(self) -> bool:
        return self._probing is not None and not self._probing.done()

    def refuse(self) -> None:
        """Raises StoreUnavailable while it lasts."""
        if self.lasts:
            raise StoreUnavailable(self._why)

    @contextlib.contextmanager
    def noticing(self) -> Generator[None]:
        """For who answers, rather than raises, when the store is away."""
        try:
            yield
        except StoreSilent as silent:
            self.begin(silent)
            raise

    def begin(self, why: StoreSilent) -> None:
        """Called in the event loop, by every request that waited in vain; one probe is under way."""
        if not self.lasts:
            self._why = str(why)
            self._probing = asyncio.create_task(self._until_it_answers())

    async def _until_it_answers(self) -> None:
        while True:
            try:
                return await self._store.ping()
            except StoreSilent as silent:
                self._why = str(silent)
                await asyncio.sleep(PROBE_SECONDS)
            except StoreUnavailable:
                return None  # refused, which is an answer: a full Redis still reads

    async def aclose(self) -> None:
        if self._probing is not None:
            await end(self._probing)

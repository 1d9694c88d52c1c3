"""Open streams: so many of a key at a time, and none that outlives its key, also while it has nothing to say."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dbserve.cancellation import end
from dbserve.errors import TooManyStreams

log = logging.getLogger(__name__)

MOST_STREAMS = 100  # of one key in one process
LAST_WORD_SECONDS = 1.0  # for a reader to take that its stream is over


class OpenStreams:
    """The streams of one process."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def one_more(self, key_id: str | None) -> Generator[None]:
        """A key's place among them. None: no key is asked for, and nothing is counted. Raises TooManyStreams."""
        if key_id is None:
            yield
            return
        if self._open[key_id] >= MOST_STREAMS:
            raise TooManyStreams(f"this API key has {MOST_STREAMS} open streams here, and may have no more")
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1
            if not self._open[key_id]:
                del self._open[key_id]


class WhileItOpens(Response):
    """A stream that has its place as long as it lasts, and ends when its key no longer opens.

    What wants a place in vain is raised before the answer begins, so that it is answered as any other error.
    """

    def __init__(
        self,
        stream: Response,
        place: AbstractContextManager[None],
        still_opens: Callable[[], Awaitable[bool]],
        *,
        every_seconds: float,
    ) -> None:
        super().__init__(status_code=stream.status_code)
        self._stream = stream
        self._place = place
        self._still_opens = still_opens
        self._every_seconds = every_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            lifetime = anyio.CancelScope()
            asking = asyncio.create_task(self._ask(lifetime))
            try:
                with lifetime:
                    await self._stream(scope, receive, send)
            finally:
                await end(asking)
            if lifetime.cancelled_caught:
                with anyio.move_on_after(LAST_WORD_SECONDS):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ask(self, lifetime: anyio.CancelScope) -> None:
        """However it ends, the stream ends: none is left that nobody asks about."""
        try:
            while True:
                await asyncio.sleep(self._every_seconds)
                if not await self._still_opens():
                    return
        except Exception:
            log.exception("a stream ends, since nobody can say whether its key still opens")
        finally:
            lifetime.cancel()

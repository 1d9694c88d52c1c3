"""One stream of a job's events for all who follow it: every event is read and encoded once, and handed out as bytes.

A reader first replays the history by itself, and is then joined to the job's feed. One task looks for what has arrived
to all feeds together, LOOK_SECONDS apart, instead of one waiting connection a reader: no connection is held, a feed
that comes or goes interrupts nothing, and events that arrive close together travel in one write.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from contextvars import Context

from sse_starlette.event import ServerSentEvent

from dbserve.api.views import event_view
from dbserve.contracts.status import TERMINAL_JOB, LoggedEvent
from dbserve.errors import EventsGone, JobNotFound, StoreUnavailable
from dbserve.store import JobStore
from dbserve.store.history import JOB_FINISHED
from dbserve.store.keys import stream_order

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
REPLAYED_AT_ONCE = 200  # events; encoding them holds up the other readers
MOST_WAITING_BYTES = 256 * 1024  # for one reader; whoever lets more pile up is let go


def encode(event: LoggedEvent) -> bytes:
    """An event as a stream carries it."""
    return ServerSentEvent(event_view(event).model_dump_json(), event=event.kind, id=event.id, sep="\n").encode()


class Fanout:
    """The feeds of one process. A feed lives as long as it has readers and its job goes on."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._feeds: dict[str, _Feed] = {}
        self._watching: asyncio.Task[None] | None = None

    @property
    def feeds(self) -> int:
        """How many jobs are watched."""
        return len(self._feeds)

    async def follow(self, job_id: str, after: str | None) -> AsyncGenerator[bytes]:
        """Events after an id (None: from the first) until the job has ended: pieces of one event or several.

        It ends early where the reader is too slow, the job is deleted, the history was trimmed, or Redis goes away.
        Nothing is ever left out in between: coming back with the last id received, one gets the rest or is told (410).
        """
        reader = _Reader()
        with self._watched(job_id) as feed, contextlib.suppress(EventsGone, JobNotFound, StoreUnavailable):
            if feed.position is None:
                newest = await self._store.history.newest_event(job_id)
                feed.position = feed.position or newest
            last: str | None = None  # kind of the last event seen
            joined = ended = False
            while not joined:
                known = feed.position
                batch = await self._store.history.events(job_id, after=after, limit=REPLAYED_AT_ONCE)
                if batch:
                    after, last = batch[-1].id, batch[-1].kind
                elif ended:
                    return
                whole = len(batch) < REPLAYED_AT_ONCE
                # Where the job has ended it is read once more, for what was written between the two looks.
                ended = whole and last in (None, JOB_FINISHED) and await self._ended(job_id)
                # From here to the joining nothing else runs: what the feed handed out so far has been read above.
                joined = whole and not ended and (feed.position == known or _reaches(after, feed.position))
                if joined:
                    feed.join(reader, after or "0")
                if batch:
                    yield b"".join(map(encode, batch))
            async for piece in reader.pieces():
                yield piece

    @contextlib.contextmanager
    def _watched(self, job_id: str) -> Generator["_Feed"]:
        """The job's feed, begun by its first reader and given up by its last."""
        feed = self._feeds.setdefault(job_id, _Feed(job_id))
        feed.interested += 1
        if self._watching is None:
            # a context of its own: in that of the request that came first, its lines would have that request's id
            self._watching = asyncio.create_task(self._watch(), name="events of watched jobs", context=Context())
        try:
            yield feed
        finally:
            feed.interested -= 1
            if not feed.interested:
                self._end(feed)

    def _end(self, feed: "_Feed") -> None:
        feed.end()
        if self._feeds.get(feed.job_id) is feed:
            del self._feeds[feed.job_id]

    async def _watch(self) -> None:
        """Whatever ends it ends every stream, so that none is left waiting for events that nobody reads."""
        try:
            while self._feeds:
                await asyncio.sleep(LOOK_SECONDS)
                await self._look()
        except StoreUnavailable as away:
            log.warning("event streams end: %s", away)
        except Exception:
            log.exception("event streams end")
        finally:
            self._watching = None
            for feed in list(self._feeds.values()):
                self._end(feed)

    async def _look(self) -> None:
        watched = [(feed, feed.position) for feed in self._feeds.values() if feed.position is not None]
        if not watched:
            return
        arrived = await self._store.history.arrivals({feed.job_id: position for feed, position in watched})
        for feed, _ in watched:
            events = arrived.get(feed.job_id)
            if events:
                feed.hand_out(events)
            if events is None or (events and events[-1].kind == JOB_FINISHED and await self._ended(feed.job_id)):
                self._end(feed)

    async def _ended(self, job_id: str) -> bool:
        """Whether nothing more will happen to the job unless somebody asks for it; a deleted one has ended, too."""
        try:
            return (await self._store.outline(job_id)).status in TERMINAL_JOB
        except JobNotFound:
            return True


class _Feed:
    """What happens to one job, handed to its readers as it happens."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.interested = 0  # readers that were joined, and those that still replay
        self.position: str | None = None  # id of the last event handed out; None: not begun
        self._over = False
        self._readers: dict[_Reader, str] = {}  # -> id of the last event it had when it was joined

    def join(self, reader: "_Reader", after: str) -> None:
        """From now on the reader gets what comes after that id."""
        if self._over:
            reader.end()
        else:
            self._readers[reader] = after

    def hand_out(self, events: Sequence[LoggedEvent]) -> None:
        before, self.position = self.position, events[-1].id
        encoded = [(event.id, encode(event)) for event in events]
        everything = b"".join(piece for _, piece in encoded)
        for reader, had in list(self._readers.items()):
            if _reaches(before, had):
                taken = reader.take(everything)
            else:  # it has replayed further than the feed had come
                taken = reader.take(b"".join(piece for event_id, piece in encoded if not _reaches(had, event_id)))
            if not taken:
                log.info("a reader of %s's events is too slow, and let go", self.job_id, extra={"job_id": self.job_id})
                del self._readers[reader]

    def end(self) -> None:
        self._over = True
        for reader in self._readers:
            reader.end()
        self._readers.clear()


class _Reader:
    """What waits to be sent to one client, never more than MOST_WAITING_BYTES and one hand-out."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._over = False
        self._news = asyncio.Event()

    def take(self, piece: bytes) -> bool:
        """False: too much waits already; the reader is ended, and gets none of it."""
        if self._waiting and self._bytes + len(piece) > MOST_WAITING_BYTES:
            self._waiting.clear()
            self.end()
            return False
        if piece:
            self._waiting.append(piece)
            self._bytes += len(piece)
            self._news.set()
        return True

    def end(self) -> None:
        """No more will come; what waits is still sent."""
        self._over = True
        self._news.set()

    async def pieces(self) -> AsyncGenerator[bytes]:
        """All that waits, in one piece, each time the client can take more."""
        while True:
            await self._news.wait()
            self._news.clear()
            if self._waiting:
                piece = b"".join(self._waiting)
                self._waiting.clear()
                self._bytes = 0
                yield piece
            if self._over and not self._waiting:
                return


def _reaches(event_id: str | None, other: str | None) -> bool:
    """Whether an id is the other one or a later one; None comes before every id."""
    return other is None or (event_id is not None and stream_order(event_id) >= stream_order(other))

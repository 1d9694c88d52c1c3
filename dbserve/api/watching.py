"""Jobs that are watched as they stand: one look a second at each, and one encoding, however many watch it.

Unlike events, views replace each other. So nothing is queued: what a slow reader gets next is simply the newest.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import AsyncGenerator, Generator
from contextvars import Context
from dataclasses import dataclass, field

from sse_starlette.event import ServerSentEvent

from dbserve.api.views import job_view
from dbserve.contracts.status import TERMINAL_JOB
from dbserve.errors import JobNotFound, StoreUnavailable
from dbserve.store import JobStore

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
END = ServerSentEvent("{}", event="end", sep="\n").encode()


@dataclass(frozen=True)
class EncodedView:
    """A job as a stream carries it. Views of the same content have the same id, whichever process made them."""

    id: str
    encoded: bytes
    ended: bool  # nothing more will happen to the job unless somebody asks for it


@dataclass
class _Watched:
    """A job that somebody watches."""

    job_id: str
    view: EncodedView
    readers: int = 0
    over: bool = False  # nobody looks any more
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # set, and replaced, with every change

    def show(self, view: EncodedView) -> None:
        self.view = view
        self._tell()

    def end(self) -> None:
        self.over = True
        self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class LiveViews:
    """The watched jobs of one process."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._watched: dict[str, _Watched] = {}
        self._looking: dict[str, asyncio.Task[EncodedView]] = {}
        self._watching: set[asyncio.Task[None]] = set()  # a task that nobody holds may be collected

    @property
    def watched(self) -> int:
        """How many jobs are looked at."""
        return len(self._watched)

    async def newest(self, job_id: str) -> EncodedView:
        """The job as it was seen last; looked at now where nobody watches it. Raises JobNotFound, StoreUnavailable."""
        if (watched := self._watched.get(job_id)) is not None:
            return watched.view
        looking = self._looking.get(job_id)
        if looking is None:  # readers that come together, say after a restart, share the look
            looking = self._looking[job_id] = asyncio.create_task(self._look(job_id))
            looking.add_done_callback(lambda _: self._looking.pop(job_id))
        return await asyncio.shield(looking)

    async def follow(self, job_id: str, first: EncodedView, seen: str | None) -> AsyncGenerator[bytes]:
        """Every change after the view `seen`, beginning with `first`; closed by an event `end` when the job has ended.

        Without that event it was cut off: the job was deleted, or Redis went away.
        """
        with self._reading(job_id, first) as watched:
            while True:
                changed, view = watched.changed, watched.view
                if view.id != seen:
                    seen = view.id
                    yield view.encoded
                elif view.ended:
                    yield END
                    return
                elif watched.over:
                    return
                else:
                    await changed.wait()

    @contextlib.contextmanager
    def _reading(self, job_id: str, first: EncodedView) -> Generator[_Watched]:
        """The watched job, begun by its first reader; it is looked at once more after its last one has left."""
        watched = self._watched.get(job_id)
        if watched is None:
            watched = self._watched[job_id] = _Watched(job_id, first)
            # a context of its own: it outlives the request that came first, whose id would be on its lines
            watching = asyncio.create_task(self._watch(watched), name=f"watching {job_id}", context=Context())
            self._watching.add(watching)
            watching.add_done_callback(self._watching.discard)
        watched.readers += 1
        try:
            yield watched
        finally:
            watched.readers -= 1

    async def _watch(self, watched: _Watched) -> None:
        """Whatever ends it ends every stream, so that none is left waiting for views that nobody makes."""
        try:
            while not watched.view.ended:
                await asyncio.sleep(LOOK_SECONDS)
                if not watched.readers:
                    return
                view = await self._look(watched.job_id)
                if view.id != watched.view.id:
                    watched.show(view)
        except (JobNotFound, StoreUnavailable) as gone:
            log.info("live views of %s end: %s", watched.job_id, gone, extra={"job_id": watched.job_id})
        except Exception:
            log.exception("live views of %s end", watched.job_id, extra={"job_id": watched.job_id})
        finally:
            del self._watched[watched.job_id]
            watched.end()

    async def _look(self, job_id: str) -> EncodedView:
        snapshot = await self._store.snapshot(job_id)
        # A viewer who lists events asks for more only where this has moved.
        newest = await self._store.history.newest_event(job_id)
        view = job_view(snapshot).model_dump(mode="json", exclude={"spec"}) | {"newest_event": newest}
        body = json.dumps(view, separators=(",", ":"))
        view_id = hashlib.sha256(body.encode()).hexdigest()[:16]
        encoded = ServerSentEvent(body, event="job", id=view_id, sep="\n").encode()
        return EncodedView(view_id, encoded, ended=snapshot.status in TERMINAL_JOB)

"""What happened to a job and what its workers said: pages, and streams that replay and never hide a gap."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse

from dbserve.api.auth import Asking, Caller
from dbserve.api.context import Services, With
from dbserve.api.negotiation import preferred
from dbserve.api.problems import problems
from dbserve.api.streams import WhileItOpens
from dbserve.api.tenancy import JobId
from dbserve.api.views import event_view, log_view
from dbserve.contracts.status import TERMINAL_JOB, LogLine
from dbserve.contracts.views import EventView, LogView, Page
from dbserve.errors import ConfigInvalid, JobNotFound, StoreUnavailable
from dbserve.loglines import Level, at_least, log_text
from dbserve.store import JobStore
from dbserve.store.keys import stream_order

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["history"])

T = TypeVar("T")

HEARTBEAT_SECONDS = 15
SLOWEST_READER_SECONDS = 60  # a client that takes nothing for so long is let go
LOOK_SECONDS = 0.3  # between two looks for new log lines
QUIET_SECONDS = 1.5  # without a line, before it is asked whether the job has ended

ID = r"^[0-9]{1,18}(-[0-9]{1,18})?$"

LastEventId = Annotated[  # a header that may be left out is not one that may be null
    Annotated[str, Field(pattern=ID)] | SkipJsonSchema[None],
    Header(description="what an EventSource sends when it reconnects"),
]


class EventsQuery(BaseModel, extra="forbid"):
    after: str | None = Field(default=None, pattern=ID, description="id of the last event already seen")
    limit: int = Field(default=100, ge=1, le=1000, description="of a JSON page")


class LogsQuery(BaseModel, extra="forbid"):
    block: int | None = Field(default=None, ge=0, description="of one block; or name any task with `task`")
    task: str | None = Field(default=None, max_length=64)
    attempt: int | None = Field(default=None, ge=1)
    level: Level | None = Field(default=None, description="lines of this level and above; all of them by default")
    tail: int = Field(default=200, ge=0, le=10_000, description="how many of the last lines")
    follow: bool = Field(default=False, description="go on as lines arrive, until the job has ended")


def _stream_too(*media_types: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {media_type: {"schema": {"type": "string"}} for media_type in media_types}}}


@router.get(
    "/events",
    response_model=Page[EventView],
    responses={**_stream_too("text/event-stream"), **problems(404, 410)},
)
async def events(
    request: Request,
    job_id: JobId,
    services: With,
    caller: Asking,
    query: Annotated[EventsQuery, Query()],
    last_event_id: LastEventId = None,
) -> object:
    """Events, oldest first: a JSON page, or a stream when text/event-stream is asked for.

    The stream replays what came after Last-Event-ID (or `after`), then goes on live, with a comment every 15 s, and
    ends after the `job_finished` of a job that was not tried again; asked again after that, it answers 204, at which an
    EventSource stops. A stream that ends earlier (the reader was too slow, Redis is away) is to be asked for again.
    410: events after that id were dropped from the history.
    """
    store = services.store
    if preferred(request, "application/json", "text/event-stream") == "application/json":
        found = await store.history.events(job_id, after=query.after, limit=query.limit + 1)
        data = tuple(event_view(event) for event in found[: query.limit])
        return Page(data=data, has_more=len(found) > query.limit, next=data[-1].id if data else None)
    after = last_event_id or query.after
    first = await store.history.events(job_id, after=after, limit=1)  # what is wrong is said before the stream begins
    if not first and await _ended(store, job_id):
        return Response(status_code=204)
    return event_stream(services, caller, services.fanout.follow(job_id, after))


@router.get(
    "/logs",
    response_model=Page[LogView],
    responses={**_stream_too("text/plain", "text/event-stream"), **problems(404)},
)
async def logs(
    request: Request,
    job_id: JobId,
    services: With,
    caller: Asking,
    query: Annotated[LogsQuery, Query()],
    last_event_id: LastEventId = None,
) -> object:
    """The last lines that workers logged, as JSON or text/plain; with `follow`, a stream of text or of events."""
    store = services.store
    chosen = await _Chosen.among(store, job_id, query)
    if query.follow:
        lines = _tail_then_follow(store, job_id, chosen, query.tail, last_event_id)
        if preferred(request, "text/event-stream", "text/plain") == "text/plain":
            text = StreamingResponse(_as_text(services, caller, lines), media_type="text/plain")
            return _while_its_key_opens(services, caller, text, HEARTBEAT_SECONDS)
        return event_stream(services, caller, _as_log_events(lines))
    found = await store.history.logs(job_id, **chosen.model_dump(), tail=query.tail)
    if preferred(request, "application/json", "text/plain") == "text/plain":
        return PlainTextResponse("".join(map(_text_line, found)))
    return Page(data=tuple(log_view(line) for line in found))


async def _as_log_events(lines: AsyncGenerator[LogLine]) -> AsyncGenerator[bytes]:
    """Closed by an event `end`, which tells a reader that nothing will follow from a stream that was cut off."""
    try:
        async for line in lines:
            view = log_view(line)
            yield ServerSentEvent(view.model_dump_json(), event="log", id=view.id, sep="\n").encode()
    except (JobNotFound, StoreUnavailable):
        return
    yield ServerSentEvent("{}", event="end", sep="\n").encode()


class _Chosen(BaseModel, frozen=True):
    """Which lines are asked for. None: of every one."""

    task: str | None
    attempt: int | None
    level: Level | None

    @classmethod
    async def among(cls, store: JobStore, job_id: str, query: LogsQuery) -> "_Chosen":
        """Raises JobNotFound, or ConfigInvalid for a task that the job does not have."""
        outline = await store.outline(job_id)
        if query.task is not None and query.block is not None:
            raise ConfigInvalid("give block or task, not both", "/query/block", code="invalid_parameter")
        task = query.task if query.block is None else f"block-{query.block}"
        if task is not None and task not in outline.tasks:
            place = "/query/task" if query.block is None else "/query/block"
            raise ConfigInvalid("the job has no such task", place, code="invalid_parameter")
        return cls(task=task, attempt=query.attempt, level=query.level)

    def __contains__(self, line: LogLine) -> bool:
        chosen = self.task in (None, line.task) and self.attempt in (None, line.attempt)
        return chosen and at_least(line.level, self.level)


async def _tail_then_follow(
    store: JobStore, job_id: str, chosen: _Chosen, tail: int, after: str | None
) -> AsyncGenerator[LogLine]:
    """The tail, then what arrives; with `after`, what came since then. Ends when the job has, and is silent."""
    if after is None:
        newest = await store.history.logs(job_id, tail=1)
        after = newest[-1].id if newest else "0"
        for line in await store.history.logs(job_id, **chosen.model_dump(), tail=tail):
            yield line
            if stream_order(line.id) > stream_order(after):  # said since the look at the newest
                after = line.id
    ended, quiet = False, QUIET_SECONDS
    while True:
        batch = await store.history.logs_since(job_id, after)
        for line in batch:
            after = line.id
            if line in chosen:
                yield line
        if batch:
            ended, quiet = False, QUIET_SECONDS if ended else 0.0
            continue
        if ended:
            return
        if quiet >= QUIET_SECONDS:
            ended, quiet = await _ended(store, job_id), 0.0
        await asyncio.sleep(LOOK_SECONDS)
        quiet += LOOK_SECONDS


async def _ended(store: JobStore, job_id: str) -> bool:
    return (await store.outline(job_id)).status in TERMINAL_JOB


def event_stream(
    services: Services, caller: Caller, content: AsyncGenerator[bytes], *, heartbeat: float | None = None
) -> Response:
    """A stream of encoded events with a comment every `heartbeat` (None: HEARTBEAT_SECONDS), counted while it lasts.

    Nothing more is sent once the caller's key was revoked or has expired; it ends at the next heartbeat.
    """
    seconds = HEARTBEAT_SECONDS if heartbeat is None else heartbeat
    stream = EventSourceResponse(
        _while_it_opens(services, caller, content),
        sep="\n",
        ping=seconds,
        ping_message_factory=lambda: ServerSentEvent(comment="heartbeat", sep="\n"),
        send_timeout=SLOWEST_READER_SECONDS,
    )
    return _while_its_key_opens(services, caller, stream, seconds)


def _while_its_key_opens(services: Services, caller: Caller, stream: Response, every_seconds: float) -> Response:
    def still_opens() -> Awaitable[bool]:
        return services.door.still_opens(caller.identity)

    place = services.streams.one_more(caller.key_id)
    return WhileItOpens(stream, place, still_opens, every_seconds=every_seconds)


async def _as_text(services: Services, caller: Caller, lines: AsyncGenerator[LogLine]) -> AsyncGenerator[str]:
    with suppress(JobNotFound, StoreUnavailable):
        async with aclosing(_while_it_opens(services, caller, lines)) as told:
            async for line in told:
                yield _text_line(line)


async def _while_it_opens(services: Services, caller: Caller, content: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """Counted among the streams, and ended with the caller's key."""
    with services.http.sse_clients.track_inprogress():
        async with aclosing(content):
            async for piece in content:
                if not await services.door.still_opens(caller.identity):
                    return
                yield piece


def _text_line(line: LogLine) -> str:
    view = log_view(line)
    place = f"{view.task}#{view.attempt}"
    return log_text(f"{view.at:%Y-%m-%dT%H:%M:%S}Z", place, view.level, view.message, view.fields) + "\n"

"""A job as it stands, sent whenever it has changed."""

from typing import Annotated

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from dbserve.api.auth import Asking
from dbserve.api.context import With
from dbserve.api.events import event_stream
from dbserve.api.problems import problems
from dbserve.api.tenancy import JobId

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["history"])

HEARTBEAT_SECONDS = 3

LastSeen = Annotated[
    str | None, Header(alias="Last-Event-ID", pattern=r"^[0-9a-f]{1,64}$", description="id of the last view received")
]


@router.get(
    "/live",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "The job has ended, and its last view was received"},
        **problems(404),
    },
)
async def live(job_id: JobId, services: With, caller: Asking, last_seen: LastSeen = None) -> Response:
    """The job whenever it has changed, once a second at most: events `job`, each GET /v1/jobs/{job_id} less its `spec`.

    `newest_event` is added: the id of the last event of its history. A reader that is slow misses views, never the
    newest. A comment comes every 3 s, so that silence is soon noticed; after the last view of a job that has ended,
    an event `end`. A stream that ends without it is to be asked for again, with Last-Event-ID; where the job had
    ended before, that is answered 204, at which an EventSource stops.
    """
    services.outage.refuse()
    view = await services.live.newest(job_id)
    if view.ended and view.id == last_seen:
        return Response(status_code=204)
    views = services.live.follow(job_id, view, last_seen)
    return event_stream(services, caller, views, heartbeat=HEARTBEAT_SECONDS)

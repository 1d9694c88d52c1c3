"""Where the trace of a job begins: the request that submits it."""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Header, Request

from dbserve.api.context import With
from dbserve.tracing import Span, Trace

TraceParent = Annotated[
    str | None,
    Header(
        description="W3C trace context; the job's trace continues it, where the server traces. A bad one is ignored."
    ),
]


async def _request_span(request: Request, services: With, traceparent: TraceParent = None) -> AsyncGenerator[Span]:
    about = {"http.request.method": request.method, "http.route": request.scope["route"].path}
    trace = Trace(services.tracer, traceparent or "")
    with trace.span(f"{about['http.request.method']} {about['http.route']}", about) as span:
        yield span


Traced = Annotated[Span, Depends(_request_span)]

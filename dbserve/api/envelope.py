"""What surrounds every request, as plain ASGI: its id, its metrics, its log line, its body's limits, the last catch."""

import asyncio
import logging
import re
import uuid
from typing import cast

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from dbserve.api.access import Access
from dbserve.api.guards import guard
from dbserve.api.problems import from_http, unexpected
from dbserve.metrics import HttpMetrics

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024 * 1024
BODY_SECONDS = 60.0  # for the whole of a body
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Envelope:
    """Gives a request its id (from X-Request-ID, when sane), counts it, and turns what nobody caught into a 500."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        access = Access(scope)

        async def send_marked(message: Message) -> None:
            access.note(message)
            if message["type"] == "http.response.start":
                said = cast("dict[str, str]", scope["state"].get("headers", {}))
                more = [(name.lower().encode(), value.encode()) for name, value in said.items()]
                guard(message["headers"], [(b"x-request-id", request_id.encode()), *more])
                self._metrics.observe(scope["method"], access.route, access.status, access.seconds)
            await send(message)

        with bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_marked)
            except ClientDisconnect:
                log.info("request %s: the client left before its body was read", request_id)
            except Exception as error:
                response = unexpected(Request(scope), error)
                if access.status:  # too late to answer otherwise: break the connection, so that the client sees it
                    raise
                await response(scope, receive, send_marked)
            finally:
                access.tell()
        return None


class BodyLimit:
    """Refuses bodies over 1 MiB: by Content-Length at once, and while they stream in, however they are sent.

    And those that trickle in for longer than BODY_SECONDS, and compressed ones, whose size nobody knows.
    """

    def __init__(self, app: ASGIApp, *, limit: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._limit:
            return await from_http(Request(scope), self._too_large())(scope, receive, send)
        if headers.get("content-encoding", "identity").lower() != "identity":
            plain = HTTPException(415, "send the body as it is, without Content-Encoding")
            return await from_http(Request(scope), plain)(scope, receive, send)
        received = 0
        due: float | None = asyncio.get_running_loop().time() + BODY_SECONDS  # None: it is there

        async def receive_counted() -> Message:
            nonlocal received, due
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                why = f"the body did not come within {BODY_SECONDS:g} s"
                raise HTTPException(408, why, headers={"Connection": "close"}) from None
            if not message.get("more_body", False):
                due = None
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        return await self._app(scope, receive_counted, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self._limit} bytes", headers={"Connection": "close"})

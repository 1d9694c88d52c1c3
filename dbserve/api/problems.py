"""Every error leaves as application/problem+json (RFC 9457): what it is, where it is, and under which request id."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import JsonValue
from starlette.exceptions import HTTPException

from dbserve.api.auth import identity_of
from dbserve.api.scopes import methods_at
from dbserve.contracts.views import FaultView, Problem
from dbserve.errors import (
    ArchitectureNotFound,
    BlockNotFound,
    ClusterUnavailable,
    ConfigInvalid,
    DbserveError,
    EventsGone,
    ForeignRequest,
    IdempotencyMismatch,
    IllegalTransition,
    JobNotFound,
    JobNotPaused,
    JobNotTerminal,
    JobTerminal,
    KeyEnded,
    KeyNotFound,
    ModelNotFound,
    NothingToRetry,
    ProjectForbidden,
    QuotaExceeded,
    RateLimited,
    ReportNotReady,
    ScopeMissing,
    SpecInvalid,
    StaleRun,
    StoreSilent,
    StoreUnavailable,
    TooManyKeys,
    TooManyStreams,
    TooManyWebhooks,
    WebhookNotFound,
)
from dbserve.plaintree import pointer

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 2
BAD_PARAMETER = "A parameter of the request is invalid."

_STATUS: Mapping[type[DbserveError], int] = {
    ConfigInvalid: 422,
    IdempotencyMismatch: 422,
    JobNotFound: 404,
    BlockNotFound: 404,
    ModelNotFound: 404,
    ArchitectureNotFound: 404,
    WebhookNotFound: 404,
    KeyNotFound: 404,
    ScopeMissing: 403,
    ProjectForbidden: 403,
    ForeignRequest: 403,
    KeyEnded: 409,
    TooManyKeys: 409,
    RateLimited: 429,
    TooManyStreams: 429,
    ReportNotReady: 409,
    JobNotTerminal: 409,
    JobTerminal: 409,
    JobNotPaused: 409,
    NothingToRetry: 409,
    QuotaExceeded: 429,
    TooManyWebhooks: 409,
    IllegalTransition: 409,
    StaleRun: 409,
    EventsGone: 410,
    StoreUnavailable: 503,
    ClusterUnavailable: 503,
}

_HTTP_CODES = {401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 406: "not_acceptable"} | {
    408: "body_too_slow",
    413: "body_too_large",
    415: "unsupported_media_type",
}


def problem_response(
    request: Request,
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    errors: Sequence[FaultView] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error as a response. `title` is the kind's meaning, `detail` this occurrence."""
    problem = Problem(
        type=f"urn:dbserve:problem:{code}",
        title=title,
        status=status,
        detail=detail,
        instance=request.url.path,
        code=code,
        request_id=request.scope.get("state", {}).get("request_id", ""),
        errors=tuple(errors),
    )
    return JSONResponse(problem.model_dump(mode="json"), status_code=status, headers=headers, media_type=MEDIA_TYPE)


def explained(request: Request, error: DbserveError) -> Response:
    """A typed error of ours."""
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
    title = (type(error).__doc__ or error.code).partition("\n")[0]
    errors: tuple[FaultView, ...] = ()
    match error:
        case SpecInvalid():
            errors = tuple(FaultView(**fault._asdict()) for fault in error.faults)
        case ConfigInvalid():
            errors = (FaultView(pointer=error.pointer, code=error.code, message=str(error)),)
            title = BAD_PARAMETER if error.pointer.startswith(("/query/", "/header/")) else title
        case _:
            pass
    if status >= 500:
        log.warning("%s: %s", error.code, error)
    wait = error.retry_after if isinstance(error, RateLimited) else RETRY_AFTER_SECONDS
    headers = {"Retry-After": str(wait)} if status in {429, 503} else None
    # The driver's words have hosts, ports and users of ours in them: no stranger's business.
    known = not isinstance(error, StoreUnavailable) or identity_of(request.state) is not None
    detail = str(error) if known else title
    return problem_response(request, status, error.code, title, detail, errors=errors, headers=headers)


async def in_vain(request: Request, error: StoreSilent) -> Response:
    """One request has waited for Redis; those that come after it need not."""
    request.app.state.services.outage.begin(error)
    return explained(request, error)


def unexpected(request: Request, error: Exception) -> Response:
    """A mistake of ours: the log has the story, the answer has the id to find it by."""
    request_id = request.scope.get("state", {}).get("request_id", "")
    log.error("request %s failed: %s %s", request_id, request.method, request.url.path, exc_info=error)
    return problem_response(
        request,
        500,
        "internal_error",
        "The server failed.",
        "The server failed; its log tells why under this request id.",
    )


def from_http(request: Request, error: HTTPException) -> Response:
    """No such route, no such method, and what the middlewares refuse."""
    code, headers = _HTTP_CODES.get(error.status_code, "http_error"), dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := methods_at(request.url.path)):
        headers["Allow"] = ", ".join(methods)  # of all the path's routes: the framework knows of the first alone
    title = HTTPStatus(error.status_code).phrase
    return problem_response(request, error.status_code, code, title, str(error.detail), headers=headers or None)


def invalid_parameters(request: Request, error: RequestValidationError) -> Response:
    """Query, path and header parameters. FastAPI's own answer would echo the input."""
    faults = [
        FaultView(
            pointer=pointer(*cast("tuple[str | int, ...]", fault["loc"])),
            code="unknown_parameter" if fault["type"] == "extra_forbidden" else fault["type"],
            message="no such parameter" if fault["type"] == "extra_forbidden" else fault["msg"],
        )
        for fault in cast("Sequence[dict[str, Any]]", error.errors())
    ]
    detail = f"{faults[0].pointer}: {faults[0].message}" if faults else "invalid parameters"
    return problem_response(request, 422, "invalid_parameter", BAD_PARAMETER, detail, errors=faults)


def install(app: FastAPI) -> None:
    """Make every expected exception a problem. What is left over is caught by the outermost middleware."""
    handlers: dict[Any, Any] = {
        DbserveError: explained,
        StoreSilent: in_vain,
        HTTPException: from_http,
        RequestValidationError: invalid_parameters,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _documented(status: int, meaning: str) -> dict[str, Any]:
    schema: dict[str, JsonValue] = {"$ref": "#/components/schemas/Problem"}
    return {"description": meaning, "content": {MEDIA_TYPE: {"schema": schema}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: _documented(status, meaning)
    for status, meaning in {
        401: "The API key is missing, wrong, or has ended",
        403: "The API key may not do this, or not in this project",
        404: "Not known",
        408: "The body did not come within 60 s",
        409: "Not possible as things stand",
        410: "The history was trimmed; read the state and start again",
        413: "The body is larger than 1 MiB",
        415: "Neither JSON nor YAML, or compressed",
        422: "Invalid; `errors` points at each fault",
        429: "Too many requests within a minute, or as many unfinished jobs or open streams as there may be; see "
        "Retry-After",
        500: "The server failed",
        503: "Redis does not answer; try again after Retry-After seconds",
    }.items()
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for its OpenAPI description. 422: each may be asked for in a project."""
    return {status: PROBLEMS[status] for status in sorted({*statuses, 401, 403, 422, 429, 500, 503})}

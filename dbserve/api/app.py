"""Wiring: settings and a store become the ASGI application."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from dbserve import __version__
from dbserve.api import (
    architectures,
    audit,
    cluster,
    documentation,
    events,
    jobs,
    keys,
    live,
    models,
    ops,
    page,
    problems,
    reports,
    webhooks,
)
from dbserve.api.auditing import Auditing
from dbserve.api.auth import permit
from dbserve.api.context import Services
from dbserve.api.envelope import BodyLimit, Envelope
from dbserve.api.guards import CORS_ASKS, CORS_METHODS, CORS_SHOWS
from dbserve.artefacts import open_artefacts
from dbserve.contracts.job import JobSpec
from dbserve.contracts.views import Problem
from dbserve.errors import StorageError, StoreUnavailable
from dbserve.settings import Settings
from dbserve.store import JobStore
from dbserve.tracing import open_tracer

log = logging.getLogger(__name__)

REDIS_TIMEOUT_SECONDS = 2.5  # a Redis that hangs is soon said to be away; no read of the API's waits for anything


def create_app(settings: Settings, store: JobStore | None = None) -> FastAPI:
    """The API. It starts, and answers /healthz, whether or not Redis does; it connects with the first request.

    A store that is handed in stays open; the one opened here is closed when the application ends.
    Raises ConfigInvalid for an unusable redis_url, StartupRefused where traces are asked for and cannot be made.
    """
    tracer = open_tracer(settings.otlp_endpoint, "api")
    opened = store or JobStore.at(settings.redis, timeout=REDIS_TIMEOUT_SECONDS)
    services = Services(settings, opened, tracer=tracer)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        with suppress(StorageError):  # /readyz tells when it cannot be made
            open_artefacts(settings.artifacts).prepare()
        try:
            await services.opened.schema.upgrade()
            await services.opened.ping()
        except StoreUnavailable as away:
            log.warning("starting without Redis; requests are answered with 503 until it is there: %s", away)
        try:
            yield
        finally:
            await services.outage.aclose()
            if store is None:
                await services.opened.aclose()
            await asyncio.to_thread(tracer.flush)

    app = _Api(
        title="dbserve",
        version=__version__,
        summary="Train residual networks as independent denoising blocks.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # ours is stricter
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = services
    problems.install(app)
    for kind in (jobs, events, live, reports, models, architectures, webhooks, keys, audit, cluster):
        app.include_router(kind.router, dependencies=[Depends(permit)])
    for kind in (ops, page, documentation):
        app.include_router(kind.router)
    app.add_middleware(BodyLimit)
    if origins := settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_ASKS,
            expose_headers=CORS_SHOWS,
        )
    app.add_middleware(Auditing, services=services)
    app.add_middleware(Envelope, metrics=services.http)  # added last: the outermost
    return app


class _Api(FastAPI):
    """FastAPI whose document also holds what routes refer to by name: the job they read, the problems they answer."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schemas: dict[str, Any] = super().openapi()["components"]["schemas"]
            template = "#/components/schemas/{model}"
            job = JobSpec.model_json_schema(ref_template=template + "-Input")
            problem = Problem.model_json_schema(ref_template=template)
            nested = {f"{name}-Input": schema for name, schema in job.pop("$defs").items()} | problem.pop("$defs")
            schemas.update(nested | {"JobSpec-Input": job, "Problem": problem})
        return super().openapi()

"""For those who operate the service: is it alive, is it ready, what does it count."""

import asyncio

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from dbserve import __version__
from dbserve.api.auth import permit
from dbserve.api.context import Services, With
from dbserve.api.problems import problems
from dbserve.contracts.views import HealthView, ReadinessView
from dbserve.errors import StoreUnavailable
from dbserve.metrics import Scrape, render

router = APIRouter(tags=["operations"])


@router.get("/healthz")
def healthz() -> HealthView:
    """This process answers. Says nothing of what it needs."""
    return HealthView(status="ok", version=__version__)


@router.get("/readyz", response_model=ReadinessView, responses={503: {"model": ReadinessView}})
async def readyz(services: With) -> Response:
    """Whether requests can be served, and what is missing when they cannot; this process's log says why."""
    needs = {"redis": await _redis(services), "artifacts": await services.artefacts.missing()}
    missing = services.readiness.told(needs)
    view = ReadinessView(status="unready" if missing else "ready", missing=missing)
    return JSONResponse(view.model_dump(), status_code=503 if missing else 200)


async def _redis(services: Services) -> str | None:
    try:
        with services.outage.noticing():
            await services.store.ping()
    except StoreUnavailable as away:
        return str(away)
    return None


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(permit)],
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems()},
)
async def metrics(request: Request, services: With) -> Response:
    """Prometheus exposition. With Redis away, what this process counts is still told, and dbserve_redis_up is 0."""
    try:
        with services.outage.noticing():
            await services.store.counters.tell_refusals()
            scrape = Scrape(await services.store.recent(), await services.store.counters.read())
    except StoreUnavailable:
        scrape = None
    # Of a thousand blocks it takes most of a second: in a thread of its own it holds up nobody.
    body, media_type = await asyncio.to_thread(render, request.headers.get("accept", ""), services.http, scrape)
    return Response(body, headers={"Content-Type": media_type})

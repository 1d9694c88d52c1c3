"""Assembled models."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from dbserve.api.archive import archive
from dbserve.api.auth import Asking
from dbserve.api.context import Store, With
from dbserve.api.links import links
from dbserve.api.problems import problems
from dbserve.api.tenancy import ModelId
from dbserve.api.views import model_summary, model_view
from dbserve.artefacts import open_artefacts
from dbserve.contracts.views import ModelSummary, ModelView, Page

router = APIRouter(prefix="/v1/models", tags=["models"])

TAR = "application/x-tar"


class ModelsQuery(BaseModel, extra="forbid"):
    limit: int = Field(default=20, ge=1, le=200)
    after: str | None = Field(default=None, max_length=512, description="`next` of the page before")


@router.get("", responses={200: links("model_id", "show_model", "download_model", at="data/0/id"), **problems()})
async def list_models(store: Store, caller: Asking, query: Annotated[ModelsQuery, Query()]) -> Page[ModelSummary]:
    """Models of the project, newest first."""
    models, following = await store.results.list_models(project=caller.project, limit=query.limit, after=query.after)
    return Page(data=tuple(map(model_summary, models)), has_more=following is not None, next=following)


@router.get("/{model_id}", responses={200: links("job_id", "show_job", "report", at="job_id"), **problems(404)})
async def show_model(model_id: ModelId, store: Store) -> ModelView:
    """A model with its manifest: contract, layers, sigma range, digest and source of every block."""
    return model_view(await store.results.model(model_id))


@router.get(
    "/{model_id}/download",
    response_class=StreamingResponse,
    responses={200: {"content": {TAR: {"schema": {"type": "string", "format": "binary"}}}}, **problems(404)},
)
async def download_model(model_id: ModelId, services: With) -> StreamingResponse:
    """The model directory as a tar stream: model.json and one safetensors file per block."""
    model = await services.store.results.model(model_id)
    artefacts = open_artefacts(services.settings.artifacts)
    packed = await run_in_threadpool(archive, artefacts, model.path, model.id, at=model.created_at)
    headers = {
        "Content-Length": str(packed.size),
        "Content-Disposition": f'attachment; filename="{model.id}.tar"',
    }
    return StreamingResponse(packed.chunks(), media_type=TAR, headers=headers)

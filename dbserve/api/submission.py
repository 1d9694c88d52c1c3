"""The road of a job from the request's body to its plan."""

from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.conversion import with_source
from dbserve.datasets import inspect
from dbserve.jobfile import Format, parse_job
from dbserve.planner import load_card, plan_job
from dbserve.settings import Settings

_FORMATS: dict[str, Format] = {
    "application/json": "json",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
    "text/x-yaml": "yaml",
}

# The body is read and parsed here, not by FastAPI, whose parser lets NaN and duplicate keys through and echoes input.
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A job, at most 1 MiB. Unknown keys are refused.",
        "content": {
            media_type: {"schema": {"$ref": "#/components/schemas/JobSpec-Input"}}
            for media_type in ("application/json", "application/yaml")
        },
    }
}


async def _job_spec(request: Request) -> JobSpec:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    form = _FORMATS.get(media_type)
    if form is None:
        raise HTTPException(415, "send the job as application/json or application/yaml, and say which in Content-Type")
    body = await request.body()
    return await run_in_threadpool(parse_job, body, form)


Submitted = Annotated[JobSpec, Depends(_job_spec)]


async def plan(spec: JobSpec, settings: Settings) -> JobPlan:
    """The plan of a job: card, then shards (footers and labels), then arithmetic. Raises ConfigInvalid, DataInvalid."""
    return await run_in_threadpool(_plan, spec, settings)


def _plan(spec: JobSpec, settings: Settings) -> JobPlan:
    card = load_card(spec.architecture.kind)
    facts = inspect(spec.data, modality=card.modality, cache_dir=settings.cache_dir)
    return plan_job(with_source(spec, facts), card, facts)

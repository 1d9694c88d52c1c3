"""Plans, jobs and their blocks."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, Field

from dbserve.api.auth import Asking
from dbserve.api.context import Store, With
from dbserve.api.links import links
from dbserve.api.problems import problems
from dbserve.api.submission import BODY, Submitted
from dbserve.api.tenancy import JobId
from dbserve.api.traces import Traced
from dbserve.api.views import block_view, block_views, checkpoint_views, job_summary, job_view, metrics_view
from dbserve.contracts.plan import TRAINED, JobPlan
from dbserve.contracts.status import JobStatus
from dbserve.contracts.views import BlockView, JobMetricsView, JobSummary, JobView, Page, TaskCheckpointView
from dbserve.errors import ConfigInvalid
from dbserve.failpoints import failpoint

router = APIRouter(prefix="/v1")

OF_A_JOB = (
    *(
        "show_job",
        "delete_job",
        "cancel_job",
        "pause_job",
        "resume_job",
        "retry_job",
        "list_blocks",
        "list_checkpoints",
    ),
    *("job_metrics", "events", "logs", "report"),
)

OF_A_BLOCK = links("block", "show_block", "retry_block", at="data/0/index", job_id="$request.path.job_id")

IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="the same key and body make one job, however often they are sent"),
]


class JobsQuery(BaseModel, extra="forbid"):
    limit: int = Field(default=20, ge=1, le=200)
    after: str | None = Field(default=None, max_length=512, description="`next` of the page before")
    status: JobStatus | None = None
    label: list[Annotated[str, Field(json_schema_extra={"pattern": "^[^=]+="})]] = Field(
        default_factory=list[str], max_length=32, description="key=value; all given must match"
    )


class MetricsQuery(BaseModel, extra="forbid"):
    points: int = Field(default=120, ge=2, le=1000, description="of each task, at most; evenly chosen")
    task: str | None = Field(default=None, max_length=64, description="of this task only: block-0, end_to_end, ...")


class CancelQuery(BaseModel, extra="forbid"):
    force: bool = Field(default=False, description="kill the workers at once: no last checkpoints")


@router.post("/plans", tags=["plans"], openapi_extra=BODY, responses=problems(408, 413, 415))
async def make_plan(spec: Submitted, services: With, caller: Asking) -> JobPlan:
    """What a job would become: blocks, sigma intervals, parameters, bytes. Nothing is stored."""
    return await services.plans.make(spec, by_key=caller.key_id is not None)


@router.post(
    "/jobs",
    tags=["jobs"],
    status_code=202,
    openapi_extra=BODY,
    responses={202: links("job_id", *OF_A_JOB), **problems(408, 413, 415, 429)},
)
async def submit_job(
    traced: Traced,
    spec: Submitted,
    services: With,
    response: Response,
    caller: Asking,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Accepts a job; answered when it is durable. `Idempotent-Replayed` tells a repeated request from the first."""
    store, request = services.store, spec.digest() if idempotency_key else ""
    # A repeat is answered before it is planned: its shards may be gone by now, and its job is not.
    record = await store.recall(idempotency_key, request, project=caller.project) if idempotency_key else None
    if record is not None:
        snapshot, created = await store.snapshot(record.id), False
    else:
        job_plan = await services.plans.make(spec, by_key=caller.key_id is not None)
        failpoint("submit.planned")
        snapshot, created = await store.create_job(
            spec,
            job_plan,
            idempotency_key=idempotency_key,
            request_digest=request,
            project=caller.project,
            owner=caller.owner,
            quota=services.settings.max_jobs_per_key,
            trace=traced.traceparent,
        )
        failpoint("submit.stored")
    traced.note({"dbserve.job.id": snapshot.record.id, "dbserve.replayed": not created})
    response.headers["Location"] = f"/v1/jobs/{snapshot.record.id}"
    if not created:
        response.headers["Idempotent-Replayed"] = "true"
    return job_view(snapshot)


@router.get("/jobs", tags=["jobs"], responses={200: links("job_id", *OF_A_JOB, at="data/0/id"), **problems()})
async def list_jobs(store: Store, caller: Asking, query: Annotated[JobsQuery, Query()]) -> Page[JobSummary]:
    """Jobs of the project, newest first. Pages are stable while new jobs arrive."""
    snapshots, following = await store.list_jobs(
        project=caller.project,
        limit=query.limit,
        after=query.after,
        status=query.status,
        labels=_labels(query.label),
    )
    data = tuple(job_summary(snapshot) for snapshot in snapshots)
    return Page(data=data, has_more=following is not None, next=following)


@router.get("/jobs/{job_id}", tags=["jobs"], responses=problems(404))
async def show_job(job_id: JobId, store: Store) -> JobView:
    """A job: derived status with its reason, progress, every task in brief, links."""
    return job_view(await store.snapshot(job_id))


@router.delete("/jobs/{job_id}", tags=["jobs"], status_code=204, responses=problems(404, 409))
async def delete_job(job_id: JobId, store: Store) -> None:
    """Forgets a job that has ended. Its model stays."""
    await store.wishes.delete(job_id)


@router.post("/jobs/{job_id}/cancel", tags=["jobs"], status_code=202, responses=problems(404, 409))
async def cancel_job(job_id: JobId, store: Store, query: Annotated[CancelQuery, Query()]) -> JobView:
    """Asks for the end of a job; may be repeated. 409 when it succeeded or failed before.

    Workers save a last checkpoint first, within `checkpoint.grace_seconds`; with `force` they are killed at once.
    """
    await store.wishes.cancel(job_id, force=query.force)
    return job_view(await store.snapshot(job_id))


@router.post("/jobs/{job_id}/pause", tags=["jobs"], status_code=202, responses=problems(404, 409))
async def pause_job(job_id: JobId, store: Store) -> JobView:
    """Its workers save a last checkpoint and make room for others; may be repeated. 409 when the job has ended."""
    await store.wishes.pause(job_id)
    return job_view(await store.snapshot(job_id))


@router.post("/jobs/{job_id}/resume", tags=["jobs"], status_code=202, responses=problems(404, 409))
async def resume_job(job_id: JobId, store: Store) -> JobView:
    """A paused job goes on where it was; may be repeated. 409 when the job has ended."""
    await store.wishes.resume(job_id)
    return job_view(await store.snapshot(job_id))


@router.post("/jobs/{job_id}/retry", tags=["jobs"], status_code=202, responses=problems(404, 409, 429))
async def retry_job(job_id: JobId, services: With) -> JobView:
    """Another try for whatever failed or was cancelled, from the last checkpoints and with fresh budgets.

    What waits for its backoff starts at once. 409 when there is nothing of the kind. A job that had ended counts as
    unfinished again: 429 where its owner has as many as it may.
    """
    store = services.store
    await store.wishes.retry(job_id, quota=services.settings.max_jobs_per_key)
    return job_view(await store.snapshot(job_id))


@router.get("/jobs/{job_id}/metrics", tags=["history"], responses=problems(404))
async def job_metrics(job_id: JobId, store: Store, query: Annotated[MetricsQuery, Query()]) -> JobMetricsView:
    """The course of each training: loss, throughput and memory at some of its steps. Kept as long as the job is."""
    snapshot = await store.snapshot(job_id)
    chosen = [task.name for task in snapshot.plan.tasks if task.kind in TRAINED and query.task in (None, task.name)]
    if not chosen:
        raise ConfigInvalid("the job trains no such task", "/query/task", code="invalid_parameter")
    return metrics_view(snapshot, await store.courses.read(job_id, chosen), query.points)


@router.get("/jobs/{job_id}/checkpoints", tags=["jobs"], responses=problems(404))
async def list_checkpoints(job_id: JobId, store: Store) -> Page[TaskCheckpointView]:
    """The committed checkpoints that the job's tasks could go on from."""
    return Page(data=checkpoint_views(await store.outline(job_id)))


@router.get("/jobs/{job_id}/blocks", tags=["blocks"], responses={200: OF_A_BLOCK, **problems(404)})
async def list_blocks(job_id: JobId, store: Store) -> Page[BlockView]:
    """The blocks that the job trains; block 0 owns sigma_max and the first layers."""
    return Page(data=block_views(await store.snapshot(job_id)))


@router.get("/jobs/{job_id}/blocks/{block}", tags=["blocks"], responses=problems(404))
async def show_block(job_id: JobId, block: int, store: Store) -> BlockView:
    """One block in full."""
    return block_view(await store.snapshot(job_id), block)


@router.post("/jobs/{job_id}/blocks/{block}/retry", tags=["blocks"], status_code=202, responses=problems(404, 409, 429))
async def retry_block(job_id: JobId, block: int, services: With) -> BlockView:
    """Another try for one block, and for what was abandoned because of it.

    409 unless it failed, was cancelled, or waits for its backoff; 429 as for the whole job.
    """
    store = services.store
    view = block_view(await store.snapshot(job_id), block)
    await store.wishes.retry(job_id, task=view.name, quota=services.settings.max_jobs_per_key)
    return block_view(await store.snapshot(job_id), block)


def _labels(texts: list[str]) -> dict[str, str]:
    """Raises ConfigInvalid, pointing to the one that is not key=value."""
    labels: dict[str, str] = {}
    for index, text in enumerate(texts):
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigInvalid("a label is asked for as key=value", f"/query/label/{index}", code="invalid_parameter")
        labels[key] = value
    return labels

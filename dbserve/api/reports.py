"""The evidence: the report of a job, and the schema that all reports follow."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, JsonValue
from starlette.concurrency import run_in_threadpool

from dbserve.api.context import Store
from dbserve.api.guards import REPORT
from dbserve.api.negotiation import preferred
from dbserve.api.problems import problems
from dbserve.api.tenancy import JobId
from dbserve.contracts.report import Report
from dbserve.report.page import render

router = APIRouter(prefix="/v1", tags=["reports"])


class ReportQuery(BaseModel, extra="forbid"):
    format: Literal["json", "html"] | None = None


@router.get(
    "/jobs/{job_id}/report",
    response_model=Report,
    responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}, **problems(404, 409)},
)
async def report(request: Request, job_id: JobId, store: Store, query: Annotated[ReportQuery, Query()]) -> object:
    """What was measured about a job: JSON, or one self-contained page (text/html or ?format=html). 409: not yet."""
    found = await store.results.report(job_id)
    asked = query.format or preferred(request, "application/json", "text/html").partition("/")[2]
    return HTMLResponse(await run_in_threadpool(render, found), headers=REPORT) if asked == "html" else found


@router.get("/report-schema", responses=problems())
def report_schema() -> dict[str, JsonValue]:
    """The JSON schema of a report."""
    return Report.model_json_schema(mode="serialization")

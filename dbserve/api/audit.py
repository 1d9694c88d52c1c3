"""The audit log, as its readers see it."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from dbserve.api.auth import Asking
from dbserve.api.context import Store
from dbserve.api.problems import problems
from dbserve.api.views import utc
from dbserve.contracts.audit import AuditEntry, AuditView
from dbserve.contracts.key import ALL_PROJECTS
from dbserve.contracts.views import Page
from dbserve.errors import ConfigInvalid, ProjectForbidden

router = APIRouter(prefix="/v1/audit", tags=["keys"])


class AuditQuery(BaseModel, extra="forbid"):
    limit: int = Field(default=100, ge=1, le=1000)
    after: str | None = Field(
        default=None, pattern=r"^[0-9]{1,18}-[0-9]{1,18}$", description="`next` of the page before"
    )
    deployment: bool = Field(default=False, description="instead, what was done to the deployment")
    strangers: bool = Field(default=False, description="instead, what came with a key that does not open")


@router.get("", responses=problems())
async def list_audit(caller: Asking, store: Store, query: Annotated[AuditQuery, Query()]) -> Page[AuditView]:
    """Every request of the project that changed something or was refused to, newest first; the last 20,000.

    For keys of the whole deployment: with `deployment` what was done to such keys, with `strangers` what came with a
    key that does not open, 60 entries a minute and address (IPv6: /64). Each is a log of its own.
    """
    if query.deployment and query.strangers:
        raise ConfigInvalid("give deployment or strangers, not both", "/query/strangers", code="invalid_parameter")
    if (query.deployment or query.strangers) and not caller.every_project:
        raise ProjectForbidden("what is no project's is shown to keys of the whole deployment")
    of = None if query.strangers else ALL_PROJECTS if query.deployment else caller.project
    found, following = await store.audit.page(of, limit=query.limit, after=query.after)
    return Page(
        data=tuple(_view(entry_id, entry) for entry_id, entry in found),
        has_more=following is not None,
        next=following,
    )


def _view(entry_id: str, entry: AuditEntry) -> AuditView:
    return AuditView(id=entry_id, at=utc(entry.at), **entry.model_dump(exclude={"at"}))

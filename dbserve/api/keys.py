"""API keys: who may come in, to what, and for how long."""

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from dbserve.api import credentials
from dbserve.api.auth import Asking, Caller, noted
from dbserve.api.bodies import documented, read_body
from dbserve.api.context import Store, With
from dbserve.api.links import links
from dbserve.api.problems import problems
from dbserve.api.tenancy import OwnKey
from dbserve.api.views import utc, when
from dbserve.contracts.key import ALL_PROJECTS, LONGEST_GRACE, ApiKey, CallerView, KeyCreated, KeyView, NewKey, Scope
from dbserve.contracts.views import Page
from dbserve.errors import Fault, KeyInvalid, ProjectForbidden, ScopeMissing
from dbserve.store.api_keys import Found

router = APIRouter(prefix="/v1", tags=["keys"])

FIRST_KEY = "from the first key on keys are asked for, so it must be one that makes others: scope admin, project *"
DAY_SECONDS = 24 * 3600


class RotateQuery(BaseModel, extra="forbid"):
    grace_seconds: int = Field(
        default=DAY_SECONDS, ge=0, le=LONGEST_GRACE, description="how long the old secret still opens; 0: no more"
    )


async def _asked(request: Request) -> NewKey:
    return await read_body(request, NewKey, "key", KeyInvalid)


Asked = Annotated[NewKey, Depends(_asked)]


@router.get("/me", responses=problems())
async def show_caller(caller: Asking) -> CallerView:
    """Who asks: what the key may do, and in which project the request acts."""
    scopes = tuple(scope for scope in Scope if scope in caller.scopes)
    return CallerView(key_id=caller.key_id, project=caller.project, every_project=caller.every_project, scopes=scopes)


@router.post(
    "/keys",
    status_code=201,
    openapi_extra=documented(NewKey),
    responses={
        201: links("key_id", "show_key", "rotate_key", "revoke_key"),
        **problems(408, 409, 413, 415),
    },
)
async def create_key(request: Request, caller: Asking, asked: Asked, services: With, response: Response) -> KeyCreated:
    """A new key, which is answered here and never again. It may do no more than the key that makes it, nor outlive it.

    Where no expiry is given it has that of the key that makes it.
    """
    project = asked.project or caller.project
    if not caller.every_project and project != caller.project:
        raise ProjectForbidden("this API key makes keys of its own project alone")
    _refuse_more(caller, asked.scopes)
    if caller.key_id is None and not (project == ALL_PROJECTS and Scope.ADMIN in asked.scopes):
        raise KeyInvalid([Fault("/scopes", "first_key", FIRST_KEY)])
    noted(request).project = project  # in whose audit log it belongs
    secret, now = credentials.new_secret(), time.time()
    key = ApiKey(
        id=credentials.new_id(),
        name=asked.name,
        project=project,
        scopes=asked.scopes,
        sha256=credentials.digest(secret),
        created_at=now,
        created_by=caller.key_id or "",
        expires_at=_expiry(caller.identity.expires_at, asked.expires_in_seconds, now=now),
    )
    await services.store.api_keys.add(key)
    services.door.ask_from_now_on()
    response.headers["Location"] = f"/v1/keys/{key.id}"
    return _with_secret(key, secret)


@router.get("/keys", responses=problems())
async def list_keys(caller: Asking, store: Store) -> Page[KeyView]:
    """Keys of the project, oldest first; for a key of the deployment, unless the request names a project, every key.

    Those that have ended are shown for 90 days, and of a project the last 200 of them.
    """
    return Page(data=tuple(map(_view, await store.api_keys.of_project(caller.keys_of))))


@router.get("/keys/{key_id}", responses=problems(404))
async def show_key(found: OwnKey) -> KeyView:
    """A key, without its secret."""
    return _view(found)


@router.delete("/keys/{key_id}", status_code=204, responses=problems(404))
async def revoke_key(found: OwnKey, services: With) -> None:
    """It opens nothing any more: here at once, by other API processes within 5 s. May be repeated."""
    await services.store.api_keys.revoke(found.key.id, at=time.time())
    services.door.forget(found.key.id)


@router.post("/keys/{key_id}/rotate", responses=problems(404, 409))
async def rotate_key(
    caller: Asking, found: OwnKey, services: With, query: Annotated[RotateQuery, Query()]
) -> KeyCreated:
    """A new secret, which is answered here and never again; the one before goes on for a while.

    One that was replaced before that ends at once. 409 for a key that has ended; 403 for one that may do more than the
    key that asks, or outlives it.
    """
    _refuse_more(caller, found.key.scopes)
    if _outlives(found.key.expires_at, caller.identity.expires_at):
        raise ScopeMissing("this API key expires, and rotates no key that outlives it")
    secret = credentials.new_secret()
    key = await services.store.api_keys.rotate(
        found.key.id, credentials.digest(secret), at=time.time(), grace_seconds=query.grace_seconds
    )
    services.door.forget(key.id)
    return _with_secret(key, secret, found.last_used_at)


def _refuse_more(caller: Caller, scopes: tuple[Scope, ...]) -> None:
    """Raises ScopeMissing: whoever could get at a key that may do more would have what it may."""
    if more := [scope.value for scope in scopes if scope not in caller.scopes]:
        raise ScopeMissing(f"this API key hands out no scope that it lacks: {', '.join(more)}")


def _outlives(expires_at: float | None, maker_at: float | None) -> bool:
    return maker_at is not None and (expires_at is None or expires_at > maker_at)


def _expiry(maker_at: float | None, asked_seconds: int | None, *, now: float) -> float | None:
    """Unix seconds. Raises KeyInvalid: a key that ends would live on in the one it makes."""
    expires_at = maker_at if asked_seconds is None else now + asked_seconds
    if _outlives(expires_at, maker_at):
        raise KeyInvalid([Fault("/expires_in_seconds", "outlives_maker", "it would outlive the key that makes it")])
    return expires_at


def _view(found: Found) -> KeyView:
    key = found.key
    return KeyView(
        id=key.id,
        prefix=credentials.prefix(key.id),
        name=key.name,
        project=key.project,
        scopes=key.scopes,
        created_at=utc(key.created_at),
        created_by=key.created_by,
        expires_at=when(key.expires_at),
        revoked_at=when(key.revoked_at),
        last_used_at=when(found.last_used_at),
        previous_until=None if key.replaced is None else utc(key.replaced.until),
    )


def _with_secret(key: ApiKey, secret: str, last_used_at: float | None = None) -> KeyCreated:
    view = _view(Found(key, last_used_at))
    return KeyCreated(**dict(view), key=credentials.prefix(key.id) + secret)

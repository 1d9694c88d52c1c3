"""What stands before every route that asks for a key: who is it, how often did it come, may it do this, and where."""

import contextlib
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import State
from starlette.exceptions import HTTPException

from dbserve.api.context import Services, With
from dbserve.api.doorkeeper import Identity
from dbserve.api.guards import foreign
from dbserve.api.scopes import NEEDS, missing
from dbserve.contracts.key import ALL_PROJECTS, DEFAULT_PROJECT, PROJECT, Scope
from dbserve.errors import ConfigInvalid, ForeignRequest, ProjectForbidden, RateLimited, ScopeMissing, StoreUnavailable
from dbserve.store.rates import WINDOW_SECONDS, Rate

FAILURES_A_MINUTE = 60  # keys that do not open, of one address
IPV6_PREFIX = 64  # bits: who has one IPv6 address has all of such a network
_PROJECT = re.compile(PROJECT)

_bearer = HTTPBearer(
    auto_error=False,
    description="an API key; asked for as soon as there is one, and always unless only this machine reaches the server",
)
_Given = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
_Named = Annotated[
    str | None,
    Header(
        alias="X-Dbserve-Project",
        description="the project to act in, for a key of the whole deployment; `default` unless it is given",
        json_schema_extra={"anyOf": [{"type": "string", "pattern": f"^({PROJECT})?$"}]},
    ),
]


@dataclass(frozen=True)
class Caller:
    """Who asks, and the project in which the request acts."""

    identity: Identity = field(repr=False)
    project: str
    named: bool  # whether the request named the project

    @property
    def key_id(self) -> str | None:
        return self.identity.key_id

    @property
    def scopes(self) -> frozenset[Scope]:
        return self.identity.scopes

    @property
    def owner(self) -> str:
        return self.identity.owner_in(self.project)

    @property
    def every_project(self) -> bool:
        """Whether it belongs to the deployment."""
        return self.identity.home == ALL_PROJECTS

    @property
    def keys_of(self) -> str:
        """Whose keys it sees and changes: its project's; ALL_PROJECTS for the deployment that names none."""
        return ALL_PROJECTS if self.every_project and not self.named else self.project


async def permit(request: Request, services: With, given: _Given, named: _Named = None) -> Caller:
    """Lets in whom the table of scopes lets in, or raises: 401, 403, 429, and 503 where a key cannot be checked."""
    identity = await services.door.identify(None if given is None else given.credentials)
    if identity is None:
        if given is not None:  # who sends no key guesses none, and is to learn that one is asked for
            await _count_failure(request, services)
        raise HTTPException(
            401, "send the API key as Authorization: Bearer ...", headers={"WWW-Authenticate": "Bearer"}
        )
    if identity.key_id is None:
        why = foreign(request.method, request.headers, services.settings.allowed_origins)
        if why is not None:
            raise ForeignRequest(why)
    noted(request).identity = identity
    project = noted(request).project = _acts_in(identity.home, named)
    if services.settings.rate_limit and identity.key_id is not None and not identity.scrapes:
        await _count_request(request, services, identity.key_id)
    need = NEEDS.get((request.method, request.scope["route"].path))
    if (lacking := missing(need, identity.scopes, identity.home, scrapes=identity.scrapes)) is not None:
        raise ScopeMissing(lacking)
    return Caller(identity, project, named=bool(named))


Asking = Annotated[Caller, Depends(permit)]


def noted(request: Request) -> State:
    """What is known of a request while it is served: `request_id`, `identity`, `project`, `headers` of its answer;
    `counted`, where its key opened nothing and that was counted."""
    return request.state


def _acts_in(home: str, named: str | None) -> str:
    """Raises ProjectForbidden, ConfigInvalid."""
    if not named:
        return DEFAULT_PROJECT if home == ALL_PROJECTS else home
    if home not in (ALL_PROJECTS, named):
        raise ProjectForbidden("this API key may not act in the project that X-Dbserve-Project names")
    if not _PROJECT.fullmatch(named):
        wanted = "a project is named by up to 48 lower-case letters, digits and hyphens"
        raise ConfigInvalid(wanted, "/header/X-Dbserve-Project", code="invalid_parameter")
    return named


async def _count_request(request: Request, services: Services, key_id: str) -> None:
    """Raises RateLimited. What cannot be counted is let in: what needs Redis is refused by its absence anyway."""
    limit = services.settings.rate_limit
    if (rate := await _counted(services, f"key:{key_id}", limit)) is None:
        return
    headers = {
        "RateLimit-Policy": f'"key";q={limit};w={WINDOW_SECONDS}',
        "RateLimit": f'"key";r={rate.remaining};t={rate.wait}',
    }
    noted(request).headers = headers
    if not rate.allowed:
        raise RateLimited(f"this API key may make {limit} requests a minute", rate.wait)


async def _count_failure(request: Request, services: Services) -> None:
    """Raises RateLimited for an address whose keys did not open too often; a good key is let in from there, too."""
    address = request.client.host if request.client else "unknown"
    rate = await _counted(services, f"address:{counted_as(address)}", FAILURES_A_MINUTE)
    if rate is not None and not rate.allowed:
        raise RateLimited(
            f"{FAILURES_A_MINUTE} requests a minute from one address (IPv6: one /{IPV6_PREFIX}) may come with a key "
            "that does not open",
            rate.wait,
        )
    noted(request).counted = rate is not None


def counted_as(address: str) -> str:
    """What stands for an address where addresses are counted: its network for IPv6, or else itself."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:  # of a unix socket, or what a proxy says
        return address
    if known.version == 4:
        return str(known)
    if known.ipv4_mapped is not None:  # as a socket for both kinds shows IPv4: its network would be all of that
        return str(known.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(known), IPV6_PREFIX), strict=False))


async def _counted(services: Services, what: str, limit: int) -> Rate | None:
    """None: Redis is away."""
    with contextlib.suppress(StoreUnavailable), services.outage.noticing():
        return await services.store.rates.count(what, limit)
    return None


def is_known(state: State) -> bool:
    """Whether it came past the door, or its key was counted as one that does not open: there are so many of them."""
    return identity_of(state) is not None or bool(getattr(state, "counted", False))


def identity_of(state: State) -> Identity | None:
    """Who was let in, where somebody was; refused for what it may not do, perhaps."""
    return cast("Identity | None", getattr(state, "identity", None))

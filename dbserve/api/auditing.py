"""Notes every request that changes something, or was refused to, before it is answered.

The streams in Redis have what somebody with a key did, and, apart from it, so many bad keys a minute; the process log
has the rest, too: whoever has no key is to wash nobody's entries away, and who sends none is to cost no write.
"""

import logging
import re
import time
from collections.abc import Callable
from typing import Any, cast

from starlette.datastructures import Headers, State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dbserve.api.access import UNMATCHED, client_of, route_of
from dbserve.api.auth import identity_of, is_known
from dbserve.api.context import Services
from dbserve.api.guards import LOOKING
from dbserve.api.scopes import CHANGES_NOTHING
from dbserve.contracts.audit import AuditEntry
from dbserve.contracts.key import ALL_PROJECTS, DEFAULT_PROJECT
from dbserve.errors import StoreUnavailable

log = logging.getLogger("dbserve.audit")

TOO_MANY = 429  # told in the process log alone, as what met no door
_NAMEABLE = re.compile(r"[A-Za-z0-9]{1,40}")  # ids and numbers; a secret that somebody took for one is longer
_PARAMETER = re.compile(r"\{(\w+)\}")


class Auditing:
    """Plain ASGI, inside the envelope: each entry has the request's id.

    An entry that cannot be stored keeps nobody from an answer: what happened has happened, and the log has it.
    """

    def __init__(self, app: ASGIApp, *, services: Services, clock: Callable[[], float] = time.time) -> None:
        self._app = app
        self._services = services
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in LOOKING:
            return await self._app(scope, receive, send)
        noted = False

        async def send_noted(message: Message) -> None:
            nonlocal noted
            if message["type"] == "http.response.start":
                noted = True
                await self._note(scope, message["status"], Headers(raw=message["headers"]).get("location"))
            await send(message)

        try:
            return await self._app(scope, receive, send_noted)
        except Exception:
            if not noted:
                await self._note(scope, 500, None)
            raise

    async def _note(self, scope: Scope, status: int, made: str | None) -> None:
        route = route_of(scope)
        if (scope["method"], route) in CHANGES_NOTHING:
            return
        state = State(cast("dict[str, Any]", scope["state"]))
        identity = identity_of(state)
        project = None if identity is None else _project(identity.home, state)
        entry = AuditEntry(
            at=self._clock(),
            key_id=None if identity is None else identity.key_id,
            address=client_of(scope),
            method=scope["method"],
            route=route,
            object=made or object_of(route, cast("dict[str, object]", scope.get("path_params", {}))),
            status=status,
            request_id=state.request_id,
        )
        log.info("audit", extra={"project": project or ALL_PROJECTS, **entry.model_dump(exclude={"at", "request_id"})})
        if status == TOO_MANY or not is_known(state):
            return
        try:
            with self._services.outage.noticing():
                await self._services.store.audit.note(project, entry)
        except StoreUnavailable as away:
            log.warning("an entry of the audit log stands here alone: %s", away)


def object_of(route: str, parameters: dict[str, object]) -> str:
    """The path of what a request was about. What is no id is not repeated: it might be a secret."""

    def named(found: re.Match[str]) -> str:
        value = str(parameters.get(found[1], ""))
        return value if _NAMEABLE.fullmatch(value) else "?"

    return "" if route == UNMATCHED else _PARAMETER.sub(named, route)


def _project(home: str, state: State) -> str:
    """In whose log an entry stands: where the request acted, or else where its key belongs."""
    return getattr(state, "project", DEFAULT_PROJECT if home == ALL_PROJECTS else home)

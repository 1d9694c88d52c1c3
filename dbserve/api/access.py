"""The access log: one line for each request when it is over, and another where a stream of events begins.

Neither bodies nor headers are in it, and of the query only which parameters there were.
"""

import logging
import re
import time
from typing import cast

from starlette.types import Message, Scope

log = logging.getLogger("dbserve.access")

QUIET = frozenset({"/healthz", "/readyz", "/metrics"})  # asked for every few seconds, for ever
LONGEST_PATH = 1024  # characters
UNMATCHED = "unmatched"
EVENTS = b"text/event-stream"
_PARAMETER = re.compile(r"[a-z_]{1,32}")


class Access:
    """What becomes of one request."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._began = time.perf_counter()
        self._level = logging.DEBUG if scope["path"] in QUIET else logging.INFO
        self._bytes = 0
        self._whole = False  # the answer was sent to its end
        self.status = 0  # 0: no answer has begun

    @property
    def route(self) -> str:
        """The route's template, so that ids do not become label values."""
        return route_of(self._scope)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self._began

    def note(self, message: Message) -> None:
        """Takes in a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if (b"content-type", EVENTS) in ((name, value[: len(EVENTS)]) for name, value in message["headers"]):
                self._tell("stream begins")
        elif message["type"] == "http.response.body":
            self._bytes += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)

    def tell(self) -> None:
        """The request is over, however it ended."""
        if log.isEnabledFor(self._level):
            ending: dict[str, object] = {"duration_seconds": round(self.seconds, 6), "bytes": self._bytes}
            if not self._whole:
                ending["cut_off"] = True  # by either side
            self._tell("request", **ending)

    def _tell(self, event: str, **fields: object) -> None:
        scope = self._scope
        said: dict[str, object] = {
            "method": scope["method"],
            "route": self.route,
            "path": _path(scope["path"]),
            "status": self.status,
            **fields,
            "client": client_of(scope),
        }
        if query := scope.get("query_string"):
            said["query"] = _parameters(query)
        of_path = cast("dict[str, object]", scope.get("path_params", {}))
        said |= {name: of_path[name] for name in ("job_id", "block") if name in of_path}
        log.log(self._level, event, extra=said)


def route_of(scope: Scope) -> str:
    """The route's template; UNMATCHED where the request was refused before it met one."""
    return getattr(scope.get("route"), "path", UNMATCHED)


def client_of(scope: Scope) -> str | None:
    """The address that the request came from, as far as it is known."""
    return scope["client"][0] if scope.get("client") else None


def _path(path: str) -> str:
    """Cut where it is very long, at a slash: half a secret would not be known for one."""
    return path if len(path) <= LONGEST_PATH else path[:LONGEST_PATH].rpartition("/")[0] + "/..."


def _parameters(query: bytes) -> str:
    """Which parameters there were; a value may be a secret, and so may what does not look like a name."""
    names = (pair.partition("=")[0] for pair in query.decode("ascii", errors="replace").split("&"))
    return ",".join(name for name in names if _PARAMETER.fullmatch(name))

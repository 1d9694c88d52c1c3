"""What browsers are told with every answer, unless a route says otherwise; and what pages of others may do."""

from collections.abc import Collection, Iterable, Mapping, MutableSequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from dbserve.settings import is_loopback

Header = tuple[bytes, bytes]

_GUARDS: Mapping[bytes, bytes] = {
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",  # JSON shown as a page does nothing
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}

# A report is one page with its style and its drawings in it, and no script; what it shows may come from anybody.
REPORT = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

# For pages of the origins in `cors_origins`. The key is sent by the page itself, so there are no cookies to allow.
CORS_METHODS = ("GET", "POST", "DELETE")
CORS_ASKS = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Dbserve-Project", "X-Request-ID")
CORS_SHOWS = ("Idempotent-Replayed", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-ID")

LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})  # methods that change nothing


def foreign(method: str, headers: Headers, origins: Collection[str]) -> str | None:
    """Why a request that no key vouches for is not answered, if it is not. Pure.

    A page whose name is turned to 127.0.0.1 (DNS rebinding) is of the API's own origin to its browser: its name in
    Host gives it away. Any other page may send what asks for no preflight; `origins` are those that are meant to.
    """
    hosts = headers.getlist("host")
    if len(hosts) != 1 or not is_loopback(_name(hosts[0])):
        return "without API keys the service is reached as localhost or 127.0.0.1 alone: make a key to use another name"
    origin = headers.get("origin")
    if method in LOOKING or origin in origins:
        return None
    elsewhere = origin is not None and origin.partition("://")[2].lower() != hosts[0].lower()
    if elsewhere or headers.get("sec-fetch-site") == "cross-site":
        return "without API keys pages of other origins change nothing here: list this one in DBSERVE_CORS_ORIGINS"
    return None


def _name(host: str) -> str:
    """Of a Host header, without its port; "" of what is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def guard(headers: MutableSequence[Header], more: Iterable[Header] = ()) -> None:
    """Adds what is not there yet; names are in lower case, as ASGI has them."""
    present = {name.lower() for name, _ in headers}
    headers.extend(pair for pair in _GUARDS.items() if pair[0] not in present)
    headers.extend(more)

"""What browsers are told with every answer, unless a route says otherwise; and which other pages may read answers."""

from collections.abc import Iterable, Mapping, MutableSequence

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


def guard(headers: MutableSequence[Header], more: Iterable[Header] = ()) -> None:
    """Adds what is not there yet; names are in lower case, as ASGI has them."""
    present = {name.lower() for name, _ in headers}
    headers.extend(pair for pair in _GUARDS.items() if pair[0] not in present)
    headers.extend(more)

"""Which media type a client prefers."""

import pytest
from fastapi import Request

from dbserve.api.negotiation import preferred

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        (BROWSER, "text/html"),
        ("text/html;q=0.1, application/json", "application/json"),
        ("text/*", "text/html"),
        ("text/html;q=0, */*", "application/json"),
        ("TEXT/HTML", "text/html"),
        ("text/html;q=high", "application/json"),
        ("image/png", "application/json"),
        ("", "application/json"),
    ],
)
def test_the_best_of_what_is_on_offer_is_chosen(accept: str | None, chosen: str) -> None:
    headers = [] if accept is None else [(b"accept", accept.encode())]
    request = Request({"type": "http", "headers": headers})
    assert preferred(request, "application/json", "text/html") == chosen

"""Webhooks, as the typed client asks for them."""

from collections.abc import Callable, Sequence
from typing import Any

import httpx

from dbserve.contracts.views import Page
from dbserve.contracts.webhook import PingView, Topic, WebhookCreated, WebhookDetail, WebhookView

PATH = "/v1/webhooks"


class Webhooks:
    """Hangs off a Client; every method may raise what those of the client do."""

    def __init__(
        self,
        request: Callable[..., httpx.Response],
        parsed: Callable[[type[Any], httpx.Response], Any],
    ) -> None:
        self._request = request
        self._parsed = parsed

    def create(
        self, url: str, *, events: Sequence[Topic] = tuple(Topic), description: str = "", secret: str | None = None
    ) -> WebhookCreated:
        """The answer alone holds the secret. Not repeated by itself: that would make a second one."""
        asked: dict[str, object] = {"url": url, "events": list(events), "description": description}
        if secret is not None:
            asked["secret"] = secret
        return self._parsed(WebhookCreated, self._request("POST", PATH, json=asked, attempts=1))

    def all(self) -> tuple[WebhookView, ...]:
        """Oldest first."""
        page: Page[WebhookView] = self._parsed(Page[WebhookView], self._request("GET", PATH))
        return page.data

    def show(self, webhook_id: str) -> WebhookDetail:
        """With its last deliveries."""
        return self._parsed(WebhookDetail, self._request("GET", f"{PATH}/{webhook_id}"))

    def delete(self, webhook_id: str) -> None:
        """Not repeated by itself: the second answer would be 404."""
        self._request("DELETE", f"{PATH}/{webhook_id}", attempts=1)

    def test(self, webhook_id: str) -> PingView:
        """Sends a ping now; what the receiver says to it."""
        return self._parsed(PingView, self._request("POST", f"{PATH}/{webhook_id}/test", attempts=1))

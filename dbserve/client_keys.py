"""API keys and the audit log, as the typed client asks for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from dbserve.contracts.audit import AuditView
from dbserve.contracts.key import CallerView, KeyCreated, KeyView, Scope
from dbserve.contracts.views import Page

PATH = "/v1/keys"


class Keys:
    """Hangs off a Client; every method may raise what those of the client do."""

    def __init__(
        self,
        request: Callable[..., httpx.Response],
        parsed: Callable[[type[Any], httpx.Response], Any],
        pages: Callable[[type[Any], str, Mapping[str, Any]], Iterator[Any]],
    ) -> None:
        self._request = request
        self._parsed = parsed
        self._pages = pages

    def create(
        self, name: str, scopes: Sequence[Scope], *, project: str | None = None, expires_in_seconds: int | None = None
    ) -> KeyCreated:
        """The answer alone holds the key. Not repeated by itself: that would make a second one."""
        asked: dict[str, object] = {"name": name, "scopes": list(scopes)}
        asked |= {} if project is None else {"project": project}
        asked |= {} if expires_in_seconds is None else {"expires_in_seconds": expires_in_seconds}
        return self._parsed(KeyCreated, self._request("POST", PATH, json=asked, attempts=1))

    def all(self) -> tuple[KeyView, ...]:
        """Of the project, oldest first; of every project, for a key of the deployment that names none."""
        page: Page[KeyView] = self._parsed(Page[KeyView], self._request("GET", PATH))
        return page.data

    def show(self, key_id: str) -> KeyView:
        return self._parsed(KeyView, self._request("GET", f"{PATH}/{key_id}"))

    def revoke(self, key_id: str) -> None:
        """It opens nothing any more, everywhere within 5 s."""
        self._request("DELETE", f"{PATH}/{key_id}")

    def rotate(self, key_id: str, *, grace_seconds: int | None = None) -> KeyCreated:
        """A new secret; the old one goes on for a day unless told otherwise. Not repeated by itself."""
        params = {} if grace_seconds is None else {"grace_seconds": grace_seconds}
        return self._parsed(KeyCreated, self._request("POST", f"{PATH}/{key_id}/rotate", params=params, attempts=1))

    def caller(self) -> CallerView:
        """What the client's own key may do, and where."""
        return self._parsed(CallerView, self._request("GET", "/v1/me"))

    def audit(self, *, deployment: bool = False, strangers: bool = False) -> Iterator[AuditView]:
        """What was changed in the project, or refused, newest first.

        With `deployment`, what was done to the deployment; with `strangers`, what came with a key that does not open.
        """
        asked: dict[str, object] = {"limit": 1000}
        asked |= {name: True for name, given in (("deployment", deployment), ("strangers", strangers)) if given}
        return self._pages(Page[AuditView], "/v1/audit", asked)

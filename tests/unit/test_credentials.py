"""What an API key looks like, and when it opens."""

import pytest

from dbserve.api import credentials
from dbserve.api.scopes import Need, missing
from dbserve.contracts.key import ALL_PROJECTS, ApiKey, NewKey, Replaced, Scope
from dbserve.redaction import Redactor

SECRET, OLD = credentials.new_secret(), credentials.new_secret()
KEY = ApiKey(
    id="0123456789ab", name="k", project="red", scopes=(Scope.READ,), sha256=credentials.digest(SECRET), created_at=0.0
)


def test_a_secret_has_256_bits_and_no_two_are_alike() -> None:
    secrets = {credentials.new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(bytes.fromhex(secret)) == 32 for secret in secrets)


def test_a_token_is_taken_apart_or_is_none_of_ours() -> None:
    token = credentials.prefix(KEY.id) + SECRET
    assert credentials.parsed(token) == (KEY.id, SECRET)
    for wrong in ("", "dbs_", token[:-1], token + "0", token.upper(), token + "\n", " " + token, "dbs_x_y", SECRET):
        assert credentials.parsed(wrong) is None, wrong


@pytest.mark.parametrize(
    ("changes", "secret", "now", "good"),
    [
        ({}, SECRET, 100.0, True),
        ({}, OLD, 100.0, False),
        ({"expires_at": 100.0}, SECRET, 99.0, True),
        ({"expires_at": 100.0}, SECRET, 100.0, False),
        ({"revoked_at": 50.0}, SECRET, 100.0, False),
        ({"replaced": Replaced(sha256=credentials.digest(OLD), until=200.0)}, OLD, 199.0, True),
        ({"replaced": Replaced(sha256=credentials.digest(OLD), until=200.0)}, OLD, 200.0, False),
        ({"replaced": Replaced(sha256=credentials.digest(OLD), until=200.0)}, SECRET, 200.0, True),
        ({"replaced": Replaced(sha256=credentials.digest(OLD), until=200.0), "expires_at": 10.0}, OLD, 20.0, False),
    ],
)
def test_a_key_opens_until_it_ends(changes: dict[str, object], secret: str, now: float, good: bool) -> None:
    assert credentials.opens(KEY.model_copy(update=changes), credentials.digest(secret), now) is good


def test_neither_secret_nor_digest_is_shown_when_a_key_is_printed() -> None:
    assert KEY.sha256 not in repr(KEY)


def test_a_key_in_a_log_line_is_hidden() -> None:
    token = credentials.prefix(KEY.id) + SECRET
    hidden = Redactor(())(f"somebody sent {token} as a name")
    assert SECRET not in hidden
    assert "somebody sent" in hidden


def test_scopes_are_a_set() -> None:
    asked = NewKey(name="k", scopes=(Scope.ADMIN, Scope.READ, Scope.ADMIN))
    assert asked.scopes == (Scope.READ, Scope.ADMIN)


@pytest.mark.parametrize(
    ("need", "scopes", "home", "scrapes", "may"),
    [
        (None, {*Scope}, ALL_PROJECTS, False, False),
        (Need.NOTHING, set(), "red", False, True),
        (Need.KEY, set(), "red", False, True),
        (Need.KEY, set(), ALL_PROJECTS, True, False),
        (Need.READ, {Scope.READ}, "red", False, True),
        (Need.READ, {Scope.SUBMIT, Scope.ADMIN}, "red", False, False),
        (Need.SUBMIT, {Scope.READ, Scope.ADMIN}, "red", False, False),
        (Need.ADMIN, {Scope.ADMIN}, "red", False, True),
        (Need.ADMIN, {Scope.READ, Scope.SUBMIT}, ALL_PROJECTS, False, False),
        (Need.SCRAPE, {*Scope}, "red", False, False),
        (Need.SCRAPE, {Scope.READ}, ALL_PROJECTS, False, True),
        (Need.SCRAPE, {Scope.ADMIN}, ALL_PROJECTS, False, False),
        (Need.SCRAPE, set(), ALL_PROJECTS, True, True),
    ],
)
def test_no_scope_contains_another(need: Need | None, scopes: set[Scope], home: str, scrapes: bool, may: bool) -> None:
    assert (missing(need, scopes, home, scrapes=scrapes) is None) is may

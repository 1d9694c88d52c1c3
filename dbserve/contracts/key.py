"""API keys and projects: what a key may do, how it is stored, how it is shown."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field

DEFAULT_PROJECT = "default"  # of what was made before there were projects, and where no other is named
ALL_PROJECTS = "*"  # of a key that belongs to the deployment
PROJECT = r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?"
LONGEST_LIFE = 10 * 365 * 24 * 3600  # seconds
LONGEST_GRACE = 30 * 24 * 3600  # seconds, of a secret that was replaced


class Scope(StrEnum):
    """What a key may do in its project. None contains another."""

    READ = "read"  # see jobs, models, logs, reports, webhooks
    SUBMIT = "submit"  # plan, submit and steer jobs; make webhooks
    ADMIN = "admin"  # manage keys, read the audit log


def _each_once(scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
    return tuple(scope for scope in Scope if scope in scopes)


Scopes = Annotated[tuple[Scope, ...], AfterValidator(_each_once)]


class NewKey(BaseModel, frozen=True, extra="forbid"):
    """A key as it is asked for."""

    name: str = Field(min_length=1, max_length=100, description="for people: who or what uses the key")
    scopes: Scopes = Field(min_length=1, max_length=3)
    project: str | None = Field(
        default=None,
        pattern=rf"^({PROJECT}|\*)$",
        description="the one that the request acts in unless it is given; *: the deployment, which sees every project",
    )
    expires_in_seconds: int | None = Field(default=None, ge=1, le=LONGEST_LIFE, description="null: it does not expire")


class Replaced(BaseModel, frozen=True):
    """The secret that a rotation replaced, while it still opens."""

    sha256: str = Field(repr=False)
    until: float  # unix seconds


class ApiKey(BaseModel, frozen=True):
    """A key as the store holds it: of the secret, its SHA-256 alone."""

    id: str
    name: str
    project: str
    scopes: tuple[Scope, ...]
    sha256: str = Field(repr=False)
    created_at: float  # unix seconds, as all times here
    created_by: str = ""  # id of the key that made it; "" where none was asked for
    expires_at: float | None = None
    revoked_at: float | None = None
    replaced: Replaced | None = None

    def ended_at(self, now: float) -> float | None:
        """When it was revoked or expired; None: it opens at that time."""
        ends = [at for at in (self.revoked_at, self.expires_at) if at is not None and at <= now]
        return min(ends, default=None)


class KeyView(BaseModel, frozen=True):
    """A key without its secret, which is shown once: when it is made."""

    id: str
    prefix: str = Field(description="how the key begins, by which its holder knows it")
    name: str
    project: str = Field(description="*: every project")
    scopes: tuple[Scope, ...]
    created_at: AwareDatetime
    created_by: str = Field(description="id of the key that made it; empty where none was asked for")
    expires_at: AwareDatetime | None = Field(default=None, description="null: it does not expire")
    revoked_at: AwareDatetime | None = Field(default=None, description="null: it is not revoked")
    last_used_at: AwareDatetime | None = Field(default=None, description="to the minute; null: never")
    previous_until: AwareDatetime | None = Field(
        default=None, description="how long the secret before the last rotation still opens"
    )


class KeyCreated(KeyView, frozen=True):
    """A key with a new secret."""

    key: str = Field(repr=False, description="what to send as the bearer token; keep it: it is not shown again")


class CallerView(BaseModel, frozen=True):
    """Who asks, as the server sees it."""

    key_id: str | None = Field(description="null: no key is asked for")
    project: str = Field(description="in which the request acts")
    every_project: bool = Field(description="whether X-Dbserve-Project may name another one")
    scopes: tuple[Scope, ...]

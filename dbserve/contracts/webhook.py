"""Webhooks: who is told of what, the message itself, and what became of telling."""

import base64
import binascii
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, SecretStr

from dbserve.contracts.key import DEFAULT_PROJECT
from dbserve.contracts.status import JobStatus, Reason
from dbserve.contracts.work import CheckpointStage

SECRET_PREFIX = "whsec_"  # noqa: S105
SHORTEST_SECRET, LONGEST_SECRET = 24, 64  # bytes behind the prefix, after the Standard Webhooks specification
LONGEST_URL = 2048  # characters


class Topic(StrEnum):
    """What a webhook may be told of. Those of blocks are of any task of the job; the message names it."""

    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    BLOCK_RESTARTED = "block.restarted"  # an attempt was lost, and another one follows
    BLOCK_FAILED = "block.failed"  # an attempt was lost, and none follows
    BLOCK_UNSCHEDULABLE = "block.unschedulable"  # no node of the cluster could ever hold it
    CHECKPOINT_FAILED = "checkpoint.failed"  # one could not be saved, after one that could; or not be read back


PING = "ping"  # what a test sends, whatever the webhook asked for


class Occurrence(BaseModel, frozen=True):
    """Something that webhooks are told of, as the outbox holds it."""

    topic: Topic
    at: float  # unix seconds, the store's clock
    job_id: str
    job_name: str
    project: str = DEFAULT_PROJECT
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    job_status: JobStatus
    task: str | None = None
    attempt: int | None = None  # the one that it happened to
    reason: Reason | None = None
    message: str | None = None
    step: int | None = None  # of the checkpoint
    stage: CheckpointStage | None = None


def decoded_secret(secret: str) -> bytes:
    """The key behind `whsec_` and base64. Raises ValueError, which does not repeat it."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not SHORTEST_SECRET <= len(key) <= LONGEST_SECRET:
        wanted = f"the base64 of {SHORTEST_SECRET} to {LONGEST_SECRET} random bytes"
        raise ValueError(f"a secret is {SECRET_PREFIX!r} followed by {wanted}")
    return key


def _a_secret(given: SecretStr) -> SecretStr:
    decoded_secret(given.get_secret_value())
    return given


def _each_once(topics: tuple[Topic, ...]) -> tuple[Topic, ...]:
    return tuple(dict.fromkeys(topics))


class NewWebhook(BaseModel, frozen=True, extra="forbid"):
    """What is asked for."""

    url: str = Field(min_length=1, max_length=LONGEST_URL, description="http or https, without user and password")
    events: Annotated[tuple[Topic, ...], AfterValidator(_each_once)] = Field(
        default=tuple(Topic), min_length=1, max_length=len(Topic), description="all of them unless some are named"
    )
    description: str = Field(default="", max_length=200)
    secret: Annotated[SecretStr, AfterValidator(_a_secret)] | None = Field(
        default=None, description="whsec_ and the base64 of 24 to 64 random bytes; made unless it is given"
    )


class Webhook(BaseModel, frozen=True):
    """A receiver, as the store holds it."""

    id: str
    project: str = DEFAULT_PROJECT  # it is told of this project's jobs alone
    url: str
    events: tuple[Topic, ...]
    description: str = ""
    secret: str = Field(repr=False)  # as it is: a signature needs it
    created_at: float  # unix seconds, the store's clock
    disabled: str | None = None  # why nothing is sent to it any more


class Delivery(BaseModel, frozen=True):
    """One message to one receiver, until it has arrived or is given up."""

    webhook_id: str
    message_id: str  # the same at every attempt
    event: str
    body: str  # JSON, byte for byte what is signed and sent
    at: float  # unix seconds: when it happened
    attempts: int = 0  # made so far


class Answer(BaseModel, frozen=True):
    """What a receiver said: a status code, or nothing and why."""

    code: int | None = None
    error: str | None = None
    retry_after: float | None = None  # seconds, as it asked for
    excerpt: str = ""  # how its answer begins

    @property
    def accepted(self) -> bool:
        return self.code is not None and 200 <= self.code < 300


class Attempted(BaseModel, frozen=True):
    """One attempt at a delivery, and what follows from it."""

    at: float  # unix seconds
    message_id: str
    event: str
    attempt: int
    code: int | None = None
    error: str | None = None
    next_try: float | None = None  # unix seconds; None: delivered or given up


class WebhookView(BaseModel, frozen=True):
    """A webhook without its secret, which is shown once: when it is made."""

    id: str
    url: str
    events: tuple[Topic, ...]
    description: str
    created_at: AwareDatetime
    disabled: str | None = Field(default=None, description="why nothing is sent any more; null: it is")


class WebhookCreated(WebhookView, frozen=True):
    """A new webhook, and the secret to verify its messages with."""

    secret: str = Field(repr=False, description="keep it: it is not shown again")


class AttemptView(BaseModel, frozen=True):
    """One attempt at a delivery. `message_id` is the webhook-id header, the same at every attempt."""

    at: AwareDatetime
    message_id: str
    event: str
    attempt: int
    code: int | None = Field(default=None, description="the receiver's status code; null: it gave none")
    error: str | None = None
    next_try: AwareDatetime | None = Field(default=None, description="null: delivered or given up")


class WebhookDetail(WebhookView, frozen=True):
    """A webhook with its last attempts, newest first, and how many messages are on their way."""

    waiting: int
    deliveries: tuple[AttemptView, ...]


class PingView(BaseModel, frozen=True):
    """What the receiver said to a test message."""

    delivered: bool
    message_id: str
    code: int | None = None
    error: str | None = None
    answer: str = Field(description="how the receiver's answer begins")

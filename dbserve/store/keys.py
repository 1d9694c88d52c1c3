"""Every Redis key, cursor and stream id."""

import base64
import binascii
import hashlib
import secrets

from dbserve.contracts.status import Run
from dbserve.errors import ConfigInvalid

SCHEMA_KEY = "dbserve:schema"
DEPLOYMENT = "dbserve:deployment"  # a name that no other Redis has
JOBS = "dbserve:jobs"  # sorted set by id alone: ids begin with their time
ACTIVE = "dbserve:active"  # ids of jobs that have not ended
FINISHED = "dbserve:finished"  # sorted set by the time of the end
DELETED = "dbserve:deleted"  # ids whose artefacts are still to be removed
MODELS = "dbserve:models"  # as JOBS
LEASE = "dbserve:lease:reconciler"
UPGRADE = "dbserve:lease:upgrade"
CLUSTER = "dbserve:cluster"  # ClusterRecord
COUNTERS = "dbserve:counters"  # hash of numbers that only grow
WEBHOOKS = "dbserve:webhooks"  # hash: id -> Webhook, its secret included: no worker's business
WEBHOOK_IDS = "dbserve:webhooks:ids"  # set; absent where there is none
OUTBOX = "dbserve:webhooks:outbox"  # stream: what webhooks are still to be told of
EVERY_REQUEST = "dbserve:idempotency:*"
API_KEYS = "dbserve:keys"  # hash: id -> ApiKey
API_KEYS_USED = "dbserve:keys:used"  # hash: id -> unix seconds
API_KEYS_MADE = "dbserve:keys:made"  # set with the first key, and never again removed
AUDIT_STRANGERS = "dbserve:audit:*:strangers"  # as audit(): who came with a key that does not open
LIMITS = "dbserve:limit"  # counts of requests, by what is limited and the minute


def job(job_id: str) -> str:
    """Hash: record, spec, plan, intent, revision (of tasks and intent), standing, finished_at, report."""
    return f"dbserve:job:{job_id}"


def tasks(job_id: str) -> str:
    """Hash: task name -> Task."""
    return f"dbserve:job:{job_id}:tasks"


def progress(job_id: str) -> str:
    """Hash: progress_field(run) -> Progress, past_field(task) -> Work, last_field(task) -> Progress."""
    return f"dbserve:job:{job_id}:progress"


def progress_field(run: Run) -> str:
    return f"{run.task}/{run.attempt}"


def past_field(task: str) -> str:
    """Of what a task's ended attempts did, but for the last of them."""
    return f"{task}/past"


def last_field(task: str) -> str:
    """Of what the last of a task's ended attempts had told."""
    return f"{task}/last"


def course(job_id: str, task: str) -> str:
    """List of Point, in the order in which they were told."""
    return f"dbserve:job:{job_id}:course:{task}"


def events(job_id: str) -> str:
    return f"dbserve:job:{job_id}:events"


def logs(job_id: str) -> str:
    return f"dbserve:job:{job_id}:logs"


def jobs_of(project: str) -> str:
    """As JOBS, of one project."""
    return f"dbserve:project:{project}:jobs"


def models_of(project: str) -> str:
    """As MODELS, of one project."""
    return f"dbserve:project:{project}:models"


def audit(project: str) -> str:
    """Stream of AuditEntry; that of "*" has what was done to the deployment."""
    return f"dbserve:audit:{project}"


def idempotency(project: str, key: str) -> str:
    return f"dbserve:idempotency:{project}:{hashlib.sha256(key.encode()).hexdigest()}"


def owner(name: str) -> str:
    """Set: ids of the jobs that count against a quota; those that have ended go when it is next asked."""
    return f"dbserve:owner:{name}"


def model(model_id: str) -> str:
    return f"dbserve:model:{model_id}"


def webhook_pending(webhook_id: str) -> str:
    """Hash: message id -> Delivery that has neither arrived nor been given up."""
    return f"dbserve:webhook:{webhook_id}:pending"


def webhook_due(webhook_id: str) -> str:
    """Sorted set of those message ids, by the unix seconds of their next attempt."""
    return f"dbserve:webhook:{webhook_id}:due"


def webhook_attempts(webhook_id: str) -> str:
    """List of the last attempts, newest first."""
    return f"dbserve:webhook:{webhook_id}:attempts"


def new_job_id(now: float) -> str:
    """Sorts by time: 'j', 11 hex digits of unix milliseconds, 10 random ones."""
    return f"j{int(now * 1000):011x}{secrets.token_hex(5)}"


def make_cursor(last_id: str) -> str:
    """An opaque cursor that names the last id a page showed."""
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def open_cursor(cursor: str) -> str:
    """The id inside a cursor. Raises ConfigInvalid for anything a listing did not give out."""
    try:
        opened = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, UnicodeError, ValueError):
        opened = ""
    if not opened.isalnum():
        raise ConfigInvalid("not a cursor that a listing gave out", pointer="/query/after", code="invalid_cursor")
    return opened


def stream_order(event_id: str) -> tuple[int, int]:
    """(milliseconds, number) of a stream id. Raises ConfigInvalid for anything else."""
    milliseconds, _, number = event_id.partition("-")
    if not (event_id.isascii() and milliseconds.isdecimal() and (number or "0").isdecimal()):
        raise ConfigInvalid("not an event id that this job gave out", pointer="/query/after", code="invalid_cursor")
    order = int(milliseconds), int(number or 0)
    if max(order) >= 2**63:
        raise ConfigInvalid("not an event id that this job gave out", pointer="/query/after", code="invalid_cursor")
    return order


def stream_id(event_id: str) -> str:
    """The id in Redis' own spelling."""
    milliseconds, number = stream_order(event_id)
    return f"{milliseconds}-{number}"

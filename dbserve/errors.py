"""Errors a caller can meet. `code` is stable and machine-readable; `pointer` is a JSON pointer to the offending key."""

from collections.abc import Sequence
from typing import NamedTuple


class Fault(NamedTuple):
    """One thing wrong with what was handed in."""

    pointer: str
    code: str
    message: str


class DbserveError(Exception):
    """Something dbserve can explain."""

    code = "dbserve_error"


class ConfigInvalid(DbserveError):
    """The job cannot be run as written."""

    code = "config_invalid"

    def __init__(self, message: str, pointer: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        self.pointer = pointer
        if code:
            self.code = code


class SpecInvalid(ConfigInvalid):
    """The job file breaks the rules, in one or more places."""

    code = "spec_invalid"

    def __init__(self, faults: Sequence[Fault]) -> None:
        first = faults[0]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"{first.message}{more}", first.pointer)
        self.faults = tuple(faults)


class DataInvalid(ConfigInvalid):
    """The shards are missing, empty, unreadable, or not what the job says."""

    code = "data_invalid"

    def __init__(self, message: str, pointer: str = "/data/uri") -> None:
        super().__init__(message, pointer)


class JobNotFound(DbserveError):
    """No job with this id is known, or its record was deleted."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id!r} is not known")
        self.job_id = job_id


class BlockNotFound(DbserveError):
    """The job has no block of this index."""

    code = "block_not_found"


class ModelNotFound(DbserveError):
    """No model with this id is known."""

    code = "model_not_found"

    def __init__(self, model_id: str) -> None:
        super().__init__(f"model {model_id!r} is not known")
        self.model_id = model_id


class ArchitectureNotFound(DbserveError):
    """No architecture of this kind is known."""

    code = "architecture_not_found"


class WebhookNotFound(DbserveError):
    """No webhook with this id is known."""

    code = "webhook_not_found"

    def __init__(self, webhook_id: str) -> None:
        super().__init__(f"webhook {webhook_id!r} is not known")
        self.webhook_id = webhook_id


class WebhookInvalid(SpecInvalid):
    """The webhook cannot be made as written."""

    code = "webhook_invalid"


class AddressRefused(ConfigInvalid):
    """Nothing is sent to such an address."""

    code = "address_refused"

    def __init__(self, message: str, pointer: str = "/url") -> None:
        super().__init__(message, pointer)


class TooManyWebhooks(DbserveError):
    """There are as many webhooks as there may be; delete one first."""

    code = "too_many_webhooks"


class KeyNotFound(DbserveError):
    """No API key with this id is known."""

    code = "key_not_found"

    def __init__(self, key_id: str) -> None:
        super().__init__(f"API key {key_id!r} is not known")


class KeyInvalid(SpecInvalid):
    """The API key cannot be made as written."""

    code = "key_invalid"


class KeyEnded(DbserveError):
    """The API key was revoked or has expired."""

    code = "key_ended"


class TooManyKeys(DbserveError):
    """The project has as many API keys as it may have; revoke one first."""

    code = "too_many_keys"


class ScopeMissing(DbserveError):
    """The API key may not do this."""

    code = "forbidden_scope"


class ProjectForbidden(DbserveError):
    """The API key belongs to another project."""

    code = "forbidden_project"


class ForeignRequest(DbserveError):
    """Where no key is asked for, only this machine's own names are answered, and its own page."""

    code = "forbidden_foreign"


class RateLimited(DbserveError):
    """Too many requests within a minute; try again after Retry-After seconds."""

    code = "rate_limited"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after  # seconds


class TooManyStreams(DbserveError):
    """The API key has as many open streams as it may have; close one first."""

    code = "too_many_streams"


class ReportNotReady(DbserveError):
    """The job has not been evaluated yet."""

    code = "report_not_ready"


class JobNotTerminal(DbserveError):
    """Only a job that has ended can be deleted."""

    code = "job_not_terminal"


class JobTerminal(DbserveError):
    """The job has already ended."""

    code = "job_terminal"


class QuotaExceeded(DbserveError):
    """This API key's project has as many unfinished jobs as it may have; one of them must end first."""

    code = "quota_exceeded"


class IdempotencyMismatch(DbserveError):
    """The Idempotency-Key was used before with another body."""

    code = "idempotency_mismatch"


class JobNotPaused(DbserveError):
    """Only a job that is paused, or is being paused, can be resumed."""

    code = "job_not_paused"


class NothingToRetry(DbserveError):
    """Neither the job nor the block has anything that failed, was cancelled, or waits to be tried again."""

    code = "nothing_to_retry"


class EventsGone(DbserveError):
    """Events after this id were dropped from the history; read the job's state and start again."""

    code = "events_gone"


class StaleRun(DbserveError):
    """The attempt was given up; another one is current."""

    code = "stale_run"


class IllegalTransition(DbserveError):
    """The event cannot happen to a task in this state."""

    code = "illegal_transition"


class ContractMismatch(DbserveError):
    """Two artefacts were made under different contracts."""

    code = "version_mismatch"


class CheckpointInvalid(DbserveError):
    """A checkpoint is incomplete, or its bytes are not those its manifest names."""

    code = "checkpoint_invalid"


class StorageError(DbserveError):
    """Something could not be written or read back: a full disk, a lost mount, a refused permission."""

    code = "storage_error"


class NonfiniteLoss(DbserveError):
    """The loss is NaN or infinite; training on would only spread it."""

    code = "nonfinite_loss"


class WorkerLost(DbserveError):
    """One of the workers that train a task together died; the others cannot go on without it.

    `reason` is what it said before, as dbserve.contracts.status.Reason has it; "" where it said nothing.
    """

    code = "worker_lost"

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class StoreUnavailable(DbserveError):
    """Redis does not answer."""

    code = "store_unavailable"


class StoreSilent(StoreUnavailable):
    """Redis does not answer.

    It was asked, and has not answered in time: who asks again waits again.
    """


class ClusterUnavailable(DbserveError):
    """Ray does not answer."""

    code = "cluster_unavailable"


class ServerUnreachable(DbserveError):
    """No dbserve API answers at this address."""

    code = "server_unreachable"


class StartupRefused(DbserveError):
    """The service cannot start as asked: a port in use, a public bind without a key, a data directory in use."""

    code = "startup_refused"

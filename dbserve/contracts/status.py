"""What runs, and what happened to it: Run, Task, the events of a task, Progress."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from dbserve.contracts.plan import TaskKind


class Run(BaseModel, frozen=True):
    """One attempt at one task: the fence. Whatever an attempt writes carries its Run."""

    job_id: str
    task: str
    attempt: int = Field(ge=1)

    def next(self) -> "Run":
        return Run(job_id=self.job_id, task=self.task, attempt=self.attempt + 1)

    def __str__(self) -> str:
        return f"{self.job_id}/{self.task}/{self.attempt}"


class TaskState(StrEnum):
    PENDING = "pending"
    LAUNCHED = "launched"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


HELD = frozenset({TaskState.LAUNCHED, TaskState.RUNNING})  # a worker should exist
TERMINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    RECOVERING = "recovering"
    ASSEMBLING = "assembling"
    EVALUATING = "evaluating"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_JOB = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class Intent(StrEnum):
    """What the user wants of a job; the reconciler makes it so."""

    RUN = "run"
    CANCEL = "cancel"


class Reason(StrEnum):
    USER_CANCELLED = "user_cancelled"
    UNSCHEDULABLE = "unschedulable"
    GPU_OOM = "gpu_oom"
    HOST_OOM = "host_oom"
    WORKER_LOST = "worker_lost"
    PREEMPTED = "preempted"
    STALLED = "stalled"
    NONFINITE_LOSS = "nonfinite_loss"
    DATA_ERROR = "data_error"
    STORAGE_ERROR = "storage_error"
    CHECKPOINT_INVALID = "checkpoint_invalid"
    VERSION_MISMATCH = "version_mismatch"
    CONFIG_INVALID = "config_invalid"
    DEPENDENCY_FAILED = "dependency_failed"
    CONTROLLER_ERROR = "controller_error"
    WORKER_ERROR = "worker_error"


# What another attempt cannot mend.
HOPELESS = frozenset({Reason.NONFINITE_LOSS, Reason.DATA_ERROR, Reason.CONFIG_INVALID, Reason.VERSION_MISMATCH})

# What is not the task's fault, and so costs nothing of its budget of attempts.
BLAMELESS = frozenset({Reason.PREEMPTED})


class CheckpointRef(BaseModel, frozen=True):
    """A committed checkpoint. `path` is relative to the artefact root."""

    step: int
    path: str
    sha256: str  # of the manifest
    attempt: int
    at: float  # unix seconds


class Task(BaseModel, frozen=True):
    """A task as it stands in the store. Changed only by lifecycle.advance()."""

    run: Run
    kind: TaskKind
    index: int = 0
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    state: TaskState = TaskState.PENDING
    max_attempts: int = 1
    not_before: float = 0.0  # unix seconds: backoff
    reason: Reason | None = None
    message: str | None = None
    node: str | None = None
    pid: int | None = None
    gpu: str | None = None
    checkpoints: tuple[CheckpointRef, ...] = ()  # oldest first
    created_at: float = 0.0
    started_at: float | None = None  # first training of any attempt
    finished_at: float | None = None
    restarts: dict[Reason, int] = Field(default_factory=dict[Reason, int])
    cluster: str | None = None  # identity of the Ray cluster the attempt was launched on


class _Event(BaseModel, frozen=True):
    run: Run
    at: float  # unix seconds


class Launched(_Event, frozen=True):
    """The reconciler asked the cluster for a worker."""

    kind: Literal["launched"] = "launched"
    cluster: str


class Started(_Event, frozen=True):
    """The worker is up and begins its work."""

    kind: Literal["started"] = "started"
    node: str
    pid: int
    gpu: str | None = None


class Checkpointed(_Event, frozen=True):
    """A whole checkpoint lies in the artefact store; keep the newest `keep_last`."""

    kind: Literal["checkpointed"] = "checkpointed"
    checkpoint: CheckpointRef
    keep_last: int = Field(ge=1)


class Finished(_Event, frozen=True):
    kind: Literal["finished"] = "finished"


class Crashed(_Event, frozen=True):
    """The attempt ended without finishing; `retry_at` is when the next one may start."""

    kind: Literal["crashed"] = "crashed"
    reason: Reason
    message: str
    retry_at: float = 0.0


class CancelRequested(_Event, frozen=True):
    kind: Literal["cancel_requested"] = "cancel_requested"


class Stopped(_Event, frozen=True):
    """The worker of a cancelling task is confirmed gone."""

    kind: Literal["stopped"] = "stopped"


class Held(_Event, frozen=True):
    """The task cannot be launched at present, and why. It stays pending."""

    kind: Literal["held"] = "held"
    reason: Reason
    message: str


class Abandoned(_Event, frozen=True):
    """A task that cannot start any more: something it needs has failed."""

    kind: Literal["abandoned"] = "abandoned"
    message: str


TaskEvent = Annotated[
    Launched | Started | Checkpointed | Finished | Crashed | CancelRequested | Stopped | Held | Abandoned,
    Field(discriminator="kind"),
]


class MemoryBytes(BaseModel, frozen=True):
    """Measured bytes of one network in training. None: not measurable on this device."""

    parameters: int | None = None
    gradients: int | None = None
    optimizer: int | None = None
    activations: int | None = None
    allocated: int | None = None  # CUDA
    reserved: int | None = None  # CUDA
    peak: int | None = None  # CUDA: peak allocated; CPU: the sum of the four kinds
    host: int | None = None  # resident set of the worker process


class Progress(BaseModel, frozen=True):
    """The last thing an attempt said of itself. History, never truth: losing it loses no work."""

    run: Run
    step: int
    total: int
    heartbeat_at: float  # unix seconds
    last_step_at: float | None = None
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    samples_total: int = 0  # since step 0, not since this attempt
    samples_per_second: float | None = None
    data_wait_seconds_total: float = 0.0  # of this attempt
    memory: MemoryBytes = MemoryBytes()


class LoggedEvent(BaseModel, frozen=True):
    """An event as the stream holds it. `id` is its place ("<ms>-<n>"), opaque to clients."""

    id: str
    at: float
    kind: str  # of a task event, or job_created, job_cancel_requested, job_finished
    task: str | None = None
    attempt: int | None = None
    job_status: JobStatus
    data: dict[str, object] = Field(default_factory=dict[str, object])


class LogLine(BaseModel, frozen=True):
    id: str
    at: float
    task: str
    attempt: int
    level: str
    message: str


class JobRecord(BaseModel, frozen=True):
    """The unchanging part of a job plus the user's intent. `spec` and `plan` are read apart: they are large."""

    id: str
    name: str
    labels: dict[str, str]
    created_at: float
    intent: Intent
    finished_at: float | None = None

"""What runs, and what happened to it: Run, Task, the events of a task, Progress."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue

from dbserve.contracts.job import DeadlinesSpec, QueueSpec, RetrySpec
from dbserve.contracts.key import DEFAULT_PROJECT
from dbserve.contracts.plan import TaskKind
from dbserve.contracts.work import BandLoss, Work


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
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


HELD = frozenset({TaskState.LAUNCHED, TaskState.RUNNING})  # a worker should exist
STOPPING = frozenset({TaskState.PAUSING, TaskState.CANCELLING})  # one may exist, and is to end
OCCUPYING = HELD | STOPPING  # what holds resources
TERMINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    RECOVERING = "recovering"
    ASSEMBLING = "assembling"
    EVALUATING = "evaluating"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_JOB = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class Intent(StrEnum):
    """What the user wants of a job; the reconciler makes it so."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Reason(StrEnum):
    USER_CANCELLED = "user_cancelled"
    DEADLINE_EXCEEDED = "deadline_exceeded"
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

# What half a micro-batch may mend, once.
OUT_OF_MEMORY = frozenset({Reason.GPU_OOM, Reason.HOST_OOM})


class Condition(StrEnum):
    """What is wrong with a task that goes on all the same. Not a state: derived at each look, and gone by itself."""

    UNSCHEDULABLE = "unschedulable"  # no node of the cluster could ever hold it
    UNREACHABLE = "unreachable"  # its worker has not been heard of for a while
    STALLED = "stalled"  # its worker lives, and takes no step
    CHECKPOINT_STALE = "checkpoint_stale"  # the last checkpoint could not be saved


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
    place: int = 0  # in the plan's order
    steps: int = 0  # of the plan; 0: nothing is trained
    cpus: float = 1.0  # held by each replica while the task has workers
    gpus: float = 0.0
    replicas: int = 1  # wanted
    min_replicas: int = 1  # the fewest it starts with
    placement: Literal["pack", "spread"] | None = None
    gpu_type: str | None = None
    node_labels: dict[str, str] = Field(default_factory=dict[str, str])  # that its nodes must have
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    state: TaskState = TaskState.PENDING
    max_attempts: int = 1
    max_preemptions: int = 1000
    crashes: int = 0  # of the budget, since the job was made or retried
    preemptions: int = 0  # the same
    restarts: dict[Reason, int] = Field(default_factory=dict[Reason, int])  # every lost attempt there ever was
    recovering: bool = False  # lost a worker, and has not begun again
    not_before: float = 0.0  # unix seconds: backoff
    reason: Reason | None = None
    message: str | None = None
    micro_rows: int = 0  # rows of a micro-batch as planned; 0: nothing is trained
    split: int = 1  # each planned micro-batch is taken in so many parts: 2 after it did not fit into memory
    stop_by: float | None = None  # unix seconds; a worker that is to stop or to move, and still lives then, is killed
    launched_at: float | None = None  # of this attempt
    node: str | None = None
    node_id: str | None = None  # the cluster's own name for it
    pid: int | None = None
    born: float | None = None  # when the process was created, by its node's clock: with the pid, which process it is
    gpu: str | None = None
    cluster: str | None = None  # identity of the Ray cluster the attempt was launched on
    nodes: tuple[str, ...] = ()  # the cluster's name for each replica's node, the leading one's first; (): anywhere
    trace: str = ""  # W3C traceparent of the attempt's launch; "" where nothing is traced
    checkpoints: tuple[CheckpointRef, ...] = ()  # oldest first
    failed_saves: int = 0  # steps whose checkpoint could not be saved, since the last good one
    failed_save: int | None = None  # the last of them
    created_at: float = 0.0
    started_at: float | None = None  # first training of any attempt
    finished_at: float | None = None


class _Event(BaseModel, frozen=True):
    """`at` is the sender's clock (unix seconds); the store writes its own over it, so that there is one for all."""

    run: Run
    at: float = 0.0


class Launched(_Event, frozen=True):
    """The reconciler asked the cluster for a worker."""

    kind: Literal["launched"] = "launched"
    cluster: str
    nodes: tuple[str, ...] = ()  # of each replica that was granted, the leading one's first; (): one, anywhere
    trace: str = ""  # W3C traceparent of the launch


class Started(_Event, frozen=True):
    """The worker is up and begins its work."""

    kind: Literal["started"] = "started"
    node: str
    pid: int
    gpu: str | None = None
    node_id: str | None = None
    born: float | None = None


class LostCheckpoint(BaseModel, frozen=True):
    """A committed checkpoint that could not be read back whole, and why."""

    step: int
    path: str
    message: str


class Restored(_Event, frozen=True):
    """Where a training goes on: from the newest whole checkpoint (step 0: from its beginning), passing over `lost`."""

    kind: Literal["restored"] = "restored"
    step: int
    lost: tuple[LostCheckpoint, ...] = ()


class Checkpointed(_Event, frozen=True):
    """A whole checkpoint lies in the artefact store; keep the newest `keep_last`."""

    kind: Literal["checkpointed"] = "checkpointed"
    checkpoint: CheckpointRef
    keep_last: int = Field(ge=1)


class CheckpointFailed(_Event, frozen=True):
    """A checkpoint could not be saved; the training goes on, and the one before still counts."""

    kind: Literal["checkpoint_failed"] = "checkpoint_failed"
    step: int
    message: str


class Finished(_Event, frozen=True):
    kind: Literal["finished"] = "finished"


class Crashed(_Event, frozen=True):
    """The attempt ended without finishing; the next one may start `retry_after` seconds later."""

    kind: Literal["crashed"] = "crashed"
    reason: Reason
    message: str
    retry_after: float = 0.0


NO_TIME = 0.0  # a `stop_by` that was over before anything began: stop at once, and save nothing


class PauseRequested(_Event, frozen=True):
    """Save a last checkpoint and make room; killed where it has not by `stop_by` (unix seconds, the store's clock)."""

    kind: Literal["pause_requested"] = "pause_requested"
    stop_by: float


class MoveRequested(_Event, frozen=True):
    """A node that the task is on is about to go: save a last checkpoint, and the next attempt goes on elsewhere.

    The attempt ends as preempted; it is killed where it has not by `stop_by` (unix seconds, the store's clock).
    """

    kind: Literal["move_requested"] = "move_requested"
    stop_by: float
    message: str


class Resumed(_Event, frozen=True):
    kind: Literal["resumed"] = "resumed"


class CancelRequested(_Event, frozen=True):
    """As PauseRequested, for good. Asked again, the earlier `stop_by` holds: so a cancel is forced, by NO_TIME."""

    kind: Literal["cancel_requested"] = "cancel_requested"
    stop_by: float
    reason: Literal[Reason.USER_CANCELLED, Reason.DEADLINE_EXCEEDED] = Reason.USER_CANCELLED
    message: str | None = None


class Stopped(_Event, frozen=True):
    """The worker of a task that was to stop is confirmed gone."""

    kind: Literal["stopped"] = "stopped"


class Retried(_Event, frozen=True):
    """The user wants another try, with fresh budgets; it goes on from the last checkpoint."""

    kind: Literal["retried"] = "retried"


class Held(_Event, frozen=True):
    """The task cannot be launched at present, and why; it stays pending. Without a reason it merely waits."""

    kind: Literal["held"] = "held"
    reason: Reason | None = None
    message: str | None = None


class Abandoned(_Event, frozen=True):
    """A task that cannot start any more: something it needs has failed."""

    kind: Literal["abandoned"] = "abandoned"
    message: str


TaskEvent = Annotated[
    Launched
    | Started
    | Restored
    | Checkpointed
    | CheckpointFailed
    | Finished
    | Crashed
    | PauseRequested
    | MoveRequested
    | Resumed
    | CancelRequested
    | Stopped
    | Retried
    | Held
    | Abandoned,
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
    device: int | None = None  # size of the memory that it trains in: the GPU's, else the host's


class Replica(BaseModel, frozen=True):
    """Where another worker of a task is."""

    node: str  # its host's name
    gpu: str | None = None  # UUID of its GPU, or several with commas


class Progress(BaseModel, frozen=True):
    """The last thing an attempt said of itself. History, never truth: losing it loses no work."""

    run: Run
    step: int
    total: int
    trials: int = 0  # of lr: scan, which takes no steps; with `step`, what counts as progress
    heartbeat_at: float  # unix seconds; read back, it is when the store took it in
    last_step_at: float | None = None
    loss: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    samples_total: int = 0  # since step 0, not since this attempt
    samples_per_second: float | None = None
    eval_loss: tuple[BandLoss, ...] = ()  # the last there is, one of each band of noise levels
    work: Work = Work()  # of this attempt
    memory: MemoryBytes = MemoryBytes()
    replicas: tuple[Replica, ...] = ()  # that have come in this attempt, besides the leading one


class LoggedEvent(BaseModel, frozen=True):
    """An event as the stream holds it. `id` is its place ("<ms>-<n>"), opaque to clients."""

    id: str
    at: float
    kind: str  # of a task event, or job_created, job_{pause,resume,cancel,retry}_requested, job_finished
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
    fields: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])  # what else the line says


class JobRecord(BaseModel, frozen=True):
    """What of a job never changes and is read with every look at it, plus the user's intent.

    `spec` and `plan` are read apart: they are large. What the reconciler needs of the spec is repeated here.
    """

    id: str
    name: str
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    architecture: str = ""
    created_at: float
    trace: str = ""  # W3C traceparent of its submission; "" where nothing is traced
    project: str = DEFAULT_PROJECT
    owner: str = ""  # who takes turns with others and has a quota: a project, or a bootstrap key (its digest)
    retry: RetrySpec = RetrySpec()
    deadlines: DeadlinesSpec = DeadlinesSpec()
    queue: QueueSpec = QueueSpec()
    grace_seconds: float = 30.0  # for a last checkpoint
    intent: Intent = Intent.RUN
    finished_at: float | None = None

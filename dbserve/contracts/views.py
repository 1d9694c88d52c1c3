"""What the REST API answers, as the client reads it. Times are UTC; durations are seconds; sizes are bytes."""

from typing import Generic, TypeVar

from pydantic import AwareDatetime, BaseModel, Field, JsonValue

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import MemoryPlan, TaskKind
from dbserve.contracts.status import Condition, JobStatus, MemoryBytes, Reason, TaskState

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item], frozen=True):
    """One page of a collection; hand `next` back as `after` to go on."""

    data: tuple[Item, ...]
    has_more: bool = False
    next: str | None = None


class FaultView(BaseModel, frozen=True):
    """One thing wrong with a request."""

    pointer: str = Field(description="JSON pointer into the body; or /query/..., /path/..., /header/...")
    code: str
    message: str


class Problem(BaseModel, frozen=True):
    """An error (RFC 9457, application/problem+json). `code` is stable; `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: tuple[FaultView, ...] = ()


class ProgressView(BaseModel, frozen=True):
    """Optimizer steps over all trained tasks, baselines included."""

    step: int
    total: int
    percent: float
    eta_seconds: float | None = Field(default=None, description="null: no running task has told its speed yet")


class TaskView(BaseModel, frozen=True):
    """A task in brief, as its current attempt stands."""

    name: str
    kind: TaskKind
    index: int
    status: TaskState
    attempt: int
    max_attempts: int
    reason: Reason | None = None
    message: str | None = None
    conditions: tuple[Condition, ...] = Field(default=(), description="what is wrong though the task goes on")
    node: str | None = None
    step: int
    total: int = Field(description="0 where nothing is trained (assembly, evaluation)")
    percent: float
    eta_seconds: float | None = None
    loss: float | None = None
    samples_per_second: float | None = None
    memory_peak: int | None = Field(default=None, description="measured bytes in training")
    heartbeat_at: AwareDatetime | None = None
    retry_at: AwareDatetime | None = Field(default=None, description="a crashed task is not started again before this")


class CheckpointView(BaseModel, frozen=True):
    """A committed checkpoint; `path` is relative to the artefact root."""

    step: int
    attempt: int
    at: AwareDatetime
    path: str
    sha256: str


class TaskCheckpointView(CheckpointView, frozen=True):
    """A committed checkpoint of one of a job's tasks."""

    task: str


class BlockView(TaskView, frozen=True):
    """A block in full: its place in the network, its last figures, its memory against the prediction."""

    layers: tuple[int, int] = Field(description="[start, stop)")
    sigma_min: float
    sigma_max: float
    train_sigma_min: float
    train_sigma_max: float
    parameters: int
    memory_predicted: MemoryPlan
    memory_measured: MemoryBytes | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    samples_total: int = 0
    data_wait_seconds_total: float = 0.0
    last_step_at: AwareDatetime | None = None
    last_checkpoint: CheckpointView | None = None
    restarts: dict[Reason, int]
    gpu: str | None = None
    pid: int | None = None
    started_at: AwareDatetime | None = None
    finished_at: AwareDatetime | None = None


class JobSummary(BaseModel, frozen=True):
    """A job in a list."""

    id: str
    name: str
    labels: dict[str, str]
    architecture: str
    status: JobStatus
    reason: Reason | None = None
    message: str | None = None
    created_at: AwareDatetime
    finished_at: AwareDatetime | None = None
    progress: ProgressView


class JobLinks(BaseModel, frozen=True):
    """Where to go from a job; null: not there yet."""

    self: str
    blocks: str
    events: str
    logs: str
    metrics: str
    live: str
    checkpoints: str
    cancel: str | None = None
    pause: str | None = None
    resume: str | None = None
    retry: str | None = None
    report: str | None = None
    model: str | None = None


class JobView(JobSummary, frozen=True):
    """A job in full."""

    blocks: tuple[TaskView, ...] = Field(description="the tasks that are blocks; block 0 owns sigma_max")
    tasks: tuple[TaskView, ...] = Field(description="every task, in the order of the plan")
    memory_ratio: float = Field(description="predicted: largest block / end-to-end")
    contract_hash: str
    warnings: tuple[str, ...]
    spec: JobSpec
    links: JobLinks


class EventView(BaseModel, frozen=True):
    """Something that happened to a job. `id` is opaque; hand it back as `after` or Last-Event-ID."""

    id: str
    at: AwareDatetime
    kind: str
    task: str | None = None
    attempt: int | None = None
    job_status: JobStatus
    data: dict[str, JsonValue]


class LogView(BaseModel, frozen=True):
    """One line a worker logged."""

    id: str
    at: AwareDatetime
    task: str
    attempt: int
    level: str
    message: str
    fields: dict[str, JsonValue] = Field(
        default_factory=dict[str, JsonValue], description="what else the line says; `exception`: a traceback"
    )


class PointView(BaseModel, frozen=True):
    """A training at one of its steps; null: not measured."""

    step: int
    at: AwareDatetime
    attempt: int
    loss: float | None = Field(default=None, description="mean since the point before")
    grad_norm: float | None = None
    samples_per_second: float | None = None
    memory_bytes: int | None = Field(default=None, description="peak so far, in training")
    host_memory_bytes: int | None = Field(default=None, description="resident set of the worker")


class CourseView(BaseModel, frozen=True):
    """The course of one task's training, by step; what an attempt did anew replaces what was before."""

    name: str
    kind: TaskKind
    index: int
    total: int = Field(description="steps the job asks for")
    memory_predicted: int = Field(description="bytes in training, of one worker")
    points: tuple[PointView, ...]


class JobMetricsView(BaseModel, frozen=True):
    """The course of every training of a job."""

    job_id: str
    tasks: tuple[CourseView, ...]


class ModelSummary(BaseModel, frozen=True):
    """An assembled model in a list."""

    id: str
    job_id: str
    name: str
    version: int
    created_at: AwareDatetime
    contract_hash: str
    download: str = Field(description="path of the tar stream")


class ModelView(ModelSummary, frozen=True):
    """An assembled model with its manifest: the contract, and the lineage of every block."""

    path: str = Field(description="relative to the artefact root")
    manifest: dict[str, JsonValue]


class ArchitectureSummary(BaseModel, frozen=True):
    kind: str
    summary: str


class ArchitectureView(ArchitectureSummary, frozen=True):
    """A network that can be asked for: the JSON schema of its options, and the defaults in it."""

    options_schema: dict[str, JsonValue]
    defaults: dict[str, JsonValue]


class ReadinessView(BaseModel, frozen=True):
    """`missing` names what the service needs and has not, each as `unavailable`: its log says why."""

    status: str
    missing: dict[str, str]


class HealthView(BaseModel, frozen=True):
    status: str
    version: str

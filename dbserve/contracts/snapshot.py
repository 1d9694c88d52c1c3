"""One consistent look at a job: the API, the CLI, the page and /metrics all read this and nothing else."""

from pydantic import BaseModel, Field, JsonValue

from dbserve.contracts.job import JobSpec
from dbserve.contracts.key import DEFAULT_PROJECT
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.status import JobRecord, JobStatus, Progress, Reason, Task
from dbserve.contracts.work import Work


class Standing(BaseModel, frozen=True):
    """What tasks and intent together say of their job. Derived, always: where it is kept, it is kept beside them, by
    the very write that changes them, so that a list of jobs need not read every task."""

    status: JobStatus
    reason: Reason | None = None
    message: str | None = None
    steps_saved: int = 0  # of all tasks: what succeeded, and what the last checkpoints hold
    steps: int = 0  # of all tasks, as planned


class ListedJob(BaseModel, frozen=True):
    """A job in a list that has no workers at present."""

    record: JobRecord
    standing: Standing


class JobOutline(BaseModel, frozen=True):
    """A job as it stands, without what it was asked for; `status` is derived from tasks and intent, never stored."""

    record: JobRecord
    status: JobStatus
    reason: Reason | None = None
    message: str | None = None
    tasks: dict[str, Task]  # in the plan's order
    progress: dict[str, Progress]  # of each task's current attempt, where it has reported
    past: dict[str, Work] = Field(default_factory=dict[str, Work])  # of each task's attempts before that


class JobSnapshot(JobOutline, frozen=True):
    """An outline together with the job's spec and plan."""

    spec: JobSpec
    plan: JobPlan


class ModelRecord(BaseModel, frozen=True):
    """An assembled model. `path` is relative to the artefact root."""

    id: str
    job_id: str
    name: str
    version: int
    created_at: float
    contract_hash: str
    path: str
    project: str = DEFAULT_PROJECT  # that of its job
    manifest: dict[str, JsonValue]

"""The cluster as the REST API shows it. Times are UTC; durations are seconds."""

from pydantic import AwareDatetime, BaseModel, Field

from dbserve.contracts.plan import TaskKind
from dbserve.contracts.status import TaskState


class WorkerView(BaseModel, frozen=True):
    """A task of the caller's project that holds a part of a node."""

    job_id: str
    task: str
    kind: TaskKind
    attempt: int
    status: TaskState
    replicas: int = Field(description="of the task that are on this node")
    moving: bool = Field(default=False, description="it saves a last checkpoint, and goes on elsewhere")


class NodeView(BaseModel, frozen=True):
    """A living node. What is free is what dbserve has not given away."""

    id: str = Field(description="the cluster's own name for it")
    name: str
    cpus: float
    cpus_free: float
    gpus: float
    gpus_free: float
    gpu_type: str | None = None
    labels: dict[str, str]
    draining: bool = Field(default=False, description="it is about to go; nothing is started there")
    leaves_in_seconds: float | None = Field(default=None, description="null: nobody said when")
    workers: tuple[WorkerView, ...] = ()
    others: int = Field(default=0, description="replicas of other projects")


class ClusterView(BaseModel, frozen=True):
    """The nodes as a reconciler last saw them, and what is on them now."""

    seen_at: AwareDatetime | None = Field(description="null: no reconciler has looked yet")
    nodes: tuple[NodeView, ...] = ()
    waiting: int = Field(default=0, description="tasks of the caller's project that wait for room on a node")

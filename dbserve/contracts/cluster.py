"""What a cluster has, what a task holds of it, and whether a worker is still there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Presence(StrEnum):
    """Of a worker's process, and of the GPU memory it held: "dead" in a cluster's books is not "gone"."""

    PRESENT = "present"
    GONE = "gone"
    UNKNOWN = "unknown"  # its node is lost, or does not answer


@dataclass(frozen=True)
class Resources:
    """CPU and GPU counts, of one replica of a task or of a node; a fraction of a GPU is of one GPU."""

    cpus: float
    gpus: float

    def fits(self, free: "Resources") -> bool:
        return self.cpus <= free.cpus + 1e-9 and self.gpus <= free.gpus + 1e-9

    def minus(self, other: "Resources") -> "Resources":
        return Resources(self.cpus - other.cpus, self.gpus - other.gpus)


@dataclass(frozen=True)
class Node:
    """A living machine of the cluster, and all it offers, in use or not."""

    id: str  # the cluster's own name for it
    name: str  # its host's
    resources: Resources
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    gpu_type: str | None = None  # of its GPUs; None: it has none, or nobody said which
    draining: bool = False  # it is about to go: nothing is to begin there, and what runs there is to be moved
    drain_by: float | None = None  # unix seconds at which it goes, where that was said


@dataclass(frozen=True)
class Capacity:
    """The living nodes of a cluster."""

    nodes: tuple[Node, ...]

    @property
    def total(self) -> Resources:
        each = [node.resources for node in self.nodes]
        return Resources(sum(one.cpus for one in each), sum(one.gpus for one in each))

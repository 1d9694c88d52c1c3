"""What a cluster has, what a task holds of it, and whether a worker is still there."""

from dataclasses import dataclass
from enum import StrEnum


class Presence(StrEnum):
    """Of a worker's process, and of the GPU memory it held: "dead" in a cluster's books is not "gone"."""

    PRESENT = "present"
    GONE = "gone"
    UNKNOWN = "unknown"  # its node is lost, or does not answer


@dataclass(frozen=True)
class Resources:
    """CPU and GPU counts; fractions allowed."""

    cpus: float
    gpus: float

    def fits(self, free: "Resources") -> bool:
        return self.cpus <= free.cpus + 1e-9 and self.gpus <= free.gpus + 1e-9

    def minus(self, other: "Resources") -> "Resources":
        return Resources(self.cpus - other.cpus, self.gpus - other.gpus)


@dataclass(frozen=True)
class Capacity:
    """What each node of the cluster has, in use or not."""

    nodes: tuple[Resources, ...]

    @property
    def total(self) -> Resources:
        return Resources(sum(node.cpus for node in self.nodes), sum(node.gpus for node in self.nodes))

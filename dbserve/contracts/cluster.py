"""What a cluster has and what a task holds of it."""

from dataclasses import dataclass


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

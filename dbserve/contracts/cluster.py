"""What a cluster has, what a task holds of it, and whether a worker is still there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, floor

from pydantic import BaseModel


class Presence(StrEnum):
    """Of a worker's process, and of the GPU memory it held: "dead" in a cluster's books is not "gone"."""

    PRESENT = "present"
    GONE = "gone"
    ASKED = "asked"  # its node was asked just now: as good as present until it says otherwise
    UNKNOWN = "unknown"  # its node is lost, or does not answer


@dataclass(frozen=True)
class Resources:
    """CPU and GPU counts, of one replica of a task or of a node; a fraction of a GPU is of one GPU."""

    cpus: float
    gpus: float

    @property
    def told(self) -> "Resources":
        """As Ray takes them: four places of a fraction, which are cut off, lest it count more than we have given away;
        above one GPU, whole ones."""
        gpus = _cut_off(self.gpus) if self.gpus < 1.0 else float(ceil(self.gpus - _EPS))
        return Resources(_cut_off(self.cpus), gpus)

    @property
    def reserved(self) -> "Resources":
        """As Ray's autoscaler takes them, which adds up parts of several GPUs: for a part that fits n times on one GPU
        an n-th, or what is left on each would count together. A trifle less of what is not whole, lest its sums, in
        floating point, come to more than there is."""
        told = self.told
        gpus = 1.0 / floor((1.0 + _EPS) / self.gpus) if 0.0 < self.gpus < 1.0 else told.gpus
        return Resources(*(count if count == floor(count) else count - _EPS for count in (told.cpus, gpus)))


_EPS = 1e-9


def _cut_off(count: float) -> float:
    return floor(count * 10_000 + 1e-6) / 10_000


@dataclass(frozen=True)
class Node:
    """A living machine of the cluster, and all it offers, in use or not."""

    id: str  # the cluster's own name for it
    name: str  # its host's
    resources: Resources
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    gpu_type: str | None = None  # of its GPUs; None: it has none, or nobody said which
    draining: bool = False  # it is about to go: nothing is to begin there, and what runs there is to be moved
    leaves_in: float | None = None  # seconds until it goes, where that was said
    silent: bool = False  # it was asked for a worker of its own, and did not answer: nothing is to begin there for now


@dataclass(frozen=True)
class Demand:
    """What an autoscaler is to make room for, and how often."""

    resources: Resources
    labels: tuple[tuple[str, str], ...] = ()
    gpu_type: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Growth:
    """An autoscaler may add nodes; of which kinds, Ray's does not say."""

    left_out: frozenset[Demand] = frozenset()  # kinds of one replica for which it has just said that it can add none


@dataclass(frozen=True)
class Capacity:
    """The living nodes of a cluster, and how it may grow; None: it does not."""

    nodes: tuple[Node, ...]
    growth: Growth | None = None


class ClusterRecord(BaseModel, frozen=True):
    """The living nodes as a reconciler last saw them."""

    at: float  # unix seconds, the store's clock
    cluster: str  # its identity
    nodes: tuple[Node, ...]

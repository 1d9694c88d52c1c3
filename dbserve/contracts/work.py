"""What attempts did, as counts that add up: each counts from zero, and a task's work is the sum over its attempts."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import reduce
from typing import Self

from pydantic import BaseModel, Field

# Upper bounds in seconds of the buckets that durations are counted in; what is longer falls into one more.
STEP_BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SAVE_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
WAIT_BOUNDS = (1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)  # of a job in the queue
JOB_BOUNDS = (60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0, 3 * 24 * 3600.0, 7 * 24 * 3600.0)
TICK_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # of the reconciler


class CheckpointStage(StrEnum):
    """Where a checkpoint failed."""

    SAVE = "save"  # a try at writing it
    OVERRUN = "overrun"  # it was not begun: the one before was still being written
    RESTORE = "restore"  # it was not whole when it was read back


class Durations(BaseModel, frozen=True):
    """A histogram: `counts[i]` observations of at most the i-th bound, and of more than the one before it."""

    counts: tuple[int, ...] = ()  # one more than there are bounds; (): nothing was observed
    seconds: float = 0.0  # of all observations

    @property
    def count(self) -> int:
        return sum(self.counts)

    def observed(self, seconds: float, bounds: Sequence[float], times: int = 1) -> Self:
        """With `times` more observations of this length."""
        counts = list(self.counts) or [0] * (len(bounds) + 1)
        counts[bucket_of(seconds, bounds)] += times
        return self.model_copy(update={"counts": tuple(counts), "seconds": self.seconds + times * seconds})

    def plus(self, other: "Durations") -> Self:
        """Of both. What was counted in other buckets, by another version, is left out."""
        if not self.counts or not other.counts:
            return self.model_copy(update=dict(other)) if other.counts else self
        if len(self.counts) != len(other.counts):
            return self
        counts = tuple(ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True))
        return self.model_copy(update={"counts": counts, "seconds": self.seconds + other.seconds})


class Work(BaseModel, frozen=True):
    """What one attempt did, or several together. Work done twice, after a checkpoint, is counted twice: it was done."""

    steps: int = 0  # optimizer steps
    samples: int = 0  # of all the task's workers
    tokens: int = 0  # 0 where the data are images
    step_seconds: Durations = Durations()  # in STEP_BOUNDS; on CUDA of means over the steps of a report
    data_wait_seconds: float = 0.0
    read_bytes: int = 0  # taken out of the decoded shards, by the leading worker
    sent_bytes: int = 0  # of tensors handed to the task's other workers, by the leading one
    stray_bytes: int = 0  # the same, to any other process
    nonfinite_steps: int = 0
    save_seconds: Durations = Durations()  # in SAVE_BOUNDS: whole checkpoints, their pointers included
    failed_checkpoints: dict[CheckpointStage, int] = Field(default_factory=dict[CheckpointStage, int])

    def plus(self, other: "Work") -> "Work":
        """Both together."""
        failed = dict(self.failed_checkpoints)
        for stage, count in other.failed_checkpoints.items():
            failed[stage] = failed.get(stage, 0) + count
        return Work(
            steps=self.steps + other.steps,
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
            step_seconds=self.step_seconds.plus(other.step_seconds),
            data_wait_seconds=self.data_wait_seconds + other.data_wait_seconds,
            read_bytes=self.read_bytes + other.read_bytes,
            sent_bytes=self.sent_bytes + other.sent_bytes,
            stray_bytes=self.stray_bytes + other.stray_bytes,
            nonfinite_steps=self.nonfinite_steps + other.nonfinite_steps,
            save_seconds=self.save_seconds.plus(other.save_seconds),
            failed_checkpoints=failed,
        )


def sum_of(works: Iterable[Work]) -> Work:
    """All of them together."""
    return reduce(Work.plus, works, Work())


class BandLoss(BaseModel, frozen=True):
    """Mean loss on held-out rows, at noise levels of (low, high]."""

    low: float
    high: float
    loss: float | None  # nats, unless the architecture says otherwise; None: it is not finite


class Point(BaseModel, frozen=True):
    """A task at one of its steps: what is kept of the course of its training."""

    step: int
    at: float  # unix seconds, the worker's clock
    attempt: int
    loss: float | None = None  # mean since the point before
    grad_norm: float | None = None
    samples_per_second: float | None = None
    memory_bytes: int | None = None  # peak so far, in training
    host_memory_bytes: int | None = None  # resident set of the worker


def bucket_of(seconds: float, bounds: Sequence[float]) -> int:
    """Where an observation is counted: the first bound that is not exceeded, or len(bounds)."""
    return bisect_left(bounds, seconds)


def course(points: Sequence[Point]) -> tuple[Point, ...]:
    """One curve out of the points of all attempts, by step: what a later attempt did anew replaces what was before.

    An attempt that goes on from a checkpoint takes back all that its predecessors did beyond it.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.attempt, point.step)):
        while kept and kept[-1].step >= point.step:
            kept.pop()
        kept.append(point)
    return tuple(kept)


def thinned(points: Sequence[Point], most: int) -> tuple[Point, ...]:
    """At most so many of them, evenly chosen, the first and the last included. `most` is at least 2."""
    if len(points) <= most:
        return tuple(points)
    last = len(points) - 1
    return tuple(points[round(place * last / (most - 1))] for place in range(most))

"""What an attempt has done and how it stands: step reports become Progress, Work, and points of its course."""

import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from dbserve.contracts.status import MemoryBytes, Progress, Replica, Run
from dbserve.contracts.work import (
    SAVE_BOUNDS,
    STEP_BOUNDS,
    BandLoss,
    CheckpointStage,
    Durations,
    Point,
    Work,
    bucket_of,
)
from workers.means import MeanSince

if TYPE_CHECKING:
    from workers.trainer import StepReport  # torch comes with it

RATE_SECONDS = 5.0  # samples_per_second is taken over at least this long
POINTS = 120  # of a task's course


@dataclass
class _Tally:
    """Durations, counted in place: there may be a thousand steps between two heartbeats."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list[int])
    seconds: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)
        self.counts[bucket_of(seconds, self.bounds)] += times
        self.seconds += times * seconds

    def read(self) -> Durations:
        return Durations(counts=tuple(self.counts), seconds=self.seconds)


class Account:
    """Written by the training thread and by what saves, read at every heartbeat.

    `batch_size` rows a step of all the task's workers together; `sequence_length` tokens of a row, 0 for images. On a
    `gpu`, how large the memory is that it trains in is not known before the first report.
    """

    def __init__(self, run: Run, *, steps: int, batch_size: int, sequence_length: int = 0, gpu: bool = False) -> None:
        self._run = run
        self._total = steps
        self._batch_size = batch_size
        self._sequence_length = sequence_length
        self._lock = threading.Lock()
        self._report: StepReport | None = None
        self._done = 0  # steps of this attempt
        self._trials = 0
        self._memory = MemoryBytes()
        self._step_seconds, self._save_seconds = _Tally(STEP_BOUNDS), _Tally(SAVE_BOUNDS)
        self._data_wait = 0.0
        self._read_bytes = self._sent_bytes = self._stray_bytes = self._nonfinite = 0
        self._replicas: dict[int, Replica] = {}  # besides the leading one, by rank
        self._failed: dict[CheckpointStage, int] = {}
        self._eval_loss: tuple[BandLoss, ...] = ()
        self._last_step_at: float | None = None
        self._rate: float | None = None
        self._mark: tuple[float, int] | None = None  # (monotonic seconds, step) the rate is counted from
        self._stride = math.ceil(steps / POINTS) if steps else 1
        self._loss = MeanSince()  # the last point
        self._points: list[Point] = []  # not yet shipped
        self._process = psutil.Process()
        self._host_total = None if gpu else psutil.virtual_memory().total

    @property
    def step(self) -> int:
        """The last step that was noted; 0 before the first."""
        return self._report.step if self._report else 0

    @property
    def began(self) -> bool:
        """Whether a step was noted."""
        return self._report is not None

    def note(self, report: "StepReport") -> None:
        """Takes in one report."""
        now = time.monotonic()
        with self._lock:
            first = self._report is None
            steps = 1 if self._report is None else report.step - self._report.step
            self._report = report
            self._done += steps
            self._last_step_at = time.time()
            self._step_seconds.add(report.step_seconds, steps)
            self._data_wait += report.data_wait_seconds * steps
            self._read_bytes += report.read_bytes
            self._sent_bytes += report.sent_bytes
            self._stray_bytes += report.stray_bytes
            self._memory = report.memory or self._memory
            self._eval_loss = report.eval_loss or self._eval_loss
            self._loss.add(report.loss, steps)
            self._measure_rate(now, report.step)
            if (
                first
                or report.step // self._stride > (report.step - steps) // self._stride
                or report.step == report.total
            ):
                self._points.append(self._point(report))

    def replica_came(self, rank: int, node: str, gpu: str | None) -> None:
        """Another worker of the task is at work there."""
        with self._lock:
            self._replicas[rank] = Replica(node=node, gpu=gpu)

    def trial_done(self) -> None:
        """One learning rate of a scan was tried. No step, but progress."""
        self._trials += 1

    def nonfinite_step(self) -> None:
        """The loss of a step was not finite; the attempt ends by it."""
        with self._lock:
            self._nonfinite += 1

    def saved(self, seconds: float) -> None:
        """A checkpoint is whole, pointer and all, after so long."""
        with self._lock:
            self._save_seconds.add(seconds)

    def checkpoint_failed(self, stage: CheckpointStage) -> None:
        with self._lock:
            self._failed[stage] = self._failed.get(stage, 0) + 1

    def progress(self) -> Progress:
        """How the attempt stands now."""
        report = self._report
        resident = self._process.memory_info().rss
        with self._lock:
            measured = {"host": resident, "device": self._memory.device or self._host_total}
            return Progress(
                run=self._run,
                step=self.step,
                total=self._total,
                trials=self._trials,
                heartbeat_at=time.time(),
                last_step_at=self._last_step_at,
                loss=report.loss if report else None,
                grad_norm=report.grad_norm if report else None,
                learning_rate=report.learning_rate if report else None,
                eval_loss=self._eval_loss,
                samples_total=self.step * self._batch_size,
                samples_per_second=self._rate,
                work=self._work(),
                memory=self._memory.model_copy(update=measured),
                replicas=tuple(self._replicas[rank] for rank in sorted(self._replicas)),
            )

    def take_points(self) -> list[Point]:
        """What was not taken before."""
        with self._lock:
            points, self._points = self._points, []
        return points

    def put_back(self, points: list[Point]) -> None:
        """They could not be shipped."""
        with self._lock:
            self._points = points + self._points

    def _work(self) -> Work:
        samples = self._done * self._batch_size
        return Work(
            steps=self._done,
            samples=samples,
            tokens=samples * self._sequence_length,
            step_seconds=self._step_seconds.read(),
            data_wait_seconds=self._data_wait,
            read_bytes=self._read_bytes,
            sent_bytes=self._sent_bytes,
            stray_bytes=self._stray_bytes,
            nonfinite_steps=self._nonfinite,
            save_seconds=self._save_seconds.read(),
            failed_checkpoints=dict(self._failed),
        )

    def _measure_rate(self, now: float, step: int) -> None:
        if self._mark is None:  # the first step also warms up: it is not counted
            self._mark = (now, step)
            return
        since, marked = self._mark
        self._rate = (step - marked) * self._batch_size / max(now - since, 1e-9)
        if now - since >= RATE_SECONDS:
            self._mark = (now, step)

    def _point(self, report: "StepReport") -> Point:
        return Point(
            step=report.step,
            at=self._last_step_at or time.time(),
            attempt=self._run.attempt,
            loss=self._loss.take(),
            grad_norm=report.grad_norm,
            samples_per_second=self._rate,
            memory_bytes=self._memory.peak,
            host_memory_bytes=self._process.memory_info().rss,
        )

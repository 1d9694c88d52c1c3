"""What a training says of itself: means between reports, and the summary over all attempts."""

import math
import time
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dbserve.contracts.plan import TaskPlan
from dbserve.contracts.report import LossPoint
from dbserve.contracts.status import MemoryBytes
from dbserve.errors import NonfiniteLoss
from workers.checkpoint import TrainingSummary
from workers.means import MeanSince

LOSS_POINTS = 200  # of a curve


@dataclass(frozen=True)
class Mean:
    loss: float
    seconds: float
    waited: float
    read_bytes: int  # in all


class Progress:
    """Sums since the last report, and the summary of the whole training. Losses stay on the device until close()."""

    def __init__(self, task: TaskPlan, summary: TrainingSummary) -> None:
        self._task = task
        self.summary = summary
        self._stride = math.ceil(task.steps / LOSS_POINTS)
        self._loss = MeanSince()  # the last point
        self._losses: list[Tensor] = []
        self._samples, self._waited, self._read, self._began = 0, 0.0, 0, time.perf_counter()

    def restart_clock(self) -> None:
        """Time spent until now, by whoever reads the reports, is not training."""
        self._began = time.perf_counter()

    def add(self, loss: Tensor, *, samples: int, waited: float, read_bytes: int) -> None:
        self._losses.append(loss)
        self._samples += samples
        self._waited += waited
        self._read += read_bytes

    def close(self, step: int, memory: MemoryBytes | None) -> Mean:
        """Means over the steps since the last close; NonfiniteLoss where one of them had no finite loss.

        Reads the losses, and so waits for the device.
        """
        losses = cast(list[float], torch.stack(self._losses).tolist())  # pyright: ignore[reportUnknownMemberType]
        count = len(losses)
        for place, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise NonfiniteLoss(
                    f"{self._task.name}: the loss of step {step - count + place + 1} is {loss}; a lower learning rate, "
                    "warmup or gradient clipping may help"
                )
        mean = math.fsum(losses) / count
        now = time.perf_counter()
        seconds, waited, read = now - self._began, self._waited, self._read
        self._loss.add(mean, count)
        self.summary = self.summary.model_copy(
            update={
                "samples": self.summary.samples + self._samples,
                "train_seconds": self.summary.train_seconds + seconds,
                "data_wait_seconds": self.summary.data_wait_seconds + waited,
                "memory": memory or self.summary.memory,
                "loss": self.summary.loss + self._point(step),
            }
        )
        self._losses, self._samples, self._waited, self._read = [], 0, 0.0, 0
        self.restart_clock()
        return Mean(mean, seconds / count, waited / count, read)

    def _point(self, step: int) -> tuple[LossPoint, ...]:
        """A point every stride steps, and one at the end: the mean loss since the previous one."""
        if self._loss.steps < self._stride and step < self._task.steps:
            return ()
        return (LossPoint(step=step, loss=self._loss.take()),)

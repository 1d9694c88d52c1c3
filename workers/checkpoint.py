"""Checkpoints: whole or invisible. Content first, the manifest with its digests last, then one rename."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel
from torch import Tensor

from dbserve.contracts.report import LossPoint
from dbserve.contracts.status import MemoryBytes


class TrainingSummary(BaseModel, frozen=True):
    """What a task's training has been so far, over all its attempts."""

    samples: int = 0
    train_seconds: float = 0.0  # inside steps, the wait for data included
    data_wait_seconds: float = 0.0
    memory: MemoryBytes = MemoryBytes()
    loss: tuple[LossPoint, ...] = ()  # thinned: at most about 200


@dataclass(frozen=True)
class TrainingState:
    """All that a resumed training needs. Random numbers are a function of (seed, task, step) and are not kept.

    `weights` and `optimizer` hold CPU tensors; the optimizer's are flat: "exp_avg.<parameter>", "exp_avg_sq.<parameter>", "step".
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    summary: TrainingSummary

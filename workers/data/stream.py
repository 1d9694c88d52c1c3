"""Batches of a split: what step k sees is a function of (seed, task, k) alone, so a resumed task sees the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dbserve.contracts.job import Augmentation
from dbserve.errors import ConfigInvalid
from workers.data.augment import augmented
from workers.data.dataset import Split
from workers.data.draws import draws

_AHEAD = 2  # batches prepared before they are asked for


@dataclass(frozen=True)
class Batch:
    """Rows on the asked device; `waited_seconds` is what this batch kept its taker waiting.

    `inputs`: images (N, C, H, W) uint8 or float32 and their `labels` (N,) int64, or tokens (N, T) int64 without labels.
    """

    inputs: Tensor
    labels: Tensor | None
    waited_seconds: float

    @property
    def targets(self) -> Tensor:
        """The labels; ValueError where there are none."""
        if self.labels is None:
            raise ValueError("text has no labels")
        return self.labels


_Rows = tuple[NDArray[np.uint8], NDArray[np.int64]]


def batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    task: str,
    start_step: int,
    augment: Augmentation,
    device: torch.device | str = "cpu",
) -> Generator[Batch, None, None]:
    """The batches of steps start_step (0-based), start_step + 1, ... without end; close() ends the thread behind them.

    Every epoch shuffles anew and drops its ragged end. Any step is found at once: its epoch's order is drawn, and no
    earlier one. A thread keeps two batches ready, pinned for a CUDA device; what it raises is raised here.
    Raises ConfigInvalid when the split has fewer rows than a batch.
    """
    if len(split) < batch_size:
        raise ConfigInvalid(
            f"a batch of {batch_size} rows cannot be drawn from {len(split)} training rows", "/training/batch_size"
        )
    order = _Order(rows=len(split), batch_size=batch_size, seed=seed, task=task)

    def prepare(step: int) -> _Rows:
        rows = order.rows_of(step)
        return augmented(split.inputs[rows], augment, seed=seed, task=task, step=step), split.targets[rows]

    return _delivered(prepare, start_step, torch.device(device))


def normalise(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [-1, 1]: x / 127.5 - 1; float32 is passed on: the contract's preprocessing."""
    if images.dtype == torch.float32:
        return images
    return images.to(torch.float32).div_(127.5).sub_(1.0)


class _Order:
    """Which rows a step takes. Keeps the current epoch's order, which costs one sort of the rows."""

    def __init__(self, *, rows: int, batch_size: int, seed: int, task: str) -> None:
        self._rows, self._batch_size, self._seed, self._task = rows, batch_size, seed, task
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def rows_of(self, step: int) -> NDArray[np.int64]:
        epoch, place = divmod(step, self._rows // self._batch_size)
        if epoch != self._epoch:
            words = draws(self._rows, "order", self._seed, self._task, epoch)
            self._order, self._epoch = np.argsort(words, kind="stable"), epoch
        return self._order[place * self._batch_size : (place + 1) * self._batch_size]


def _delivered(prepare: Callable[[int], _Rows], start_step: int, device: torch.device) -> Generator[Batch, None, None]:
    pin = device.type == "cuda"
    ready: SimpleQueue[tuple[Tensor, Tensor] | BaseException] = SimpleQueue()
    slots = threading.Semaphore(_AHEAD)
    closed = threading.Event()

    def work() -> None:
        step = start_step
        try:
            while slots.acquire() and not closed.is_set():
                images, labels = (_tensor(array) for array in prepare(step))
                ready.put((images.pin_memory(), labels.pin_memory()) if pin else (images, labels))
                step += 1
        except BaseException as error:  # it belongs to the consumer
            ready.put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            asked = time.perf_counter()
            item = ready.get()
            waited = time.perf_counter() - asked
            slots.release()
            if isinstance(item, BaseException):
                raise item
            images, labels = item
            yield Batch(images.to(device, non_blocking=pin), labels.to(device, non_blocking=pin), waited)
    finally:
        closed.set()
        slots.release()
        thread.join()


def _tensor(array: NDArray[np.uint8] | NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]

"""Batches of a split: what step k sees is a function of (seed, task, k) alone, so a resumed task sees the same."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from dbserve.contracts.job import Augmentation
from dbserve.errors import ConfigInvalid
from workers.data.augment import augmented
from workers.data.dataset import Split
from workers.data.gather import MappedImages, MappedText, ResidentSplit, Rows
from workers.data.order import ALL, Order, ShuffledRows, ShuffledWindows, Steps

_AHEAD = 2  # batches prepared before they are asked for
_RESIDENT_SHARE = 0.25  # of a CUDA device's free memory: other tasks may hold a copy beside this one


@dataclass(frozen=True)
class Batch:
    """Rows on the asked device; `waited_seconds` is what this batch kept its taker waiting.

    `inputs`: images (N, C, H, W) uint8 or float32 and their `labels` (N,) int64, or tokens (N, T) int64 without labels.
    """

    inputs: Tensor
    labels: Tensor | None
    waited_seconds: float
    read_bytes: int = 0  # taken out of the decoded shards for it

    @property
    def targets(self) -> Tensor:
        """The labels; ValueError where there are none."""
        if self.labels is None:
            raise ValueError("text has no labels")
        return self.labels


def batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    task: str,
    start_step: int,
    augment: Augmentation,
    device: torch.device | str = "cpu",
    rows: slice = ALL,
) -> Generator[Batch, None, None]:
    """The batches of steps start_step (0-based), start_step + 1, ... without end; close() frees what they hold.

    Of each batch only `rows`, which are the same as if all had been taken.

    Every epoch shuffles anew and drops its ragged end; text is cut into other windows every epoch. Any step is found
    at once: its epoch's order is drawn, and no earlier one. A CUDA device holds the split whole where that takes at
    most a quarter of its free memory and nothing is augmented; else a thread keeps two batches ready, pinned for a
    CUDA device, and what it raises is raised here.
    Raises ConfigInvalid when the split has fewer rows than a batch.
    """
    order = order_of(split, seed=seed, task=task)
    if order.rows < batch_size:
        raise ConfigInvalid(
            f"a batch of {batch_size} rows cannot be drawn from {order.rows} training rows", "/training/batch_size"
        )
    device = torch.device(device)
    steps = Steps(order, batch_size, rows)
    pin = device.type == "cuda"
    if split.tokens is None and augment != Augmentation():
        images = MappedImages(split, pin=pin)

        def prepare(step: int) -> Rows:
            inputs, labels = images.take(steps.places(step))
            return augmented(inputs, augment, seed=seed, task=task, step=step, rows=rows, of=batch_size), labels

        return _delivered(prepare, start_step, device, row_bytes(split))
    if pin and ResidentSplit.bytes_of(split) <= torch.cuda.mem_get_info(device)[0] * _RESIDENT_SHARE:
        return resident(ResidentSplit(split, device), steps, start_step)
    mapped = MappedImages(split, pin=pin) if split.tokens is None else MappedText(split, pin=pin)
    return _delivered(lambda step: mapped.take(steps.places(step)), start_step, device, row_bytes(split))


def first_rows(split: Split, rows: int, device: torch.device) -> Batch:
    """The first `rows` rows of a split as a batch."""
    few = split.first(rows)
    if few.tokens is None:
        inputs, labels = MappedImages(few, pin=False).take(np.arange(rows))
    else:
        inputs, labels = MappedText(few, pin=False).take(np.arange(rows) * few.inputs.shape[1])
    return Batch(inputs.to(device), labels if labels is None else labels.to(device), 0.0)


def row_bytes(split: Split) -> int:
    """Bytes of one row as the cache holds it, its label included."""
    labels = 0 if split.labels is None else split.labels.itemsize
    return split.inputs[:1].nbytes + labels


def order_of(split: Split, *, seed: int, task: str) -> Order:
    """The order in which a task takes the rows of a split."""
    if split.tokens is None:
        return ShuffledRows(len(split), seed=seed, task=task)
    return ShuffledWindows(len(split.tokens), split.inputs.shape[1], seed=seed, task=task)


def resident(split: ResidentSplit, steps: Steps, start_step: int) -> Generator[Batch, None, None]:
    """The same batches from a split that its device holds."""
    read = split.nbytes  # once, when it was uploaded
    for step in itertools.count(start_step):
        asked = time.perf_counter()
        inputs, labels = split.take(steps.places(step))
        yield Batch(inputs, labels, time.perf_counter() - asked, read)
        read = 0


def normalise(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> float32 in [-1, 1]: x / 127.5 - 1; float32 is passed on: the contract's preprocessing."""
    if images.dtype == torch.float32:
        return images
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def _delivered(
    prepare: Callable[[int], Rows], start_step: int, device: torch.device, row_bytes: int
) -> Generator[Batch, None, None]:
    ready: SimpleQueue[Rows | BaseException] = SimpleQueue()
    slots = threading.Semaphore(_AHEAD)
    closed = threading.Event()

    def work() -> None:
        step = start_step
        try:
            while slots.acquire() and not closed.is_set():
                ready.put(prepare(step))
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
            inputs, labels = item
            labels = labels if labels is None else labels.to(device, non_blocking=True)
            yield Batch(inputs.to(device, non_blocking=True), labels, waited, len(inputs) * row_bytes)
    finally:
        closed.set()
        slots.release()
        thread.join()

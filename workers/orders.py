"""What the other workers of a task are told: a letter of JSON, and, over their process group, the state to begin with.

The rows of workers on one machine are told as files: those of a mapped file by its name, others as
<directory>/<split>.<array>.bin. Nothing is pickled.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan, TaskPlan
from dbserve.errors import StorageError
from workers.checkpoint import TrainingState, TrainingSummary
from workers.data import Split
from workers.group import Together


@dataclass(frozen=True)
class Orders:
    """The same for every worker of a task. `state` comes with its average for those alone that keep a part of it."""

    spec: JobSpec
    plan: JobPlan
    task: TaskPlan
    train: Split
    state: TrainingState | None = None
    initial_weights: Mapping[str, Tensor] | None = None
    validation: Split | None = None  # None: nobody looks at the loss on held-out rows


class ArrayAt(BaseModel, frozen=True):
    """An array's bytes in a file, in C order."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    def mapped(self) -> NDArray[Any]:
        memory = np.memmap(self.path, np.dtype(self.dtype), mode="r", offset=self.offset, shape=self.shape)
        return memory.view(np.ndarray)


Arrays = dict[str, ArrayAt]  # by the field of Split


class Rows(BaseModel, frozen=True):
    """Where the rows lie, on the machine of whoever wrote it."""

    train: Arrays
    validation: Arrays | None = None  # None: there are none

    def splits(self) -> tuple[Split, Split | None]:
        """The rows themselves; needs the files' names no longer."""
        return _split(self.train), None if self.validation is None else _split(self.validation)


class Letter(BaseModel, frozen=True):
    """Orders less their rows and tensors."""

    spec: JobSpec
    plan: JobPlan
    task: TaskPlan
    rows: Rows | None  # None: who reads it opens the data itself
    step: int | None  # None: no state
    summary: TrainingSummary
    averaged: bool  # the average is told, too
    initial: bool


def letter_of(orders: Orders, rows: Rows | None, *, averaged: bool) -> Letter:
    """`averaged`: every worker keeps a part of the averaged weights."""
    state = orders.state
    return Letter(
        spec=orders.spec,
        plan=orders.plan,
        task=orders.task,
        rows=rows,
        step=None if state is None else state.step,
        summary=TrainingSummary() if state is None else state.summary,
        averaged=averaged and state is not None and bool(state.average),
        initial=orders.initial_weights is not None,
    )


def shared_start(letter: Letter, orders: Orders, workers: Together) -> Orders:
    """The orders with rank 0's state and first weights, bit for bit; to be called by all workers at once."""
    state, initial = orders.state, orders.initial_weights
    if letter.step is not None:
        known = state or TrainingState(letter.step, {}, {}, letter.summary)
        state = TrainingState(
            letter.step,
            weights=workers.spread(known.weights),
            optimizer=workers.spread(known.optimizer),
            summary=letter.summary,
            average=workers.spread(known.average) if letter.averaged else known.average,
        )
    if letter.initial:
        initial = workers.spread(initial or {})
    return replace(orders, state=state, initial_weights=initial)


def place_rows(directory: Path, orders: Orders) -> Rows:
    """Writes what is in memory alone into the directory. Raises StorageError where it cannot take it."""
    validation = orders.validation
    try:
        return Rows(
            train=_placed_split(directory, "train", orders.train),
            validation=_placed_split(directory, "validation", validation) if validation else None,
        )
    except OSError as error:
        raise StorageError(f"cannot write what the other workers of {orders.task.name} are told: {error}") from error


def _placed_split(directory: Path, name: str, split: Split) -> Arrays:
    return {
        field: _placed(directory / f"{name}.{field}.bin", cast("NDArray[Any]", array))
        for field, array in vars(split).items()
        if array is not None
    }


def _split(arrays: Arrays) -> Split:
    rows: dict[str, Any] = {field: at.mapped() for field, at in arrays.items()}
    return Split(inputs=rows["inputs"], labels=rows.get("labels"), tokens=rows.get("tokens"))


def _placed(path: Path, array: NDArray[Any]) -> ArrayAt:
    """Where the array's bytes lie: in the file that it is mapped from, so that no worker copies it; else in `path`."""
    file = _file_under(array)
    if file is None or not array.flags.c_contiguous:
        array.tofile(path)
        return ArrayAt(path=path, dtype=array.dtype.str, shape=array.shape)
    offset = int(file.offset) + array.ctypes.data - file.ctypes.data
    return ArrayAt(path=Path(file.filename), dtype=array.dtype.str, shape=array.shape, offset=offset)


def _file_under(array: NDArray[Any]) -> Any:
    """The mapped file (an np.memmap) that the array is a part of; None: it is in memory."""
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap) and isinstance(cast(Any, base).base, mmap.mmap):
            return cast(Any, base)
        base = cast(Any, getattr(base, "base", None))
    return None

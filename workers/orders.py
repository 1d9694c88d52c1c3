"""What the other workers of a task are told, as files: JSON, safetensors, and the rows' own bytes. Nothing is pickled.

<directory>/orders.json           Letter
           /state.safetensors     weights of the state;     only where there is a state
           /optimizer.safetensors of the same
           /initial.safetensors   the initial weights;      only where there are any
           /<array>.bin           rows that lie in memory;  those of a mapped file are told by its name
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan, TaskPlan
from dbserve.errors import StorageError
from workers.checkpoint import TrainingState, TrainingSummary
from workers.data import Split
from workers.storage import read_tensors, write_tensors

_LETTER, _INITIAL = "orders.json", "initial.safetensors"
_WEIGHTS, _OPTIMIZER = "state.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class Orders:
    """The same for every worker of a task. `state` comes without its average, which rank 0 alone keeps."""

    spec: JobSpec
    plan: JobPlan
    task: TaskPlan
    train: Split
    state: TrainingState | None
    initial_weights: Mapping[str, Tensor] | None


class ArrayAt(BaseModel, frozen=True):
    """An array's bytes in a file, in C order."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    def mapped(self) -> NDArray[Any]:
        memory = np.memmap(self.path, np.dtype(self.dtype), mode="r", offset=self.offset, shape=self.shape)
        return memory.view(np.ndarray)


class Letter(BaseModel, frozen=True):
    """Orders less their tensors."""

    spec: JobSpec
    plan: JobPlan
    task: TaskPlan
    train: dict[str, ArrayAt]  # by the field of Split
    step: int | None  # None: no state
    summary: TrainingSummary
    initial: bool


def write_orders(directory: Path, orders: Orders) -> None:
    """Raises StorageError where the directory cannot take them."""
    state = orders.state
    try:
        letter = Letter(
            spec=orders.spec,
            plan=orders.plan,
            task=orders.task,
            train={
                name: _placed(directory / f"{name}.bin", cast("NDArray[Any]", array))
                for name, array in vars(orders.train).items()
                if array is not None
            },
            step=None if state is None else state.step,
            summary=TrainingSummary() if state is None else state.summary,
            initial=orders.initial_weights is not None,
        )
        if state is not None:
            _write(directory / _WEIGHTS, state.weights)
            _write(directory / _OPTIMIZER, state.optimizer)
        if orders.initial_weights is not None:
            _write(directory / _INITIAL, orders.initial_weights)
        (directory / _LETTER).write_text(letter.model_dump_json(), encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"cannot write what the other workers of {orders.task.name} are told: {error}") from error


def read_orders(directory: Path) -> Orders:
    """What write_orders() wrote; needs the directory no longer."""
    letter = Letter.model_validate_json((directory / _LETTER).read_bytes())
    state = None
    if letter.step is not None:
        weights, optimizer = (read_tensors(directory / name) for name in (_WEIGHTS, _OPTIMIZER))
        state = TrainingState(letter.step, weights, optimizer, letter.summary)
    rows: dict[str, Any] = {name: at.mapped() for name, at in letter.train.items()}
    return Orders(
        spec=letter.spec,
        plan=letter.plan,
        task=letter.task,
        train=Split(inputs=rows["inputs"], labels=rows.get("labels"), tokens=rows.get("tokens")),
        state=state,
        initial_weights=read_tensors(directory / _INITIAL) if letter.initial else None,
    )


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copied, as the format takes neither what is strided nor what shares its memory."""
    whole = torch.contiguous_format
    write_tensors(path, {name: tensor.detach().clone(memory_format=whole) for name, tensor in tensors.items()}, {})


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

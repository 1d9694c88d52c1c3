"""In which order a task takes its rows: a function of (seed, task, epoch) alone, so a resumed task goes on in it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dbserve.datasets.split import epoch_windows
from workers.data.draws import draws


class Order(Protocol):
    """The order of a split's rows, another one every epoch."""

    @property
    def rows(self) -> int:
        """Of every epoch."""
        ...

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Where the rows lie, (rows,), in the order in which this epoch takes them."""
        ...


class ShuffledRows:
    """Every row once, by its number."""

    def __init__(self, rows: int, *, seed: int, task: str) -> None:
        self.rows = rows
        self._named = (seed, task)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        return np.argsort(draws(self.rows, "order", *self._named, epoch), kind="stable")


class ShuffledWindows:
    """Windows of T tokens that do not overlap, by the place of their first token in the stream.

    An epoch begins at an offset of its own below T, so that what stands at a window's beginning in one epoch stands
    inside one in the next.
    """

    def __init__(self, tokens: int, sequence_length: int, *, seed: int, task: str) -> None:
        self.rows = epoch_windows(tokens, sequence_length)
        self._length = sequence_length
        self._offsets = min(sequence_length, tokens - self.rows * sequence_length + 1)
        self._named = (seed, task)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        offset = int(draws(1, "offset", *self._named, epoch)[0]) % self._offsets
        order = np.argsort(draws(self.rows, "order", *self._named, epoch), kind="stable")
        return order * self._length + offset


ALL = slice(None)


class Steps:
    """Which places a step takes: of its batch, `rows`. An epoch's ragged end is dropped; the current epoch's order is
    kept."""

    def __init__(self, order: Order, batch_size: int, rows: slice = ALL) -> None:
        self._order, self._batch_size, self._rows = order, batch_size, rows
        self._epoch = -1
        self._places: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def places(self, step: int) -> NDArray[np.int64]:
        """Shape (rows,). `step` counts from 0."""
        epoch, batch = divmod(step, self._order.rows // self._batch_size)
        if epoch != self._epoch:
            self._places, self._epoch = self._order.epoch(epoch), epoch
        return self._places[batch * self._batch_size : (batch + 1) * self._batch_size][self._rows]

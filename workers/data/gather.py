"""The rows of a batch: taken out of the memory map by the CPU, or out of the whole split by a GPU that holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from workers.data.dataset import Split

_UPLOAD_BYTES = 1 << 26  # at a time

# Inputs (N, C, H, W) or (N, T) int64, and labels (N,) where there are any. Taken at `places`: rows of images, or the
# first tokens of windows.
Rows = tuple[Tensor, Tensor | None]


class MappedImages:
    """Gathers whole rows out of the memory map into one buffer, which a CUDA device can read by itself if pinned.

    `images` (rows, C, H, W) are no copy where they lie channels first, as the cache keeps them.
    """

    def __init__(self, split: Split, *, pin: bool) -> None:
        self.images = np.ascontiguousarray(split.inputs.transpose(0, 3, 1, 2))  # (rows, C, H, W)
        self._labels = split.targets
        self._dtype = torch.from_numpy(self.images[:0].copy()).dtype  # pyright: ignore[reportUnknownMemberType]
        self._pin = pin

    def take(self, places: NDArray[np.int64]) -> Rows:
        images = torch.empty((len(places), *self.images.shape[1:]), dtype=self._dtype, pin_memory=self._pin)
        labels = torch.empty(len(places), dtype=torch.int64, pin_memory=self._pin)
        # "clip" spares a copy that "raise" makes of the buffer; an order's places are rows
        np.take(self.images, places, axis=0, out=images.numpy(), mode="clip")
        np.take(self._labels, places, out=labels.numpy(), mode="clip")
        return images, labels


class MappedText:
    """Gathers windows out of the mapped stream; `windows` (places, T) is no copy of it."""

    def __init__(self, split: Split, *, pin: bool) -> None:
        self.windows = sliding_window_view(_stream(split), split.inputs.shape[1])  # (places, T), no copy
        self._pin = pin

    def take(self, places: NDArray[np.int64]) -> Rows:
        tokens = torch.empty((len(places), self.windows.shape[1]), dtype=torch.int64, pin_memory=self._pin)
        tokens.numpy()[...] = self.windows[places]
        return tokens, None


class ResidentSplit:
    """A whole split in a device's memory, from which batches are gathered there: nothing crosses the bus but places.

    Images lie as (rows, C, H, W), a stream as int32.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self._device = device
        self._labels: Tensor | None = None
        if split.tokens is not None:
            self._held = _uploaded(split.tokens, np.dtype(np.int32), device)
            self._within = torch.arange(split.inputs.shape[1], device=device)
        else:
            images = split.inputs.transpose(0, 3, 1, 2)
            self._held = _uploaded(images, images.dtype, device)
            self._labels = _uploaded(split.targets, np.dtype(np.int64), device)

    @staticmethod
    def bytes_of(split: Split) -> int:
        """What it takes of the device's memory."""
        return split.inputs.nbytes + split.targets.nbytes if split.tokens is None else 4 * len(split.tokens)

    @property
    def nbytes(self) -> int:
        """What of the split was read, to be held."""
        return self._held.nbytes + (0 if self._labels is None else self._labels.nbytes)

    def take(self, places: NDArray[np.int64]) -> Rows:
        rows = _tensor(places).to(self._device)
        if self._labels is not None:
            return self._held[rows], self._labels[rows]
        return torch.take(self._held, rows[:, None] + self._within).long(), None  # (N, T)


def _stream(split: Split) -> NDArray[Any]:
    if split.tokens is None:
        raise ValueError("the split holds images")
    return split.tokens


def _uploaded(array: NDArray[Any], dtype: np.dtype[Any], device: torch.device) -> Tensor:
    """A copy of the array on the device, in portions: a split may be larger than what memory is free on the host."""
    whole = torch.empty(array.shape, dtype=_tensor(np.empty(0, dtype)).dtype, device=device)
    rows = max(1, _UPLOAD_BYTES * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        whole[start : start + rows] = _tensor(part.astype(dtype, order="C"))
    return whole


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]

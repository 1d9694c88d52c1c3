"""The decoded images of a shard set, written once per node (workers.data.once), then only read.

    <cache_dir>/decoded/<key>/images.u8   rows x channels x height x width bytes, or
                              images.f32  the same in little-endian float32
                             /labels.i64  rows little-endian int64

Rows lie in the shuffled order of dbserve.datasets.split, so that any split is a slice. Channels come first, as in a
batch, which is then gathered by copying whole rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.datasets.images import Shape
from dbserve.datasets.shards import open_shard
from dbserve.datasets.split import shuffled_order
from dbserve.errors import StorageError
from workers.data.decode import Destination, decode_shard
from workers.data.once import key_of, made_once

_FORMAT = 2  # of the files above; part of the key
_LABELS = "labels.i64"

Arrays = tuple[NDArray[Any], NDArray[np.int64]]


def decoded(
    shards: Sequence[str], facts: DataFacts, shape: Shape, spec: DataSpec, *, pointer: str, cache_dir: Path
) -> Arrays:
    """Images (rows, height, width, channels) and labels (rows,) of a shard set, mapped read-only, in shuffled order.

    Decodes them first if no process on this node has. Raises DataInvalid at `pointer`, StorageError.
    """
    home = cache_dir.absolute() / "decoded"
    columns = [spec.image_column, spec.label_column]
    # the number of classes belongs to it: labels are checked against it while decoding
    others = [_FORMAT, columns, shape, spec.image_size, facts.encoding, len(facts.class_names)]
    form = _Form(shape, np.dtype("<f4") if facts.encoding == "float32" else np.dtype(np.uint8))
    make = partial(_write, shards=shards, facts=facts, form=form, spec=spec, pointer=pointer)
    try:
        return form.mapped(made_once(home / key_of(shards, *others, pointer=pointer), whole=form.is_whole, make=make))
    except OSError as error:
        raise StorageError(f"the decoded images cannot be kept in {home}: {error}") from error


@dataclass(frozen=True)
class _Form:
    """How the images of an entry lie in their file."""

    shape: Shape  # (height, width, channels)
    dtype: np.dtype[Any]

    @property
    def name(self) -> str:
        return "images.f32" if self.dtype.kind == "f" else "images.u8"

    def stored(self, rows: int) -> tuple[int, int, int, int]:
        height, width, channels = self.shape
        return rows, channels, height, width

    def is_whole(self, entry: Path) -> bool:
        try:
            rows = (entry / _LABELS).stat().st_size // 8
            size = rows * math.prod(self.shape) * self.dtype.itemsize
            return rows > 0 and (entry / self.name).stat().st_size == size
        except FileNotFoundError:
            return False

    def mapped(self, entry: Path) -> Arrays:
        labels = np.memmap(entry / _LABELS, dtype="<i8", mode="r")
        images = np.memmap(entry / self.name, dtype=self.dtype, mode="r", shape=self.stored(len(labels)))
        return images.view(np.ndarray).transpose(0, 2, 3, 1), labels.view(np.ndarray)


def _write(target: Path, *, shards: Sequence[str], facts: DataFacts, form: _Form, spec: DataSpec, pointer: str) -> None:
    rows_of: list[int] = []
    for uri in shards:
        with open_shard(uri, pointer=pointer) as shard:
            rows_of.append(shard.rows)
    order = shuffled_order(sum(rows_of))
    place_of = np.empty_like(order)
    place_of[order] = np.arange(len(order))
    images = _create(target / form.name, form.dtype, form.stored(len(order)))
    labels = _create(target / _LABELS, np.dtype("<i8"), (len(order),))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1) as threads:
        first = 0
        for uri, rows in zip(shards, rows_of, strict=True):
            places = place_of[first : first + rows]
            into = Destination(images=images.transpose(0, 2, 3, 1), labels=labels, places=places)
            decode_shard(uri, into, facts, spec, pointer=pointer, threads=threads)
            first += rows
    for array in (images, labels):
        array.flush()


def _create(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new mapped file whose blocks are reserved: a full disk is an OSError here, not a SIGBUS on some later write."""
    with path.open("xb") as stream:
        os.posix_fallocate(stream.fileno(), 0, math.prod(shape) * dtype.itemsize)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)

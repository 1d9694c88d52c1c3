"""The decoded cache: one directory a shard set and node, written once under a lock, then only read.

    <cache_dir>/decoded/<key>/images.u8   rows x height x width x channels bytes
                             /labels.i64  rows little-endian int64
    <cache_dir>/decoded/<key>.lock        held (flock) while one process decodes and the others wait
    <cache_dir>/decoded/<key>.partial/    what is being written; renamed when whole

Rows lie in the shuffled order of dbserve.datasets.split, so that any split is a slice.
The key digests the shards' uris, sizes and etags or times of modification: a shard that changed is another key.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.datasets.shards import open_shard, shard_version
from dbserve.datasets.split import shuffled_order
from dbserve.errors import StorageError
from workers.data.decode import Destination, decode_shard

_FORMAT = 1  # of the files below; part of the key
_IMAGES, _LABELS = "images.u8", "labels.i64"
_STAT_THREADS = 8

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def decoded(shards: Sequence[str], facts: DataFacts, spec: DataSpec, *, pointer: str, cache_dir: Path) -> Arrays:
    """Images (rows, height, width, channels) and labels (rows,) of a shard set, mapped read-only, in shuffled order.

    Decodes them first if no process on this node has. Raises DataInvalid at `pointer`, StorageError.
    """
    home = cache_dir.absolute() / "decoded"
    entry = home / _key(shards, facts, spec, pointer)
    try:
        if not _is_whole(entry, facts.image_shape):
            home.mkdir(parents=True, exist_ok=True)
            with _locked(entry.with_suffix(".lock")):
                if not _is_whole(entry, facts.image_shape):
                    _decode_into(entry, shards, facts, spec, pointer)
        return _map(entry, facts.image_shape)
    except OSError as error:
        raise StorageError(f"the decoded images cannot be kept in {home}: {error}") from error


def _key(shards: Sequence[str], facts: DataFacts, spec: DataSpec, pointer: str) -> str:
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        versions = list(pool.map(partial(shard_version, pointer=pointer), shards))
    columns = [spec.image_column, spec.label_column]
    # the number of classes belongs to it: labels are checked against it while decoding
    identity = [_FORMAT, versions, columns, facts.image_shape, facts.encoding, len(facts.class_names)]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _is_whole(entry: Path, shape: tuple[int, int, int]) -> bool:
    try:
        rows = (entry / _LABELS).stat().st_size // 8
        return rows > 0 and (entry / _IMAGES).stat().st_size == rows * math.prod(shape)
    except FileNotFoundError:
        return False


def _map(entry: Path, shape: tuple[int, int, int]) -> Arrays:
    labels = np.memmap(entry / _LABELS, dtype="<i8", mode="r")
    images = np.memmap(entry / _IMAGES, dtype=np.uint8, mode="r", shape=(len(labels), *shape))
    return images.view(np.ndarray), labels.view(np.ndarray)


def _decode_into(entry: Path, shards: Sequence[str], facts: DataFacts, spec: DataSpec, pointer: str) -> None:
    building = entry.with_suffix(".partial")
    for left_behind in (building, entry):  # by a process or a machine that died; the lock is ours
        shutil.rmtree(left_behind, ignore_errors=True)
    building.mkdir()
    try:
        _write(building, shards, facts, spec, pointer)
        building.rename(entry)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write(target: Path, shards: Sequence[str], facts: DataFacts, spec: DataSpec, pointer: str) -> None:
    rows_of: list[int] = []
    for uri in shards:
        with open_shard(uri, pointer=pointer) as shard:
            rows_of.append(shard.rows)
    order = shuffled_order(sum(rows_of))
    place_of = np.empty_like(order)
    place_of[order] = np.arange(len(order))
    images = _create(target / _IMAGES, np.dtype(np.uint8), (len(order), *facts.image_shape))
    labels = _create(target / _LABELS, np.dtype("<i8"), (len(order),))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) + 1) as threads:
        first = 0
        for uri, rows in zip(shards, rows_of, strict=True):
            into = Destination(images=images, labels=labels, places=place_of[first : first + rows])
            decode_shard(uri, into, facts, spec, pointer=pointer, threads=threads)
            first += rows
    for array in (images, labels):
        array.flush()


def _create(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new mapped file whose blocks are reserved: a full disk is an OSError here, not a SIGBUS on some later write."""
    with path.open("xb") as stream:
        os.posix_fallocate(stream.fileno(), 0, math.prod(shape) * dtype.itemsize)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold the file's lock; the kernel releases it when the process ends, however it ends."""
    with path.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield

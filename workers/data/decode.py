"""From the bytes of a shard to arrays: JPEG and PNG through Pillow, on several threads; raw bytes as they are."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.datasets.images import MAX_SIDE, Encoding, Shape, stated_shape
from dbserve.datasets.parquet import IMAGE_COLUMN, LABEL_COLUMN
from dbserve.datasets.shards import open_shard
from dbserve.errors import DataInvalid

_READ_ROWS = 4096
_DECODE_ROWS = 256  # one thread's portion


@dataclass(frozen=True)
class Destination:
    """Where a shard's rows go: row i to `images[places[i]]` and `labels[places[i]]`."""

    images: NDArray[Any]  # (all rows, height, width, channels) uint8, or float32 where the shards hold that
    labels: NDArray[np.int64]  # (all rows,)
    places: NDArray[np.int64]  # (the shard's rows,)


@dataclass(frozen=True)
class _Portion:
    first_row: int  # of the shard
    images: Sequence[bytes]
    places: NDArray[np.int64]


@dataclass(frozen=True)
class _Reading:
    """How the bytes of an image become an array: of shape `stored`, resized to a square of `size` where that is given.

    `stored` is None where images of any size are taken, to be resized; `channels` says how many they keep.
    """

    encoding: Encoding
    stored: Shape | None
    channels: int
    size: int | None


def decode_shard(
    uri: str, into: Destination, facts: DataFacts, spec: DataSpec, *, pointer: str, threads: Executor
) -> None:
    """Decode every row of a shard. Raises DataInvalid naming the shard and, where one is to blame, the row."""
    with open_shard(uri, pointer=pointer) as shard:
        if shard.column_type(spec.image_column, IMAGE_COLUMN).kind not in ("binary", "fixed_binary"):
            raise DataInvalid(f"shard {uri} changed since the job was planned: its images are not binary", IMAGE_COLUMN)
        reading = _reading(facts, spec, stated_shape(shard, pointer), uri)
        first = 0
        for images, labels in shard.batches(spec.image_column, spec.label_column, _READ_ROWS):
            _check_labels(labels, len(facts.class_names), uri, first)
            places = into.places[first : first + len(labels)]
            into.labels[places] = labels
            portions = [
                _Portion(first + at, images[at : at + _DECODE_ROWS], places[at : at + _DECODE_ROWS])
                for at in range(0, len(images), _DECODE_ROWS)
            ]
            for _ in threads.map(partial(_decode_portion, into=into.images, reading=reading, uri=uri), portions):
                pass  # drained, so that the first error is raised here
            first += len(labels)


def _reading(facts: DataFacts, spec: DataSpec, stated: Shape | None, uri: str) -> _Reading:
    if facts.image_shape is None or facts.encoding == "text":
        raise ValueError("text is not decoded as images")
    channels = facts.image_shape[2]
    if spec.image_size is None:
        return _Reading(facts.encoding, facts.image_shape, channels, None)
    if facts.encoding == "encoded":
        return _Reading("encoded", None, channels, spec.image_size)
    if stated is None or stated[2] != channels:
        raise DataInvalid(f"shard {uri} changed since the job was planned: its image_shape is {stated}", IMAGE_COLUMN)
    return _Reading("raw", stated, channels, spec.image_size)


def _decode_portion(portion: _Portion, *, into: NDArray[Any], reading: _Reading, uri: str) -> None:
    read = {"raw": _raw, "encoded": _encoded, "float32": _floats}[reading.encoding]
    for row, (place, data) in enumerate(zip(portion.places, portion.images, strict=True), start=portion.first_row):
        try:
            into[place] = read(data, reading)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataInvalid(f"shard {uri}, row {row}: {error}", IMAGE_COLUMN) from error


def _raw(data: bytes, reading: _Reading) -> NDArray[np.uint8]:
    pixels = _stored(data, reading, np.dtype(np.uint8))
    if reading.size is None:
        return pixels
    return _resized(Image.fromarray(pixels.squeeze(2) if reading.channels == 1 else pixels), reading)


def _floats(data: bytes, reading: _Reading) -> NDArray[np.float32]:
    values = _stored(data, reading, np.dtype("<f4"))
    if not np.isfinite(values).all():
        raise ValueError("a value is NaN or infinite")
    return values


def _stored(data: bytes, reading: _Reading, dtype: np.dtype[Any]) -> NDArray[Any]:
    shape = reading.stored or ()
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes, but an image of shape {list(shape)} takes {size}")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _encoded(data: bytes, reading: _Reading) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        height, width, _ = reading.stored or (image.height, image.width, 0)
        if image.size != (width, height):  # from the header, before any pixel is decoded
            raise ValueError(f"image of {image.height}x{image.width} pixels, but the shards say {height}x{width}")
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"image of {image.height}x{image.width} pixels; the most is {MAX_SIDE}x{MAX_SIDE}")
        pixels = image.convert("L" if reading.channels == 1 else "RGB")
    if reading.size is not None:
        return _resized(pixels, reading)
    return np.asarray(pixels).reshape(height, width, reading.channels)


def _resized(image: Image.Image, reading: _Reading) -> NDArray[np.uint8]:
    """Each new pixel is the mean of the area it covers; what is not square is squeezed."""
    size = reading.size or 1
    return np.asarray(image.resize((size, size), Image.Resampling.BOX)).reshape(size, size, reading.channels)


def _check_labels(labels: NDArray[np.int64], classes: int, uri: str, first: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise DataInvalid(
            f"shard {uri}, row {first + row}: label {labels[row]} is not one of 0..{classes - 1}", LABEL_COLUMN
        )

"""From the bytes of a shard to pixels: JPEG and PNG through Pillow, on several threads; raw bytes as they are."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.datasets.parquet import IMAGE_COLUMN, LABEL_COLUMN
from dbserve.datasets.shards import open_shard
from dbserve.errors import DataInvalid

_READ_ROWS = 4096
_DECODE_ROWS = 256  # one thread's portion


@dataclass(frozen=True)
class Destination:
    """Where a shard's rows go: row i to `images[places[i]]` and `labels[places[i]]`."""

    images: NDArray[np.uint8]  # (all rows, height, width, channels)
    labels: NDArray[np.int64]  # (all rows,)
    places: NDArray[np.int64]  # (the shard's rows,)


@dataclass(frozen=True)
class _Portion:
    first_row: int  # of the shard
    images: Sequence[bytes]
    places: NDArray[np.int64]


def decode_shard(
    uri: str, into: Destination, facts: DataFacts, spec: DataSpec, *, pointer: str, threads: Executor
) -> None:
    """Decode every row of a shard. Raises DataInvalid naming the shard and, where one is to blame, the row."""
    with open_shard(uri, pointer=pointer) as shard:
        if shard.column_type(spec.image_column, IMAGE_COLUMN).kind not in ("binary", "fixed_binary"):
            raise DataInvalid(f"shard {uri} changed since the job was planned: its images are not binary", IMAGE_COLUMN)
        first = 0
        for images, labels in shard.batches(spec.image_column, spec.label_column, _READ_ROWS):
            _check_labels(labels, len(facts.class_names), uri, first)
            places = into.places[first : first + len(labels)]
            into.labels[places] = labels
            portions = [
                _Portion(first + at, images[at : at + _DECODE_ROWS], places[at : at + _DECODE_ROWS])
                for at in range(0, len(images), _DECODE_ROWS)
            ]
            work = partial(_decode_portion, into=into.images, facts=facts, uri=uri)
            for _ in threads.map(work, portions):
                pass  # drained, so that the first error is raised here
            first += len(labels)


def _decode_portion(portion: _Portion, *, into: NDArray[np.uint8], facts: DataFacts, uri: str) -> None:
    read = _raw if facts.encoding == "raw" else _encoded
    for row, (place, data) in enumerate(zip(portion.places, portion.images, strict=True), start=portion.first_row):
        try:
            into[place] = read(data, facts.image_shape)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataInvalid(f"shard {uri}, row {row}: {error}", IMAGE_COLUMN) from error


def _raw(data: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    if len(data) != math.prod(shape):
        raise ValueError(f"{len(data)} bytes, but an image of shape {list(shape)} takes {math.prod(shape)}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _encoded(data: bytes, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    height, width, channels = shape
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
        if image.size != (width, height):  # from the header, before any pixel is decoded
            raise ValueError(f"image of {image.height}x{image.width} pixels, but the shards say {height}x{width}")
        return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(shape)


def _check_labels(labels: NDArray[np.int64], classes: int, uri: str, first: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise DataInvalid(
            f"shard {uri}, row {first + row}: label {labels[row]} is not one of 0..{classes - 1}", LABEL_COLUMN
        )

"""inspect(): what the shards themselves say, so that a job can be planned or refused before anything is decoded."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.datasets import digits
from dbserve.datasets.parquet import IMAGE_COLUMN, LABEL_COLUMN, ColumnType, Shard
from dbserve.datasets.shards import Role, find_shards, open_shard
from dbserve.datasets.split import split_sizes
from dbserve.errors import DataInvalid

Encoding = Literal["raw", "encoded"]
MAX_SIDE = 8192
MAX_CLASSES = 100_000
_READERS = 8  # footers of an object store are latency, not work


@dataclass(frozen=True)
class ShardFacts:
    """One shard: its footer, its schema metadata, and the range of its labels."""

    uri: str
    rows: int
    encoding: Encoding
    image_shape: tuple[int, int, int]  # (height, width, channels)
    class_names: tuple[str, ...] | None
    lowest: tuple[int, int]  # (label, row)
    highest: tuple[int, int]  # (label, row)


def inspect(data: DataSpec, *, cache_dir: Path) -> DataFacts:
    """Read footers, schema metadata and labels of every shard. Raises DataInvalid pointing to the offending key.

    `builtin:digits` is written under `cache_dir` first. Without label_names in the metadata the classes are 0..the
    largest label; without image_shape the first encoded image is decoded to learn it.
    """
    train_shards = locate(data.uri, role="train", pointer="/data/uri", cache_dir=cache_dir)
    test_shards: tuple[str, ...] = ()
    if data.test_uri is not None:
        test_shards = locate(data.test_uri, role="test", pointer="/data/test_uri", cache_dir=cache_dir)
        if shared := sorted(set(train_shards) & set(test_shards)):
            raise DataInvalid(f"{shared[0]} is both a training shard and a test shard", "/data/test_uri")
    train = _read_all(train_shards, data, "/data/uri")
    test = _read_all(test_shards, data, "/data/test_uri")
    names = _class_names([*train, *test])
    for shard, pointer in [*((shard, "/data/uri") for shard in train), *((shard, "/data/test_uri") for shard in test)]:
        _agree(shard, train[0], pointer)
        _labels_in_range(shard, len(names), pointer)
    sizes = split_sizes(
        sum(shard.rows for shard in train),
        test_rows=sum(shard.rows for shard in test) if test else None,
        test_fraction=data.test_fraction,
        validation_fraction=data.validation_fraction,
    )
    return DataFacts(
        train_shards=train_shards,
        test_shards=test_shards,
        train_rows=sizes.train,
        test_rows=sizes.test,
        validation_rows=sizes.validation,
        image_shape=train[0].image_shape,
        encoding=train[0].encoding,
        class_names=names,
    )


def locate(uri: str, *, role: Role, pointer: str, cache_dir: Path) -> tuple[str, ...]:
    """The shards behind a uri, `builtin:` ones included. Raises DataInvalid at `pointer`."""
    if uri == digits.URI:
        return digits.digit_shards(cache_dir, pointer=pointer)
    if uri.startswith("builtin:"):
        raise DataInvalid(f"no builtin data set {uri!r}; there is {digits.URI}", pointer)
    return find_shards(uri, role=role, pointer=pointer)


def _read_all(shards: Sequence[str], data: DataSpec, pointer: str) -> list[ShardFacts]:
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(partial(_read, data=data, pointer=pointer), shards))


def _read(uri: str, data: DataSpec, pointer: str) -> ShardFacts:
    with open_shard(uri, pointer=pointer) as shard:
        if shard.rows == 0:
            raise DataInvalid(f"shard {uri} holds no row", pointer)
        images = shard.column_type(data.image_column, IMAGE_COLUMN)
        labels = shard.column_type(data.label_column, LABEL_COLUMN)
        if labels.kind != "integer":
            raise DataInvalid(
                f"shard {uri}: labels must be integers; {data.label_column!r} is {labels.name}", LABEL_COLUMN
            )
        encoding = _encoding(images, shard.metadata.get("image_encoding"), f"shard {uri}: {data.image_column!r}")
        shape = _stated_shape(shard, pointer)
        if shape is None:
            shape = _shape_of_first_image(shard, encoding, data.image_column)
        _check_shape(shape, images, encoding, f"shard {uri}: {data.image_column!r}")
        values = shard.labels(data.label_column)
        low, high = int(values.argmin()), int(values.argmax())
        return ShardFacts(
            uri=uri,
            rows=shard.rows,
            encoding=encoding,
            image_shape=shape,
            class_names=_label_names(shard, pointer),
            lowest=(int(values[low]), low),
            highest=(int(values[high]), high),
        )


def _encoding(images: ColumnType, said: str | None, where: str) -> Encoding:
    """Fixed-size binary is raw, variable-size binary is encoded, unless the metadata says otherwise."""
    if images.kind not in ("fixed_binary", "binary"):
        raise DataInvalid(
            f"{where} is {images.name}; images are binary (JPEG, PNG) or fixed_size_binary (raw)", IMAGE_COLUMN
        )
    if said is None:
        return "raw" if images.kind == "fixed_binary" else "encoded"
    if said.split()[:2] == ["raw", "uint8"]:
        return "raw"
    if said.lower() in ("jpeg", "jpg", "png"):
        return "encoded"
    known = "'jpeg', 'png' or 'raw uint8 HWC'"
    raise DataInvalid(f"{where}: image_encoding {said!r} is not known; say {known}", IMAGE_COLUMN)


def _stated_shape(shard: Shard, pointer: str) -> tuple[int, int, int] | None:
    said = shard.metadata.get("image_shape")
    if said is None:
        return None
    try:
        sizes = tuple(cast("list[int]", json.loads(said)))
        if not all(type(size) is int for size in sizes):
            raise ValueError
        height, width, channels = sizes if len(sizes) == 3 else (*sizes, 1)
    except (ValueError, TypeError) as error:
        raise DataInvalid(
            f"shard {shard.uri}: image_shape {said!r} is not [height, width(, channels)]", pointer
        ) from error
    return height, width, channels


def _shape_of_first_image(shard: Shard, encoding: Encoding, column: str) -> tuple[int, int, int]:
    where = f"shard {shard.uri}, row 0"
    if encoding == "raw":
        raise DataInvalid(
            f"{where}: raw images need their shape in the schema metadata: image_shape '[height, width, channels]'",
            IMAGE_COLUMN,
        )
    try:
        from PIL import Image  # a worker's dependency; shards that state their shape do without
    except ImportError as error:
        raise DataInvalid(f"{where}: no image_shape is stated, and Pillow is not installed", IMAGE_COLUMN) from error
    try:
        with Image.open(io.BytesIO(shard.first_image(column) or b"")) as image:
            return image.height, image.width, 1 if image.mode in ("1", "L", "I;16") else 3
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataInvalid(f"{where}: no image_shape is stated, and the image is unreadable", IMAGE_COLUMN) from error


def _check_shape(shape: tuple[int, int, int], images: ColumnType, encoding: Encoding, where: str) -> None:
    height, width, channels = shape
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and channels in (1, 3)):
        raise DataInvalid(
            f"{where}: shape {list(shape)} is not at most {MAX_SIDE}x{MAX_SIDE} with 1 or 3 channels", IMAGE_COLUMN
        )
    if encoding == "raw" and images.kind == "fixed_binary" and images.width != math.prod(shape):
        raise DataInvalid(
            f"{where} holds {images.width} bytes a row, but shape {list(shape)} takes {math.prod(shape)}", IMAGE_COLUMN
        )


def _label_names(shard: Shard, pointer: str) -> tuple[str, ...] | None:
    said = shard.metadata.get("label_names")
    if said is None:
        return None
    try:
        names = cast("object", json.loads(said))
    except ValueError as error:
        raise DataInvalid(f"shard {shard.uri}: label_names is not JSON", pointer) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast("list[object]", names)):
        raise DataInvalid(f"shard {shard.uri}: label_names is not a list of strings", pointer)
    return tuple(cast("list[str]", names))


def _class_names(shards: Sequence[ShardFacts]) -> tuple[str, ...]:
    names = shards[0].class_names
    if names is None:
        largest = max(shard.highest for shard in shards)[0]
        if largest >= MAX_CLASSES:
            raise DataInvalid(f"the largest label is {largest}: more than {MAX_CLASSES:,} classes", LABEL_COLUMN)
        names = tuple(str(label) for label in range(largest + 1))
    if len(names) < 2:
        raise DataInvalid(f"there is {len(names)} class; a classifier needs two", LABEL_COLUMN)
    return names


def _agree(shard: ShardFacts, first: ShardFacts, pointer: str) -> None:
    """All shards, of training and test, hold the same kind of image and name the same classes."""
    for name in ("image_shape", "encoding", "class_names"):
        here, there = getattr(shard, name), getattr(first, name)
        if here != there:
            raise DataInvalid(f"{name} differs: {here} in {shard.uri}, {there} in {first.uri}", pointer)


def _labels_in_range(shard: ShardFacts, classes: int, pointer: str) -> None:
    for label, row in (shard.lowest, shard.highest):
        if not 0 <= label < classes:
            raise DataInvalid(f"shard {shard.uri}, row {row}: label {label} is not one of 0..{classes - 1}", pointer)

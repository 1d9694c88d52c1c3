"""Image shards: what they say of themselves, so that a job can be planned or refused before a pixel is decoded."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

from dbserve.contracts.job import Augmentation, DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.datasets.parquet import IMAGE_COLUMN, LABEL_COLUMN, ColumnType, Shard
from dbserve.datasets.shards import open_shard
from dbserve.datasets.split import split_sizes
from dbserve.errors import DataInvalid

Encoding = Literal["raw", "encoded", "float32"]
Shape = tuple[int, int, int]  # (height, width, channels)
IMAGE_SIZE = "/data/image_size"
MAX_SIDE = 8192
MAX_CHANNELS = 64  # of float32 arrays
MAX_CLASSES = 100_000
_LABELS_AT_ONCE = 1 << 20
_READERS = 8  # footers of an object store are latency, not work


@dataclass(frozen=True)
class ShardFacts:
    """One shard: its footer, its schema metadata, and the range of its labels."""

    uri: str
    rows: int
    encoding: Encoding
    image_shape: Shape  # as decoded: where the job resizes, its own
    class_names: tuple[str, ...] | None
    lowest: tuple[int, int]  # (label, row)
    highest: tuple[int, int]  # (label, row)


def image_facts(data: DataSpec, train_shards: tuple[str, ...], test_shards: tuple[str, ...]) -> DataFacts:
    """Read footers, schema metadata and labels of every shard. Raises DataInvalid pointing to the offending key.

    Without label_names in the metadata the classes are 0..the largest label; without image_shape the first encoded
    image is decoded to learn it.
    """
    train = _read_all(train_shards, data, "/data/uri")
    test = _read_all(test_shards, data, "/data/test_uri")
    names = _class_names([*train, *test])
    for shard, pointer in [*((shard, "/data/uri") for shard in train), *((shard, "/data/test_uri") for shard in test)]:
        _agree(shard, train[0], pointer)
        _labels_in_range(shard, len(names), pointer)
    if train[0].encoding == "float32":
        _leave_alone(data)
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


def stated_shape(shard: Shard, pointer: str) -> Shape | None:
    """The image_shape of the schema metadata. Raises DataInvalid at `pointer` when it is no shape."""
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
        shape = stated_shape(shard, pointer)
        if shape is None:
            shape = _shape_of_first_image(shard, encoding, data.image_column)
        _check_shape(shape, images, encoding, f"shard {uri}: {data.image_column!r}")
        if data.image_size is not None and encoding != "float32":
            shape = (data.image_size, data.image_size, shape[2])
        lowest, highest = _range(shard, data.label_column)
        return ShardFacts(
            uri=uri,
            rows=shard.rows,
            encoding=encoding,
            image_shape=shape,
            class_names=_label_names(shard, pointer),
            lowest=lowest,
            highest=highest,
        )


def _range(shard: Shard, column: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """The lowest and the highest label of a shard, each with the first row that has it."""
    lowest: list[tuple[int, int]] = []
    highest: list[tuple[int, int]] = []
    first = 0
    for values in shard.labels(column, _LABELS_AT_ONCE):
        low, high = int(values.argmin()), int(values.argmax())
        lowest.append((int(values[low]), first + low))
        highest.append((int(values[high]), first + high))
        first += len(values)
    return min(lowest), max(highest, key=lambda found: (found[0], -found[1]))


def _leave_alone(data: DataSpec) -> None:
    """Arrays of floats are taken as they are: what they mean is not known here."""
    if data.image_size is not None:
        raise DataInvalid("float32 arrays are not resized: leave image_size out", IMAGE_SIZE)
    if data.augment != Augmentation():
        raise DataInvalid("float32 arrays are not augmented: leave augment out", "/data/augment")


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
    if said.split()[:2] == ["raw", "float32"]:
        return "float32"
    if said.lower() in ("jpeg", "jpg", "png"):
        return "encoded"
    known = "'jpeg', 'png', 'raw uint8 HWC' or 'raw float32 HWC'"
    raise DataInvalid(f"{where}: image_encoding {said!r} is not known; say {known}", IMAGE_COLUMN)


def _shape_of_first_image(shard: Shard, encoding: Encoding, column: str) -> Shape:
    where = f"shard {shard.uri}, row 0"
    if encoding != "encoded":
        raise DataInvalid(
            f"{where}: raw images need their shape in the schema metadata: image_shape '[height, width, channels]'",
            IMAGE_COLUMN,
        )
    try:
        from PIL import Image  # a worker's dependency; shards that state their shape do without
    except ImportError as error:
        raise DataInvalid(f"{where}: no image_shape is stated, and Pillow is not installed", IMAGE_COLUMN) from error
    try:
        with Image.open(io.BytesIO(shard.first_image(column) or b""), formats=("JPEG", "PNG")) as image:
            return image.height, image.width, 1 if image.mode in ("1", "L", "I;16") else 3
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataInvalid(f"{where}: no image_shape is stated, and the image is unreadable", IMAGE_COLUMN) from error


def _check_shape(shape: Shape, images: ColumnType, encoding: Encoding, where: str) -> None:
    height, width, channels = shape
    allowed = range(1, MAX_CHANNELS + 1) if encoding == "float32" else (1, 3)
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE and channels in allowed):
        said = f"1 to {MAX_CHANNELS}" if encoding == "float32" else "1 or 3"
        raise DataInvalid(
            f"{where}: shape {list(shape)} is not at most {MAX_SIDE}x{MAX_SIDE} with {said} channels", IMAGE_COLUMN
        )
    size = math.prod(shape) * (4 if encoding == "float32" else 1)
    if encoding != "encoded" and images.kind == "fixed_binary" and images.width != size:
        raise DataInvalid(
            f"{where} holds {images.width} bytes a row, but shape {list(shape)} takes {size}", IMAGE_COLUMN
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

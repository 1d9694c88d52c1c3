"""One parquet shard behind a typed face. pyarrow ships no types, so this file and no other calls it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from dbserve.errors import DataInvalid

_arrow = cast("Any", pyarrow)
_compute = cast("Any", pyarrow.compute)
_parquet = cast("Any", pyarrow.parquet)
PARQUET_ERRORS = cast("tuple[type[Exception], ...]", (_arrow.ArrowException, OSError, ValueError))

IMAGE_COLUMN, LABEL_COLUMN, TEXT_COLUMN = "/data/image_column", "/data/label_column", "/data/text_column"


# What a shard may ask of whoever reads it. A kilobyte can stand for a terabyte: values that repeat are stored once.
MOST_ROWS = 1 << 28  # of one shard
MOST_CHUNK_BYTES = 1 << 31  # of a column within a row group, as its footer says; Arrow's own arrays end there too
MOST_BATCH_BYTES = 1 << 28  # of the values that are read at once
MOST_GROWTH = 1000  # times its size that a shard may stand for, where its values repeat
_LONGEST_FOOTER_WORD = 32 << 20  # bytes
_REPEATING = frozenset({"RLE_DICTIONARY", "PLAIN_DICTIONARY"})
_GROWING = frozenset({"DELTA_BYTE_ARRAY"})  # each value begins with the one before it: a page's size says nothing


@dataclass(frozen=True)
class ColumnType:
    """`width`: bytes of a fixed-size binary value, else 0. `name` is Arrow's, for messages.

    A struct with a binary field `bytes`, as Hugging Face datasets writes images, counts as binary.
    """

    name: str
    kind: Literal["integer", "fixed_binary", "binary", "string", "other"]
    width: int


class Shard:
    """An open shard: `rows`, `columns` and the schema's `metadata` come from the footer."""

    def __init__(self, uri: str, file: Any, source: IO[bytes]) -> None:
        self.uri = uri
        self._file = file
        self._source = source
        self._size = source.seek(0, os.SEEK_END)
        self._grown = 0  # bytes that repeating values came to so far
        self._schema = file.schema_arrow
        self.rows = int(file.metadata.num_rows)
        if not 0 <= self.rows <= MOST_ROWS:
            raise DataInvalid(f"shard {uri} says it has {self.rows:,} rows; a shard has at most {MOST_ROWS:,}")
        self.columns = tuple(cast("list[str]", self._schema.names))
        raw = cast("Mapping[bytes, bytes]", self._schema.metadata or {})
        self.metadata = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in raw.items()}

    def column_type(self, column: str, pointer: str) -> ColumnType:
        """Raises DataInvalid at `pointer` when the shard has no such column, or two."""
        if self.columns.count(column) != 1:
            raise DataInvalid(f"shard {self.uri} has no column {column!r}; it has {', '.join(self.columns)}", pointer)
        arrow_type = self._schema.field(column).type
        types = _arrow.types
        name = str(arrow_type)
        if types.is_integer(arrow_type):
            return ColumnType(name, "integer", 0)
        if types.is_fixed_size_binary(arrow_type):
            return ColumnType(name, "fixed_binary", int(arrow_type.byte_width))
        if types.is_string(arrow_type) or types.is_large_string(arrow_type):
            return ColumnType(name, "string", 0)
        if types.is_struct(arrow_type) and arrow_type.get_field_index("bytes") >= 0:
            arrow_type = arrow_type.field("bytes").type
        if types.is_binary(arrow_type) or types.is_large_binary(arrow_type):
            return ColumnType(name, "binary", 0)
        return ColumnType(name, "other", 0)

    def labels(self, column: str, rows: int) -> Iterator[NDArray[np.int64]]:
        """An integer column, at most `rows` at a time. Raises DataInvalid on a null."""
        for batch in self._batches([column], rows, LABEL_COLUMN):
            yield self._integers(batch.column(0))

    def batches(self, image: str, label: str, rows: int) -> Iterator[tuple[list[bytes], NDArray[np.int64]]]:
        """Images as stored and their labels, at most `rows` at a time. Raises DataInvalid on a null."""
        for batch in self._batches([self._stored(image), label], rows, IMAGE_COLUMN):
            images, labels = _without_struct(batch.column(image)), self._integers(batch.column(label))
            if images.null_count:
                raise DataInvalid(f"shard {self.uri}: column {image!r} holds {images.null_count} nulls", IMAGE_COLUMN)
            for part in self._parts(images, IMAGE_COLUMN):
                yield cast("list[bytes]", images[part].to_pylist()), labels[part]

    def first_image(self, column: str) -> bytes | None:
        batch = next(self._batches([self._stored(column)], 1, IMAGE_COLUMN))
        return cast("bytes | None", _without_struct(batch.column(0))[0].as_py())

    def texts(self, column: str, rows: int) -> Iterator[list[str]]:
        """A column of strings, at most `rows` at a time. Raises DataInvalid on a null, naming its row."""
        first = 0
        for batch in self._batches([column], rows, TEXT_COLUMN):
            for part in self._parts(batch.column(0), TEXT_COLUMN):
                texts = cast("list[str | None]", batch.column(0)[part].to_pylist())
                if None in texts:
                    row = first + texts.index(None)
                    raise DataInvalid(f"shard {self.uri}, row {row}: {column!r} is null", TEXT_COLUMN)
                yield cast("list[str]", texts)
                first += len(texts)

    def _stored(self, column: str) -> str:
        """What to read of an image column: of a struct the bytes alone, not the path beside them."""
        return f"{column}.bytes" if _arrow.types.is_struct(self._schema.field(column).type) else column

    def _batches(self, columns: list[str], rows: int, pointer: str) -> Iterator[Any]:
        """Batches of these columns; what repeats comes as a dictionary, of known size before it is spelled out."""
        repeating = [column for column in columns if self._checked(column, pointer) & _REPEATING]
        wide = [self._schema.field(column).type for column in columns if column in self.columns]
        widest = max((kind.byte_width for kind in wide if _arrow.types.is_fixed_size_binary(kind)), default=1)
        file = _parquet.ParquetFile(self._source, metadata=self._file.metadata, read_dictionary=repeating)
        return file.iter_batches(batch_size=max(1, min(rows, MOST_BATCH_BYTES // widest)), columns=columns)

    def _checked(self, column: str, pointer: str) -> frozenset[str]:
        """How a column is stored. Raises DataInvalid where it could take any amount of memory to read it."""
        found: set[str] = set()
        for group in range(self._file.metadata.num_row_groups):
            chunks = self._file.metadata.row_group(group)
            for chunk in (chunks.column(place) for place in range(chunks.num_columns)):
                if chunk.path_in_schema != column:
                    continue
                found.update(chunk.encodings)
                if not 0 <= chunk.total_uncompressed_size <= MOST_CHUNK_BYTES:
                    raise DataInvalid(
                        f"shard {self.uri}: {column!r} takes {chunk.total_uncompressed_size:,} bytes in one row group; "
                        f"the most is {MOST_CHUNK_BYTES:,}: write smaller ones",
                        pointer,
                    )
        if found & _GROWING:
            raise DataInvalid(f"shard {self.uri}: {column!r} is DELTA_BYTE_ARRAY: write it plain", pointer)
        return frozenset(found)

    def _parts(self, values: Any, pointer: str) -> Iterator[slice]:
        """Cuts values that came as a dictionary so that no part, each value in full, is too large.

        Raises DataInvalid where a single one is, or where they grow out of all proportion to the file.
        """
        if not _arrow.types.is_dictionary(values.type):
            yield slice(0, len(values))
            return
        sizes = _compute.take(_compute.binary_length(values.dictionary), values.indices)
        ends = np.cumsum(_compute.fill_null(sizes, 0).to_numpy(zero_copy_only=False), dtype=np.int64)
        self._grown += int(ends[-1]) if len(ends) else 0
        if self._grown > max(MOST_GROWTH * self._size, MOST_BATCH_BYTES):
            raise DataInvalid(f"shard {self.uri}: {self._size:,} bytes that stand for {self._grown:,} or more", pointer)
        start = 0
        while start < len(ends):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + MOST_BATCH_BYTES, side="right"))
            if stop == start:
                raise DataInvalid(f"shard {self.uri}: a value is longer than {MOST_BATCH_BYTES:,} bytes", pointer)
            yield slice(start, stop)
            start = stop

    def _integers(self, values: Any) -> NDArray[np.int64]:
        if values.null_count:
            raise DataInvalid(f"shard {self.uri}: {values.null_count} labels are null", LABEL_COLUMN)
        return cast("NDArray[Any]", values.to_numpy(zero_copy_only=False)).astype(np.int64)


def _without_struct(values: Any) -> Any:
    """The `bytes` of a struct array, null where the struct is; another array as it is."""
    if not _arrow.types.is_struct(values.type):
        return values
    return values.flatten()[values.type.get_field_index("bytes")]


@contextmanager
def parquet_shard(uri: str, source: IO[bytes]) -> Generator[Shard]:
    """Read the footer of `source`; `uri` names it in messages. Raises one of PARQUET_ERRORS."""
    with _parquet.ParquetFile(source, thrift_string_size_limit=_LONGEST_FOOTER_WORD) as file:
        yield Shard(uri, file, source)


def write_raw_images(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], metadata: dict[str, str]
) -> None:
    """One shard of raw images: columns image (fixed_size_binary) and label (int32). `images` (rows, ...)."""
    width = int(np.prod(images.shape[1:]))
    buffers = [None, _arrow.py_buffer(np.ascontiguousarray(images))]
    column = _arrow.FixedSizeBinaryArray.from_buffers(_arrow.binary(width), len(images), buffers)
    fields = [_arrow.field("image", _arrow.binary(width)), _arrow.field("label", _arrow.int32())]
    columns = [column, _arrow.array(labels, _arrow.int32())]
    _parquet.write_table(_arrow.Table.from_arrays(columns, schema=_arrow.schema(fields, metadata=metadata)), path)

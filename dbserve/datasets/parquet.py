"""One parquet shard behind a typed face. pyarrow ships no types, so this file and no other calls it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.parquet  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from dbserve.errors import DataInvalid

_arrow = cast("Any", pyarrow)
_parquet = cast("Any", pyarrow.parquet)
PARQUET_ERRORS = cast("tuple[type[Exception], ...]", (_arrow.ArrowException, OSError, ValueError))

IMAGE_COLUMN, LABEL_COLUMN = "/data/image_column", "/data/label_column"


@dataclass(frozen=True)
class ColumnType:
    """`width`: bytes of a fixed-size binary value, else 0. `name` is Arrow's, for messages."""

    name: str
    kind: Literal["integer", "fixed_binary", "binary", "other"]
    width: int


class Shard:
    """An open shard: `rows`, `columns` and the schema's `metadata` come from the footer."""

    def __init__(self, uri: str, file: Any) -> None:
        self.uri = uri
        self._file = file
        self._schema = file.schema_arrow
        self.rows = int(file.metadata.num_rows)
        self.columns = tuple(cast("list[str]", self._schema.names))
        raw = cast("Mapping[bytes, bytes]", self._schema.metadata or {})
        self.metadata = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in raw.items()}

    def column_type(self, column: str, pointer: str) -> ColumnType:
        """Raises DataInvalid at `pointer` when the shard has no such column, or two."""
        if self.columns.count(column) != 1:
            raise DataInvalid(f"shard {self.uri} has no column {column!r}; it has {', '.join(self.columns)}", pointer)
        arrow_type = self._schema.field(column).type
        types = _arrow.types
        if types.is_integer(arrow_type):
            return ColumnType(str(arrow_type), "integer", 0)
        if types.is_fixed_size_binary(arrow_type):
            return ColumnType(str(arrow_type), "fixed_binary", int(arrow_type.byte_width))
        if types.is_binary(arrow_type) or types.is_large_binary(arrow_type):
            return ColumnType(str(arrow_type), "binary", 0)
        return ColumnType(str(arrow_type), "other", 0)

    def labels(self, column: str) -> NDArray[np.int64]:
        """A whole integer column. Shape (rows,). Raises DataInvalid on a null."""
        return self._integers(self._file.read(columns=[column]).column(0))

    def batches(self, image: str, label: str, rows: int) -> Iterator[tuple[list[bytes], NDArray[np.int64]]]:
        """Images as stored and their labels, at most `rows` at a time. Raises DataInvalid on a null."""
        for batch in self._file.iter_batches(batch_size=rows, columns=[image, label]):
            images, labels = batch.column(image), batch.column(label)
            if images.null_count:
                raise DataInvalid(f"shard {self.uri}: column {image!r} holds {images.null_count} nulls", IMAGE_COLUMN)
            yield cast("list[bytes]", images.to_pylist()), self._integers(labels)

    def first_image(self, column: str) -> bytes | None:
        return cast("bytes | None", next(self._file.iter_batches(batch_size=1, columns=[column])).column(0)[0].as_py())

    def _integers(self, values: Any) -> NDArray[np.int64]:
        if values.null_count:
            raise DataInvalid(f"shard {self.uri}: {values.null_count} labels are null", LABEL_COLUMN)
        return cast("NDArray[Any]", values.to_numpy(zero_copy_only=False)).astype(np.int64)


@contextmanager
def parquet_shard(uri: str, source: str | IO[bytes]) -> Generator[Shard]:
    """Read the footer of `source`, a path or a stream; `uri` names it in messages. Raises one of PARQUET_ERRORS."""
    with _parquet.ParquetFile(source) as file:
        yield Shard(uri, file)


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

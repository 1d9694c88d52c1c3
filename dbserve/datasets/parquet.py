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

IMAGE_COLUMN, LABEL_COLUMN, TEXT_COLUMN = "/data/image_column", "/data/label_column", "/data/text_column"


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

    def labels(self, column: str) -> NDArray[np.int64]:
        """A whole integer column. Shape (rows,). Raises DataInvalid on a null."""
        return self._integers(self._file.read(columns=[column]).column(0))

    def batches(self, image: str, label: str, rows: int) -> Iterator[tuple[list[bytes], NDArray[np.int64]]]:
        """Images as stored and their labels, at most `rows` at a time. Raises DataInvalid on a null."""
        for batch in self._file.iter_batches(batch_size=rows, columns=[self._stored(image), label]):
            images = _without_struct(batch.column(image))
            if images.null_count:
                raise DataInvalid(f"shard {self.uri}: column {image!r} holds {images.null_count} nulls", IMAGE_COLUMN)
            yield cast("list[bytes]", images.to_pylist()), self._integers(batch.column(label))

    def first_image(self, column: str) -> bytes | None:
        batch = next(self._file.iter_batches(batch_size=1, columns=[self._stored(column)]))
        return cast("bytes | None", _without_struct(batch.column(0))[0].as_py())

    def texts(self, column: str, rows: int) -> Iterator[list[str]]:
        """A column of strings, at most `rows` at a time. Raises DataInvalid on a null, naming its row."""
        first = 0
        for batch in self._file.iter_batches(batch_size=rows, columns=[column]):
            texts = cast("list[str | None]", batch.column(0).to_pylist())
            if None in texts:
                row = first + texts.index(None)
                raise DataInvalid(f"shard {self.uri}, row {row}: {column!r} is null", TEXT_COLUMN)
            yield cast("list[str]", texts)
            first += len(texts)

    def _stored(self, column: str) -> str:
        """What to read of an image column: of a struct the bytes alone, not the path beside them."""
        return f"{column}.bytes" if _arrow.types.is_struct(self._schema.field(column).type) else column

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

"""The tokens of text shards, joined into one stream; written once per node (workers.data.once), then only read.

<cache_dir>/decoded/<key>/tokens.u16   the stream in little-endian uint16, or
                          tokens.i32   in int32, where the vocabulary has more than 65,536 tokens
                         /count        how many there are, in decimal
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbserve.contracts.plan import Vocabulary
from dbserve.datasets.parquet import TEXT_COLUMN
from dbserve.datasets.shards import open_shard
from dbserve.datasets.text import READ_ROWS, unknown_character
from dbserve.datasets.vocabulary import UnknownCharacter, codec_of
from dbserve.errors import DataInvalid, StorageError
from workers.data.once import key_of, made_once

_FORMAT = 1  # of the files above; part of the key
_COUNT = "count"


def encoded(
    shards: Sequence[str], vocabulary: Vocabulary, column: str, *, pointer: str, cache_dir: Path
) -> NDArray[Any]:
    """The stream of a shard set, mapped read-only: (tokens,) uint16 or int32. Written first if no process here has.

    Raises DataInvalid at `pointer` naming shard and row, ContractMismatch when the tokenizer changed, StorageError.
    """
    home = cache_dir.absolute() / "decoded"
    key = key_of(shards, _FORMAT, "tokens", column, vocabulary.sha256, pointer=pointer)
    dtype = np.dtype("<u2") if vocabulary.size <= 1 << 16 else np.dtype("<i4")
    write = partial(_write, shards=shards, vocabulary=vocabulary, column=column, dtype=dtype, pointer=pointer)
    try:
        entry = made_once(home / key, whole=partial(_is_whole, dtype=dtype), make=write)
        return np.memmap(_file(entry, dtype), dtype=dtype, mode="r").view(np.ndarray)
    except OSError as error:
        raise StorageError(f"the tokens cannot be kept in {home}: {error}") from error


def _file(entry: Path, dtype: np.dtype[Any]) -> Path:
    return entry / ("tokens.u16" if dtype.itemsize == 2 else "tokens.i32")


def _is_whole(entry: Path, *, dtype: np.dtype[Any]) -> bool:
    try:
        count = int((entry / _COUNT).read_text())
        return count > 0 and _file(entry, dtype).stat().st_size == count * dtype.itemsize
    except (FileNotFoundError, ValueError):
        return False


def _write(
    target: Path, *, shards: Sequence[str], vocabulary: Vocabulary, column: str, dtype: np.dtype[Any], pointer: str
) -> None:
    count = 0
    with _file(target, dtype).open("xb") as stream:
        for tokens in _pieces(shards, vocabulary, column, pointer):
            stream.write(tokens.astype(dtype).tobytes())
            count += len(tokens)
    if not count:
        raise DataInvalid(f"the shards {', '.join(shards)} hold no text", TEXT_COLUMN)
    (target / _COUNT).write_text(str(count))


def _pieces(shards: Sequence[str], vocabulary: Vocabulary, column: str, pointer: str) -> Iterator[NDArray[np.int64]]:
    codec = codec_of(vocabulary)
    for uri in shards:
        with open_shard(uri, pointer=pointer) as shard:
            if shard.column_type(column, TEXT_COLUMN).kind != "string":
                raise DataInvalid(f"shard {uri} changed since the job was planned: {column!r} is no text", TEXT_COLUMN)
            first = 0
            for texts in shard.texts(column, READ_ROWS):
                try:
                    yield codec.encode(texts)
                except UnknownCharacter as unknown:
                    raise unknown_character(uri, first + unknown.row, unknown.character, pointer) from unknown
                first += len(texts)

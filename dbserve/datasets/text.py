"""Text shards seen as one stream: how many tokens it has, over which vocabulary, and where it is cut.

Tokens can only be counted by reading the text, so what a shard holds (its census) is kept under

    <cache_dir>/text/<key>.json

where the key digests the shard's uri, size and time of modification, the column and the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts, Vocabulary
from dbserve.datasets.parquet import TEXT_COLUMN
from dbserve.datasets.shards import open_shard, shard_version
from dbserve.datasets.split import stream_sizes
from dbserve.datasets.vocabulary import (
    CharacterCodec,
    Codec,
    UnknownCharacter,
    bytes_vocabulary,
    characters_vocabulary,
    code_points,
    codec_of,
    named,
    tokenizer_vocabulary,
)
from dbserve.errors import DataInvalid, StorageError

READ_ROWS = 4096
_FORMAT = 1  # of a census; part of its key
_READERS = 8


class Census(BaseModel, frozen=True):
    """One shard: its tokens, and its distinct characters, sorted, where they are the vocabulary."""

    tokens: int
    characters: str = ""


def text_facts(data: DataSpec, train: tuple[str, ...], test: tuple[str, ...], *, cache_dir: Path) -> DataFacts:
    """Count the tokens of every shard, and cut the stream. Raises DataInvalid pointing to the offending key.

    The characters of a vocabulary are those of all shards behind `uri`, held-out ends of its stream included; a test
    stream of its own must do with them.
    """
    home = cache_dir.absolute() / "text"
    if data.tokenizer is not None:
        planned: Vocabulary | None = tokenizer_vocabulary(data.tokenizer)
    else:
        planned = bytes_vocabulary() if data.vocabulary == "bytes" else None
    train_census = _census_of_all(train, data, planned, "/data/uri", home)
    test_census = _census_of_all(test, data, planned, "/data/test_uri", home)
    vocabulary = planned
    if vocabulary is None:
        vocabulary = characters_vocabulary("".join(census.characters for census in train_census))
        _known(test, test_census, vocabulary, data)
    if vocabulary.size < 2:
        raise DataInvalid(f"the text has {vocabulary.size} distinct characters; a model of text needs two")
    sizes = stream_sizes(
        sum(census.tokens for census in train_census),
        test_tokens=sum(census.tokens for census in test_census) if test else None,
        test_fraction=data.test_fraction,
        validation_fraction=data.validation_fraction,
        sequence_length=data.sequence_length,
    ).windows(data.sequence_length)
    return DataFacts(
        train_shards=train,
        test_shards=test,
        train_rows=sizes.train,
        test_rows=sizes.test,
        validation_rows=sizes.validation,
        encoding="text",
        vocabulary=vocabulary,
        sequence_length=data.sequence_length,
    )


def unknown_character(uri: str, row: int, character: str, pointer: str) -> DataInvalid:
    return DataInvalid(f"shard {uri}, row {row}: {named(character)} does not occur in the training text", pointer)


def _census_of_all(
    shards: Sequence[str], data: DataSpec, vocabulary: Vocabulary | None, pointer: str, home: Path
) -> list[Census]:
    codec = None if vocabulary is None else codec_of(vocabulary)
    name = "characters" if vocabulary is None else vocabulary.sha256
    count = partial(_kept_census, column=data.text_column, codec=codec, vocabulary=name, pointer=pointer, home=home)
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(count, shards))


def _kept_census(uri: str, *, column: str, codec: Codec | None, vocabulary: str, pointer: str, home: Path) -> Census:
    identity = [_FORMAT, shard_version(uri, pointer=pointer), column, vocabulary]
    path = home / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}.json"
    try:
        return Census.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):  # not counted yet, or what was kept is damaged
        census = _census(uri, column, codec, pointer)
    try:
        _write(path, census.model_dump_json().encode())
    except OSError as error:
        raise StorageError(f"what the text holds cannot be kept in {home}: {error}") from error
    return census


def _census(uri: str, column: str, codec: Codec | None, pointer: str) -> Census:
    """Without a codec its distinct characters are collected, one token each."""
    seen = np.zeros(0x110000, dtype=bool)
    tokens = 0
    with open_shard(uri, pointer=pointer) as shard:
        if shard.rows == 0:
            raise DataInvalid(f"shard {uri} holds no row", pointer)
        text = shard.column_type(column, TEXT_COLUMN)
        if text.kind != "string":
            raise DataInvalid(f"shard {uri}: {column!r} is {text.name}; text is string or large_string", TEXT_COLUMN)
        for texts in shard.texts(column, READ_ROWS):
            if codec is not None:
                tokens += len(codec.encode(texts))
                continue
            points = code_points(texts)
            seen[points] = True
            tokens += len(points)
    return Census(tokens=tokens, characters="".join(map(chr, np.flatnonzero(seen))))


def _known(shards: Sequence[str], found: Sequence[Census], vocabulary: Vocabulary, data: DataSpec) -> None:
    """Raises DataInvalid at the first character of a test shard that the training text has not."""
    for uri, census in zip(shards, found, strict=True):
        if set(census.characters) <= set(vocabulary.symbols):
            continue
        codec = CharacterCodec(vocabulary.symbols)
        with open_shard(uri, pointer="/data/test_uri") as shard:
            first = 0
            for texts in shard.texts(data.text_column, READ_ROWS):
                try:
                    codec.encode(texts)
                except UnknownCharacter as unknown:
                    row = first + unknown.row
                    raise unknown_character(uri, row, unknown.character, "/data/test_uri") from unknown
                first += len(texts)


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial_path = tempfile.mkstemp(prefix=".census-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(partial_path).rename(path)
    except OSError:
        Path(partial_path).unlink(missing_ok=True)
        raise

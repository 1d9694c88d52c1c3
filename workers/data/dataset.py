"""open_dataset(): the rows of a job as memory-mapped arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts, Vocabulary
from dbserve.datasets import digits
from dbserve.datasets.images import Shape
from dbserve.datasets.split import SplitSizes, split_sizes, stream_sizes
from dbserve.errors import DataInvalid
from workers.data.cache import decoded
from workers.data.tokens import encoded


@dataclass(frozen=True)
class Split:
    """One part of the rows; arrays are read-only.

    Images: `inputs` (rows, height, width, channels) uint8 or float32, `labels` (rows,) int64.
    Text: `inputs` (rows, T) uint16 or int32, windows that follow one another in `tokens`, the stream (1-d); no labels.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64] | None
    tokens: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.inputs):
            raise ValueError(f"{len(self.inputs)} images, but {len(self.labels)} labels")

    @classmethod
    def of_text(cls, tokens: NDArray[Any], sequence_length: int) -> Split:
        """A stream of tokens and the whole windows it holds; what is left at its end is in no window."""
        rows = len(tokens) // sequence_length
        return cls(tokens[: rows * sequence_length].reshape(rows, sequence_length), labels=None, tokens=tokens)

    def __len__(self) -> int:
        return len(self.inputs)

    def first(self, rows: int | None) -> Split:
        """The first `rows` rows at most; None: all. Images lie shuffled, windows of text as they were written."""
        if rows is None or rows >= len(self):
            return self
        tokens = None if self.tokens is None else self.tokens[: rows * self.inputs.shape[1]]
        return Split(self.inputs[:rows], None if self.labels is None else self.labels[:rows], tokens)

    @property
    def targets(self) -> NDArray[np.int64]:
        """The labels; ValueError where there are none."""
        if self.labels is None:
            raise ValueError("text has no labels")
        return self.labels


@dataclass(frozen=True)
class Dataset:
    train: Split
    validation: Split
    test: Split


def open_dataset(facts: DataFacts, spec: DataSpec, *, cache_dir: Path) -> Dataset:
    """Open the shards of a planned job. The first process on a node decodes them into `cache_dir`, the others wait.

    Raises DataInvalid on a corrupt or changed shard (naming shard and row), ContractMismatch on a changed tokenizer,
    StorageError when the cache cannot be written.
    """
    if facts.vocabulary is not None and facts.sequence_length is not None:
        return _text(facts, facts.vocabulary, facts.sequence_length, spec, cache_dir)
    if facts.image_shape is None:
        raise ValueError("the plan says neither what image nor what text this is")
    return _images(facts, facts.image_shape, spec, cache_dir)


def _images(facts: DataFacts, shape: Shape, spec: DataSpec, cache_dir: Path) -> Dataset:
    shards = facts.train_shards
    if spec.uri == digits.URI:  # written per node: the planner's copy may lie on another one
        shards = digits.digit_shards(cache_dir)

    def rows(shards: tuple[str, ...], pointer: str) -> Split:
        images, labels = decoded(shards, facts, shape, spec, pointer=pointer, cache_dir=cache_dir)
        return Split(inputs=images, labels=labels)

    pool = rows(shards, "/data/uri")
    test = rows(facts.test_shards, "/data/test_uri") if facts.test_shards else None
    sizes = split_sizes(
        len(pool),
        test_rows=None if test is None else len(test),
        test_fraction=spec.test_fraction,
        validation_fraction=spec.validation_fraction,
    )
    _as_planned(sizes, facts, spec)
    held_out = 0 if test is not None else sizes.test
    return Dataset(
        train=_slice(pool, held_out + sizes.validation, len(pool)),
        validation=_slice(pool, held_out, held_out + sizes.validation),
        test=_slice(pool, 0, held_out) if test is None else test,
    )


def _text(facts: DataFacts, vocabulary: Vocabulary, sequence_length: int, spec: DataSpec, cache_dir: Path) -> Dataset:
    read = partial(encoded, vocabulary=vocabulary, column=spec.text_column, cache_dir=cache_dir)
    stream = read(facts.train_shards, pointer="/data/uri")
    test = read(facts.test_shards, pointer="/data/test_uri") if facts.test_shards else None
    sizes = stream_sizes(
        len(stream),
        test_tokens=None if test is None else len(test),
        test_fraction=spec.test_fraction,
        validation_fraction=spec.validation_fraction,
        sequence_length=sequence_length,
    )
    windows = sizes.windows(sequence_length)
    _as_planned(windows, facts, spec)
    validation_end = sizes.train + sizes.validation
    train = Split.of_text(stream[: sizes.train], sequence_length)
    return Dataset(
        train=replace(train, inputs=train.inputs[: windows.train]),  # an epoch's windows, as planned
        validation=Split.of_text(stream[sizes.train : validation_end], sequence_length),
        test=Split.of_text(stream[validation_end:] if test is None else test, sequence_length),
    )


def _as_planned(sizes: SplitSizes, facts: DataFacts, spec: DataSpec) -> None:
    if sizes != SplitSizes(train=facts.train_rows, validation=facts.validation_rows, test=facts.test_rows):
        raise DataInvalid(f"the shards of {spec.uri} hold other rows than when the job was planned")


def _slice(split: Split, start: int, stop: int) -> Split:
    return Split(inputs=split.inputs[start:stop], labels=split.targets[start:stop])

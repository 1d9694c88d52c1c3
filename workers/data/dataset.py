"""open_dataset(): the rows of a job as memory-mapped arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.datasets import digits
from dbserve.datasets.split import SplitSizes, split_sizes
from dbserve.errors import DataInvalid
from workers.data.cache import decoded


@dataclass(frozen=True)
class Split:
    """One part of the rows; arrays are read-only.

    Images: `inputs` (rows, height, width, channels) uint8 or float32, `labels` (rows,) int64.
    Text: `inputs` (rows, T) uint16 or int32, windows that follow one another in `tokens`, the stream (1-d); no labels.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64] | None
    tokens: NDArray[Any] | None = None

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

    Raises DataInvalid on a corrupt or changed shard (naming shard and row), StorageError when the cache cannot be
    written.
    """
    shards = facts.train_shards
    if spec.uri == digits.URI:  # written per node: the planner's copy may lie on another one
        shards = digits.digit_shards(cache_dir)
    pool = _rows(shards, facts, spec, "/data/uri", cache_dir)
    test = _rows(facts.test_shards, facts, spec, "/data/test_uri", cache_dir) if facts.test_shards else None
    sizes = split_sizes(
        len(pool),
        test_rows=None if test is None else len(test),
        test_fraction=spec.test_fraction,
        validation_fraction=spec.validation_fraction,
    )
    if sizes != SplitSizes(train=facts.train_rows, validation=facts.validation_rows, test=facts.test_rows):
        raise DataInvalid(f"the shards of {spec.uri} hold other rows than when the job was planned")
    held_out = 0 if test is not None else sizes.test
    return Dataset(
        train=_slice(pool, held_out + sizes.validation, len(pool)),
        validation=_slice(pool, held_out, held_out + sizes.validation),
        test=_slice(pool, 0, held_out) if test is None else test,
    )


def _rows(shards: tuple[str, ...], facts: DataFacts, spec: DataSpec, pointer: str, cache_dir: Path) -> Split:
    images, labels = decoded(shards, facts, spec, pointer=pointer, cache_dir=cache_dir)
    return Split(inputs=images, labels=labels)


def _slice(split: Split, start: int, stop: int) -> Split:
    return Split(inputs=split.inputs[start:stop], labels=split.targets[start:stop])

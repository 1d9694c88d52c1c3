"""Which rows are held out. Images: one fixed shuffle of a shard set, cut into contiguous parts. Text: the stream's end.

The shuffle depends on the number of rows alone, so every job of every seed holds out the same rows, and the decoded
cache (workers.data) can lie in shuffled order and serve any fractions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dbserve.errors import DataInvalid

_SPLIT_KEY = 0x5EED_0F_5911  # the split's own; never the job's seed


@dataclass(frozen=True)
class SplitSizes:
    """Rows of each part. In shuffled order a shard set is cut as [test | validation | train]."""

    train: int
    validation: int
    test: int


def shuffled_order(rows: int) -> NDArray[np.int64]:
    """The fixed order of a shard set: place k of the order holds row `order[k]`. Shape (rows,).

    Sorted raw Philox words rather than Generator.permutation, whose stream numpy does not promise to keep.
    """
    words = np.random.Philox(key=_SPLIT_KEY).random_raw(rows)
    return np.argsort(words, kind="stable").astype(np.int64)


def split_sizes(rows: int, *, test_rows: int | None, test_fraction: float, validation_fraction: float) -> SplitSizes:
    """Cut `rows` rows. `test_rows` is the size of a test set of its own; None holds `test_fraction` out of these rows.

    Raises DataInvalid when a part that was asked for would be empty.
    """
    held_out = round(rows * test_fraction) if test_rows is None else 0
    validation = round((rows - held_out) * validation_fraction)
    train = rows - held_out - validation
    if test_rows is None and held_out < 1:
        raise DataInvalid(f"test_fraction {test_fraction:g} of {rows} rows leaves no test row", "/data/test_fraction")
    if validation_fraction > 0 and validation < 1:
        raise DataInvalid(
            f"validation_fraction {validation_fraction:g} of {rows - held_out} rows leaves no validation row",
            "/data/validation_fraction",
        )
    if train < 1:
        raise DataInvalid(
            f"of {rows} rows {held_out} are held out to test, {validation} to validate: none is left to train",
            "/data/test_fraction" if test_rows is None else "/data/validation_fraction",
        )
    return SplitSizes(train=train, validation=validation, test=held_out if test_rows is None else test_rows)


@dataclass(frozen=True)
class StreamSizes:
    """Tokens of each part. A stream is cut as [train | validation | test]; a test stream of its own is whole."""

    train: int
    validation: int
    test: int

    def windows(self, sequence_length: int) -> SplitSizes:
        """Whole windows of each part; of the training part those that fit at every offset an epoch may begin with."""
        return SplitSizes(
            train=epoch_windows(self.train, sequence_length),
            validation=self.validation // sequence_length,
            test=self.test // sequence_length,
        )


def epoch_windows(tokens: int, sequence_length: int) -> int:
    """How many windows an epoch takes from a stream, whichever offset below sequence_length it begins with.

    A stream shorter than two windows still gives one; there the offsets are fewer.
    """
    if tokens < sequence_length:
        return 0
    return max(1, (tokens - sequence_length + 1) // sequence_length)


def stream_sizes(
    tokens: int, *, test_tokens: int | None, test_fraction: float, validation_fraction: float, sequence_length: int
) -> StreamSizes:
    """Cut a stream of `tokens` tokens. `test_tokens` is the length of a test stream of its own; None holds
    `test_fraction` out of this one.

    Raises DataInvalid when a part that was asked for would hold no window.
    """
    held_out = round(tokens * test_fraction) if test_tokens is None else 0
    validation = round((tokens - held_out) * validation_fraction)
    sizes = StreamSizes(tokens - held_out - validation, validation, held_out if test_tokens is None else test_tokens)
    windows = sizes.windows(sequence_length)

    def none_in(part: str, held: int, pointer: str) -> DataInvalid:
        return DataInvalid(f"{part} holds {held:,} tokens: not one window of {sequence_length}", pointer)

    whole = f"of {tokens:,} tokens"
    if not windows.test and test_tokens is None:
        raise none_in(f"test_fraction {test_fraction:g} {whole}", sizes.test, "/data/test_fraction")
    if not windows.test:
        raise none_in("the test text", sizes.test, "/data/test_uri")
    if validation_fraction > 0 and not windows.validation:
        said = f"validation_fraction {validation_fraction:g} of {tokens - held_out:,} tokens"
        raise none_in(said, validation, "/data/validation_fraction")
    if not windows.train:
        raise none_in(f"what is left {whole} to train on", sizes.train, "/data/sequence_length")
    return sizes

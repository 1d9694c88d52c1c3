"""Which rows are held out: one fixed shuffle of a shard set, cut into contiguous parts.

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

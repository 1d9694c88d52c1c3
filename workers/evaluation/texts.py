"""What every examination of text needs: windows as tokens, units, and a measure of variety."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.data import Split

UNITS = {"characters": "bits/character", "bytes": "bits/byte", "tokenizer": "bits/token"}  # by kind of vocabulary
NGRAMS = (1, 2, 3)  # of which distinct-n is told


def windows_of(split: Split) -> Tensor:
    """The windows of a split of text: (W, T) int64."""
    return torch.from_numpy(split.inputs.astype(np.int64))  # pyright: ignore[reportUnknownMemberType]


def distinct(rows: Tensor, n: int) -> float | None:
    """Different n-grams per n-gram of the rows (S, T), none of which crosses a row's end; None where rows are shorter.

    1 / their number: one text over and over. Near 1: hardly an n-gram twice. It falls with the amount of text, so only
    equal amounts may be compared.
    """
    if rows.shape[1] < n:
        return None
    grams = rows.unfold(1, n, 1).reshape(-1, n)  # (S * (T - n + 1), n)
    return len(grams.unique(dim=0)) / len(grams)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]

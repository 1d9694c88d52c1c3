"""Texts that masked diffusion makes, from nothing or around a hole, and how varied they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.evaluation.entrants import Entrant
from workers.evaluation.masked_bound import log_probabilities, part_of
from workers.evaluation.texts import distinct
from workers.method.masking import unmasked

MOST_TEXTS = 64
_SEED = 20260912


@dataclass(frozen=True)
class Texts:
    """What one contestant made, or the held-out text in its place: `free` (S, T) from nothing, `filled` (S, T) around
    the hole, which is the same for all."""

    free: Tensor
    filled: Tensor
    hole: slice

    def distinct(self, n: int) -> float | None:
        """distinct-n of the free texts."""
        return distinct(self.free, n)

    def filled_distinct(self, n: int) -> float | None:
        """distinct-n within the hole."""
        return distinct(self.filled[:, self.hole], n)

    def recovered(self, truth: Tensor) -> float:
        """Share of the hole's tokens that are those of the text (S, T)."""
        return float((self.filled == truth)[:, self.hole].double().mean())


def hole_of(length: int) -> slice:
    """The middle half of a window."""
    return slice(length // 4, length // 4 + max(1, length // 2))


def made(entrant: Entrant, given: Tensor, *, mask: int, steps: int, device: torch.device) -> Texts:
    """As many texts as windows are given, (S, T) int64, from nothing and around the windows' hole.

    Every entrant draws from a generator of the same seed, on the CPU's or the device's own stream.
    """
    generator = torch.Generator(device).manual_seed(_SEED)
    hole = hole_of(given.shape[1])
    holed = given.clone()
    holed[:, hole] = mask
    share = float((holed == mask).double().mean())

    def predict(block: int, tokens: Tensor, places: Tensor) -> Tensor:
        return log_probabilities(part_of(entrant, block), tokens, places)

    def sampled(tokens: Tensor, start: float) -> Tensor:
        return unmasked(
            predict,
            tokens.to(device),
            mask=mask,
            edges=entrant.edges,
            steps=steps,
            generator=generator,
            start=start,
        ).cpu()

    return Texts(free=sampled(torch.full_like(given, mask), 1.0), filled=sampled(holed, share), hole=hole)


def held_out(given: Tensor) -> Texts:
    """The windows (S, T) themselves, as the measure of the others."""
    return Texts(free=given, filled=given, hole=hole_of(given.shape[1]))


def known_words(texts: list[str], dictionary: frozenset[str]) -> float | None:
    """Share of the texts' words that are in the dictionary; each text's first and last word, which may be cut, left
    out. None where no word is whole."""
    words = [word for text in texts for word in text.split()[1:-1]]
    return sum(word in dictionary for word in words) / len(words) if words else None


def dictionary_of(tokens: NDArray[np.generic], decode: Callable[[list[int]], str]) -> frozenset[str]:
    """The words of a stream of tokens (1-d)."""
    return frozenset(decode(tokens.tolist()).split())

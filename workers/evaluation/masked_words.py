"""What the bounds of masked diffusion come to, in plain sentences with their figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from workers.evaluation.masked_bound import Bounds
from workers.evaluation.scores import Difference

RIVALS = {
    "end_to_end": "the same network trained end-to-end",
    "data_parallel": "the same network trained data-parallel",
    "shallow": "one network of a block's layers on the whole range",
    "shallow_long": "one such shallow network trained for as many steps as all blocks together",
    "shallow_ensemble": "the ensemble of such shallow networks",
}


@dataclass(frozen=True)
class RangesFound:
    """The bounds of all contestants, "unigram" among them; `unit` is that of the bound, in bits."""

    bounds: Bounds
    entrants: tuple[str, ...]
    blocks: int
    unit: str

    @property
    def windows(self) -> int:
        return len(self.bounds.whole("unigram"))


def findings(found: RangesFound) -> Iterator[str]:
    """Who won, on the whole and range by range. "Level": within two standard errors of the paired difference."""
    bounds = found.bounds
    rivals = [key for key in RIVALS if key in found.entrants]
    for key in rivals:
        difference = bounds.less("blocks", key)
        ours, theirs = _bits(bounds, "blocks"), _bits(bounds, key)
        yield (
            f"By the bound on test text the blocks are {_versus(difference, found.unit)} {RIVALS[key]} "
            f"({ours:.3f} against {theirs:.3f} {found.unit})."
        )
    if "end_to_end" not in rivals:
        yield "No end-to-end baseline was trained, so nothing here says what isolation costs."
    for key in rivals[:1]:
        yield from _by_range(found, key)
    gain = bounds.less("unigram", "blocks")
    yield (
        f"Token frequencies alone come to {_bits(bounds, 'unigram'):.3f} {found.unit}: context is worth "
        f"{gain.value / math.log(2):.3f} to the blocks."
    )
    yield from _swap(found)
    yield (
        "The losses seen in training are means over different ranges of t and rank nothing; a mean loss over t alone "
        "never ranks: only the bound, on the same masks for all, compares."
    )


def warnings(found: RangesFound) -> Iterator[str]:
    """What a reader should not overlook."""
    for block in range(found.blocks):
        gain = found.bounds.less("unigram", "blocks", block)
        if gain.value < 2 * gain.error:
            yield (
                f"Block {block}: looks untrained: in its range it does no better than token frequencies "
                f"({gain.value:+.4f} nats a token)."
            )
        elif "neighbour" in found.entrants:
            swap = found.bounds.less("blocks", "neighbour", block)
            if swap.settled and swap.value > 0:
                yield (
                    f"Block {block}: in its own range a neighbour does better, by {swap.value:.4f} ± {swap.error:.4f} "
                    "nats a token: it has not become a specialist."
                )


def _by_range(found: RangesFound, rival: str) -> Iterator[str]:
    parts = [part for part in found.bounds.parts if part.high > part.low]
    told: list[str] = []
    for block in range(found.blocks):
        difference = found.bounds.less("blocks", rival, block)
        verdict = "level" if not difference.settled else "lost" if difference.value > 0 else "won"
        told.append(
            f"t in [{parts[block].low:.2g}, {parts[block].high:.2g}] {difference.value:+.4f} ± {difference.error:.4f} "
            f"({verdict})"
        )
    yield f"Range by range, blocks less {RIVALS[rival]}, in nats a token of the bound: {'; '.join(told)}."


def _swap(found: RangesFound) -> Iterator[str]:
    if "neighbour" not in found.entrants:
        return
    difference = found.bounds.less("neighbour", "blocks")
    if not difference.settled:
        meaning = "so they are hardly specialists, and the bound would not reveal a wrong order"
    elif difference.value < 0:
        meaning = "so they are no specialists of their ranges"
    else:
        meaning = "so a wrong order would show"
    yield f"With each block in a neighbour's range the bound is {_versus(difference, found.unit)} their own, {meaning}."


def _versus(difference: Difference, unit: str) -> str:
    """In bits, lower is better; "level with" where two standard errors of the paired difference cover nothing."""
    value, error = difference.value / math.log(2), difference.error / math.log(2)
    if not difference.settled:
        return f"level with ({value:+.3f} ± {error:.3f} {unit})"
    return f"{abs(value):.3f} ± {error:.3f} {unit} {'worse than' if value > 0 else 'better than'}"


def _bits(bounds: Bounds, key: str) -> float:
    return float(bounds.whole(key).mean()) / math.log(2)

"""What models of the next token were measured at, in plain sentences with their figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from workers.evaluation.scores import Difference

RIVALS = {
    "end_to_end": "the same network trained end-to-end",
    "data_parallel": "the same network trained data-parallel",
    "shallow": "one plain network of a block's layers",
    "shallow_long": "one such shallow network trained for as many steps as all blocks together",
    "shallow_ensemble": "the ensemble of such shallow networks",
}
UNSEEN = 0.02  # nats by which another past must hurt a block at its upper edge, at least


@dataclass(frozen=True)
class Found:
    """By contestant: losses of the windows (W,) in nats a token, distinct-n of its texts, seconds and layers a token.
    `bound` and `wrapped` (W',) are of the first windows; `facts` of each block are in nats a token."""

    losses: dict[str, Tensor]
    titles: dict[str, str]
    unit: str
    bound: Tensor | None
    wrapped: Tensor | None
    facts: Sequence[dict[str, float]]
    distinct: dict[str, float | None]
    seconds: dict[str, float]
    layers: dict[str, int]

    def bits(self, key: str) -> float:
        return float(self.losses[key].mean()) / math.log(2)

    def less(self, key: str, other: str) -> Difference:
        """Bits by which `key` is below `other` on the same windows, with the paired standard error."""
        return paired(self.losses[other], self.losses[key])


def paired(more: Tensor, less: Tensor) -> Difference:
    """Mean of more - less, (W,) nats each, in bits; infinitely uncertain of a single window."""
    bits = (more - less).double() / math.log(2)
    error = float(bits.std()) / math.sqrt(len(bits)) if len(bits) > 1 else math.inf
    return Difference(value=float(bits.mean()), error=error)


def findings(found: Found) -> Iterator[str]:
    """Who won; "level" is within two standard errors of the paired difference."""
    rivals = [key for key in RIVALS if key in found.losses]
    for key in rivals:
        yield (
            f"On test text the blocks are {_versus(found.less('blocks', key), found.unit)} {RIVALS[key]} "
            f"({found.bits('blocks'):.3f} against {found.bits(key):.3f} {found.unit})."
        )
    if "end_to_end" not in rivals:
        yield "No end-to-end baseline was trained, so nothing here says what isolation costs."
    for key in found.titles:
        if key in ("average", "chain", "single_run") or key.startswith("runs_"):
            difference = found.less("blocks", key)
            yield (
                f"{found.titles[key]} come to {found.bits(key):.3f} {found.unit}: the decode that answers is "
                f"{_versus(difference, found.unit)} that one."
            )
    yield from _bound(found)
    yield (
        f"Pairs of tokens counted in the training text come to {found.bits('bigram'):.3f} {found.unit}, single ones to "
        f"{found.bits('unigram'):.3f}."
    )
    yield from _cost(found)


def _bound(found: Found) -> Iterator[str]:
    if found.bound is None:
        return
    windows = len(found.bound)
    bits = float(found.bound.mean()) / math.log(2)
    exact = found.losses["blocks"][:windows]
    difference = paired(exact, found.bound)
    yield (
        f"The bound along all noise levels is {bits:.3f} {found.unit}, {_versus(difference, found.unit)} what the "
        f"decode gives exactly on the same {windows} windows."
    )
    averaged = found.losses.get("average", found.losses["blocks"])[:windows]
    if found.wrapped is not None:
        gap = paired(found.wrapped, averaged)
        yield (
            "The integral itself was checked on a perfect denoiser of the average decode: it came out "
            f"{gap.value:+.4f} ± {gap.error:.4f} {found.unit} from that decode's exact value."
        )


def _cost(found: Found) -> Iterator[str]:
    if "end_to_end" not in found.seconds or "blocks" not in found.seconds:
        return
    yield (
        f"A token takes the blocks {found.layers['blocks']} layer evaluations and "
        f"{1000 * found.seconds['blocks']:.1f} ms, the end-to-end network {found.layers['end_to_end']} and "
        f"{1000 * found.seconds['end_to_end']:.1f} ms."
    )


def warnings(found: Found) -> Iterator[str]:
    """What a reader should not overlook."""
    floor = found.less("blocks", "bigram")
    if not (floor.settled and floor.value > 0):
        yield (
            f"The blocks are no better than pairs of tokens counted in the training text "
            f"({found.bits('blocks'):.3f} against {found.bits('bigram'):.3f} {found.unit})."
        )
    for index, values in enumerate(found.facts):
        gain = values["shuffled"] - values["teacher"]
        if gain < UNSEEN:
            yield f"Block {index}: another window's past costs it {gain:+.3f} nats a token: it ignores the past."
    if found.wrapped is not None:
        windows = len(found.wrapped)
        gap = paired(found.wrapped, found.losses.get("average", found.losses["blocks"])[:windows])
        if abs(gap.value) > 4 * gap.error and abs(gap.value) > 0.01:
            yield f"The bound's integral is off by {gap.value:+.3f} {found.unit} where it is known exactly."


def _versus(difference: Difference, unit: str) -> str:
    """`value` bits lower is better."""
    figures = f"({difference.value:+.3f} ± {difference.error:.3f} {unit} saved)"
    if not difference.settled:
        return f"level with {figures}"
    return f"{'better than' if difference.value > 0 else 'worse than'} {figures}"

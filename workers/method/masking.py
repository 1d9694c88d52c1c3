"""Masked diffusion: how tokens are masked, what a masked token costs, and how a text is unmasked (paper, App. D).

The noise level is t, the probability that a token is masked: the linear schedule alpha(t) = 1 - t. N rows, T tokens of
a row, V vocabulary. HIGH t = EARLY block, as everywhere.

The loss at t is E[(1/t) sum of CE over the masked tokens] / T, in nats a token (paper, App. D; Sahoo et al., 2024,
arXiv 2406.07524; Shi et al., 2024, arXiv 2406.04329). Read token by token it says: CE of a token that is masked while
every other one is with probability t, mean over the tokens. So it is estimated without 1/t: one token, drawn evenly,
is masked for certain, the others with probability t, and the row's loss is the mean CE of its masked tokens (given
the set of the masked, each of them was equally likely the certain one). The expectation, and that of every gradient,
is the same; but no row is without a lesson at small t, and none weighs more than another.

The bound. The integral of that loss over t in (0, 1] is the negative ELBO. It is additive: an interval [low, high]
contributes (high - low) times the mean loss over its t, whoever predicts there, so the bound of B blocks is the sum
of their intervals' contributions. Below t_min nothing is integrated: the text is uncovered in one step from t_min to
0, whose share of the bound (of discrete time, so a little loose) is exactly t_min times the loss at t_min. With t_min
= 1/T that is one token's cross-entropy in T: at most ln V / T nats a token from a model no worse than guessing. Above
t_max < 1 the same holds of the step from 1 to t_max with every token masked. So `bound_parts` always adds up to a
true bound.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from workers.method.partition import block_of

# (block, tokens (N, T) of which some are the mask, places (N, T) bool) -> logits or log-probabilities (K, V) of the K
# tokens asked for, row by row; there is no column for the mask.
Predict = Callable[[int, Tensor, Tensor], Tensor]


def stratified_levels(count: int, interval: tuple[float, float], *, generator: torch.Generator) -> Tensor:
    """t of each row: low + (high - low) (i + u) / count with one u in [0, 1) (Kingma et al., 2021, App. I.1).

    Shape (count,), float32, on the generator's device, ascending. Each row's t is uniform in the interval, and together
    they cover it evenly, so the batch's mean loss scatters less than with independent draws. They are not permuted:
    rows come in random order already, so which text meets which t is random without it.
    """
    low, high = interval
    u = torch.rand(1, dtype=torch.float64, device=generator.device, generator=generator)
    place = (torch.arange(count, dtype=torch.float64, device=generator.device) + u) / count
    return (low + (high - low) * place).float().clamp(low, high)


def masked_positions(levels: Tensor, length: int, *, generator: torch.Generator) -> Tensor:
    """Which tokens are masked: levels (N,) -> (N, length) bool, at least one of each row.

    One, evenly drawn, for certain, and every other one with its row's probability. At t = 1 all are. Levels and
    generator must be on one device.
    """
    draws = torch.rand(len(levels), length, device=levels.device, generator=generator)  # [0, 1)
    certain = torch.randint(length, (len(levels), 1), device=levels.device, generator=generator)
    return (draws < levels[:, None]).scatter_(1, certain, True)


def loss_weights(masked: Tensor) -> Tensor:
    """Weight of each token's CE, so that their sum is the mean over rows of the mean CE of a row's masked tokens.

    masked (N, T) bool, at least one in each row -> (N, T) float32: 1 / (N times the row's masked) of a masked token, 0
    of a visible one.
    """
    return masked.float() / (masked.sum(dim=1, keepdim=True) * len(masked))


@dataclass(frozen=True)
class BoundPart:
    """A part of the bound: `width` times the mean loss over levels uniform in [low, high]."""

    block: int
    low: float
    high: float
    width: float


def bound_parts(edges: Sequence[float]) -> tuple[BoundPart, ...]:
    """The parts whose sum is the whole bound: each block's interval, and the single steps at its ends.

    Of the steps, low = high: the last one, from t_min to 0, belongs to the last block; where t_max < 1, a first one,
    from 1 to t_max with every token masked, to block 0. The widths sum to 1.
    """
    parts = [BoundPart(block, low, high, high - low) for block, (high, low) in enumerate(pairwise(edges))]
    if edges[0] < 1.0:
        parts.insert(0, BoundPart(0, 1.0, 1.0, 1.0 - edges[0]))
    parts.append(BoundPart(len(edges) - 2, edges[-1], edges[-1], edges[-1]))
    return tuple(parts)


def unmasked(
    predict: Predict,
    tokens: Tensor,
    *,
    mask: int,
    edges: Sequence[float],
    steps: int,
    generator: torch.Generator,
    start: float = 1.0,
) -> Tensor:
    """The tokens (N, T) with every `mask` replaced, by ancestral sampling from t = start to 0 in `steps` steps.

    A step from t to s leaves a masked token masked with probability s/t, else draws it from the prediction of the block
    that owns t. The levels lie evenly from start to t_min; the last step goes to 0, so no mask is left. Visible tokens
    never change. A row of masks is sampled from `start` 1; where a part is given, start where that leaves it: at the
    share of tokens that are masked, so that each block sees about as many tokens as it was trained on.
    `tokens` and generator must be on one device. A step that uncovers nothing asks no network.
    """
    if steps < 1:
        raise ValueError(f"a text is sampled in at least one step, not {steps}")
    text = tokens.clone()
    first = min(max(start, edges[-1]), edges[0])
    levels = [first + step / max(1, steps - 1) * (edges[-1] - first) for step in range(steps)]
    levels[-1] = edges[-1] if steps > 1 else first
    share = max(start, first)  # of tokens masked before a step; the first one may come from above t_max
    for level, following in zip(levels, [*levels[1:], 0.0], strict=True):
        hidden = text == mask  # (N, T)
        draws = torch.rand(text.shape, device=text.device, generator=generator)
        uncovered = hidden & (draws >= following / share)
        share = following
        rows = uncovered.any(dim=1).nonzero()[:, 0]
        if not len(rows):
            continue
        place = uncovered[rows]
        chances = predict(block_of(level, edges), text[rows], place).float().softmax(dim=1)  # (K, V)
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
        text[rows] = text[rows].masked_scatter(place, drawn)
    return text

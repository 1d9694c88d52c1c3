"""The bound on the likelihood of held-out text, all contestants on the same masks. W windows, T tokens, P parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from workers.evaluation.entrants import Entrant, Part
from workers.evaluation.scores import Difference
from workers.method.masking import BoundPart, bound_parts, masked_positions, stratified_levels
from workers.models.mdm import MaskedTransformer

MASKS = 1024  # of an interval at least, where there are fewer windows than that
LEAST_DRAWS, MOST_DRAWS = 2, 32  # levels of one window in an interval
LOGITS = 1 << 24  # numbers of them at one time
_SEED = 20260911


@dataclass(frozen=True)
class Bounds:
    """`losses` by contestant: (W, P) float64, nats a token that a part adds to a window's bound."""

    parts: tuple[BoundPart, ...]
    losses: dict[str, Tensor]

    def whole(self, key: str) -> Tensor:
        """The bound of every window: (W,)."""
        return self.losses[key].sum(dim=1)

    def interval(self, key: str, block: int) -> Tensor:
        """What the interval of a block (a single step at the range's end included) adds to it: (W,)."""
        columns = [column for column, part in enumerate(self.parts) if part.block == block]
        return self.losses[key][:, columns].sum(dim=1)

    def less(self, ours: str, theirs: str, block: int | None = None) -> Difference:
        """ours - theirs, nats a token, with its paired standard error over the windows."""
        if block is None:
            return mean_of_windows(self.whole(ours) - self.whole(theirs))
        return mean_of_windows(self.interval(ours, block) - self.interval(theirs, block))


def mean_of_windows(values: Tensor) -> Difference:
    """Mean of (W,) and its standard error, windows taken as independent; of one window infinite."""
    if len(values) < 2:
        return Difference(float(values.mean()), math.inf)
    return Difference(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def bounds_of(
    entrants: Sequence[Entrant], windows: Tensor, edges: Sequence[float], *, batch_size: int, device: torch.device
) -> Bounds:
    """Every entrant's bound on windows (W, T) int64, of the CPU, over the intervals of `edges`.

    Levels and masks are drawn once, from a seed of their own, on the CPU: every entrant sees the same ones, on every
    device, so differences are those of the entrants. In each interval a window meets several levels, one in each of as
    many strata. An entrant of one part answers everywhere, one of several in its own intervals.
    """
    generator = torch.Generator().manual_seed(_SEED)
    count, length = windows.shape
    parts = bound_parts(edges)
    losses = {entrant.key: torch.zeros(count, len(parts), dtype=torch.float64) for entrant in entrants}
    for column, part in enumerate(parts):
        draws = _draws(count) if part.high > part.low else 1
        levels = stratified_levels(draws * count, (part.low, part.high), generator=generator).view(draws, count)
        for some in levels:
            shuffled = some[torch.randperm(count, generator=generator)]  # or the first windows met the lowest levels
            masked = masked_positions(shuffled, length, generator=generator)
            for start in range(0, count, batch_size):
                rows = slice(start, start + batch_size)
                tokens, places = windows[rows].to(device), masked[rows].to(device)
                for entrant in entrants:
                    found = _mean_cross_entropy(part_of(entrant, part.block), tokens, places)
                    losses[entrant.key][rows, column] += part.width / draws * found.cpu()
    return Bounds(parts, losses)


def part_of(entrant: Entrant, block: int) -> Part:
    """Who answers in the interval of a block."""
    return entrant.parts[block if len(entrant.parts) > 1 else 0]


def log_probabilities(part: Part, tokens: Tensor, places: Tensor) -> Tensor:
    """Of the K tokens at `places` (N, T) bool: (K, V), of several networks the mean of their probabilities."""
    members = [
        cast(MaskedTransformer, network).logits_at(tokens, places).float().log_softmax(dim=1)
        for network in part.networks
    ]
    return torch.stack(members).logsumexp(dim=0) - math.log(len(members))


def _mean_cross_entropy(part: Part, tokens: Tensor, places: Tensor) -> Tensor:
    """Mean over each row's masked tokens: tokens and places (N, T) -> (N,) float64."""
    members = [_cross_entropy(cast(MaskedTransformer, network), tokens, places) for network in part.networks]
    losses = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    losses[places] = math.log(len(members)) - torch.stack([-member for member in members]).logsumexp(dim=0)
    return losses.sum(dim=1) / places.sum(dim=1)


def _cross_entropy(network: MaskedTransformer, tokens: Tensor, places: Tensor) -> Tensor:
    """-ln p of the K masked tokens: (K,) float64. A large vocabulary's logits are never there all at once."""
    features = network.features(tokens.masked_fill(places, network.mask))[places]  # (K, D)
    targets = tokens[places]
    chunk = max(1, LOGITS // network.vocabulary)
    found = [
        (some @ network.table.T).float().log_softmax(dim=1).gather(1, truth[:, None])[:, 0]
        for some, truth in zip(features.split(chunk), targets.split(chunk), strict=True)  # pyright: ignore
    ]
    return -torch.cat(found).double()


def _draws(windows: int) -> int:
    return min(max(math.ceil(MASKS / windows), LEAST_DRAWS), MOST_DRAWS)

"""A bound on -ln p(token | past) from denoisers: the I-MMSE integral, which adds up over blocks.

For z = e(y) + sigma eps and gamma = 1 / sigma^2, Guo, Shamai & Verdu (2005) and, pointwise, Kong et al. (ICLR 2023,
arXiv 2302.03792, Eq. 8): -ln p(y) = 1/2 int_0^inf E_eps |e(y) - E[e | z]|^2 d gamma. The mean over texts of the same
integral with any other estimate of e(y) is larger. Cut at the edges:

    gamma < 1/sigma_max^2     the estimate of the past alone, which needs no z: a product, nothing is drawn
    a block's interval        in ln sigma: int E |e - D(z, sigma)|^2 / sigma^2 d ln sigma, one draw from each stratum
    gamma > 1/sigma_min^2     what z leaves to tell: at most the last block's -ln p(y | past, z) at sigma_min

Shapes: N rows, T tokens, V table, d code dimensions, B blocks. Nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.method.codes import expected_code
from workers.method.tokens import Answer, noised_tokens


@dataclass(frozen=True)
class Bound:
    """What every token's bound is made of; each an unbiased estimate."""

    above: Tensor  # (N, T): noise beyond sigma_max
    blocks: tuple[Tensor, ...]  # B times (N, T): each block's own interval
    below: Tensor  # (N, T): noise under sigma_min

    @property
    def total(self) -> Tensor:
        """Nats a token, (N, T)."""
        return self.above + torch.stack(self.blocks).sum(dim=0) + self.below


def likelihood_bound(
    answer: Answer,
    past: Tensor,
    tokens: Tensor,
    codes: Tensor,
    edges: Sequence[float],
    *,
    draws: int,
    generator: torch.Generator,
) -> Bound:
    """The bound of tokens (N, T), by `draws` noise levels in each block's interval.

    `past` (N, T, V): log-probabilities of each token from its past alone, by any network. `answer` gives a block's
    logits (N, T, V). codes (V, d); edges (B + 1) descend. ValueError without a draw.
    """
    if draws < 1:
        raise ValueError(f"an integral needs at least one draw, not {draws}")
    truth = codes[tokens]  # (N, T, d)
    above = (truth - expected_code(past, codes)).square().sum(dim=2) / (2 * edges[0] ** 2)
    blocks: list[Tensor] = []
    for block, (high, low) in enumerate(pairwise(edges)):
        width = math.log(high / low) / draws
        total = torch.zeros_like(above)
        for draw in range(draws):
            place = _spread(len(tokens), codes.device, generator)  # within its stratum
            sigma = low * torch.exp(width * (draw + place))  # (N,)
            z = noised_tokens(codes, tokens, sigma, generator=generator)
            log_p = F.log_softmax(answer(block, z, sigma).float(), dim=2)
            error = (truth - expected_code(log_p, codes)).square().sum(dim=2)
            total += width * error / sigma.square()[:, None]
        blocks.append(total)
    sigma = torch.full((len(tokens),), edges[-1], device=codes.device)
    z = noised_tokens(codes, tokens, sigma, generator=generator)
    log_p = F.log_softmax(answer(len(blocks) - 1, z, sigma).float(), dim=2)
    return Bound(above, tuple(blocks), -log_p.gather(2, tokens[..., None])[..., 0])


def _spread(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """(count,) numbers, each uniform in [0, 1), one from each of `count` equal parts: their mean hardly varies."""
    order = torch.randperm(count, device=device, generator=generator)
    return (order + torch.rand(count, device=device, generator=generator)) / count

"""Tokens as noised codes: noise, Bayes' rule along a sequence, and the two ways in which blocks answer for a token.

Shapes: N rows, T tokens, V size of the table, d code dimensions, B blocks. Codes have one length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.method.codes import expected_code
from workers.method.noise import NoiseDistribution
from workers.method.sampler import euler_step

Answer = Callable[[int, Tensor, Tensor], Tensor]  # block, z (N, T, d), sigma (N,) -> logits (N, T, V), readout included


def noised_tokens(codes: Tensor, tokens: Tensor, sigma: Tensor, *, generator: torch.Generator) -> Tensor:
    """z = e(x) + sigma eps: codes (V, d), tokens (N, T), sigma (N,) -> (N, T, d), float32."""
    clean = codes[tokens]
    eps = torch.randn(clean.shape, device=clean.device, generator=generator)
    return clean + sigma[:, None, None] * eps


def stratified_sigmas(
    count: int, interval: tuple[float, float], noise: NoiseDistribution, *, generator: torch.Generator
) -> Tensor:
    """sample_sigmas() with one draw from each of `count` equally likely parts of the interval, lowest first: (count,).

    Each level is distributed as there once its place is forgotten, and a batch covers the whole interval.
    """
    low, high = (noise.cdf(sigma) for sigma in interval)
    within = torch.rand(count, dtype=torch.float64, device=generator.device, generator=generator)
    mass = low + (high - low) * (torch.arange(count, device=generator.device) + within) / count
    normal = cast(Tensor, torch.special.ndtri(mass))  # pyright: ignore[reportUnknownMemberType]
    return (noise.p_mean + noise.p_std * normal).exp().clamp(*interval).float()


def log_prior(z: Tensor, codes: Tensor, sigma: Tensor) -> Tensor:
    """ln p(z | x) up to a constant of x: <z, e> / sigma^2. z (N, T, d), codes (V, d), sigma (N,) -> (N, T, V).

    Float32 under autocast too: it reaches 1 / sigma_min^2.
    """
    with torch.autocast(z.device.type, enabled=False):
        return (z.float() / sigma.float().square()[:, None, None]) @ codes.float().T


def posterior_mean(z: Tensor, codes: Tensor, sigma: Tensor) -> Tensor:
    """E[e | z] for equally likely tokens: (N, T, d)."""
    return expected_code(F.log_softmax(log_prior(z, codes, sigma), dim=2), codes)


@dataclass(frozen=True)
class Step:
    """One Euler step of a block."""

    block: int
    sigma: float
    sigma_next: float


def chain_steps(edges: Sequence[float], steps: int) -> tuple[Step, ...]:
    """At least `steps` Euler steps along the edges, as many for each block, at equal distances in ln sigma in it."""
    blocks = len(edges) - 1
    each = max(1, math.ceil(steps / blocks))

    def level(block: int, part: int) -> float:
        return edges[block] * (edges[block + 1] / edges[block]) ** (part / each)

    return tuple(
        Step(block, level(block, part), level(block, part + 1)) for block in range(blocks) for part in range(each)
    )


def soft_chain(answer: Answer, codes: Tensor, edges: Sequence[float], *, steps: int, rows: int, tokens: int) -> Tensor:
    """Log-probabilities (rows, tokens, V) after a walk from z = 0 at sigma_max down the edges.

    Each step moves z towards the mean code of the block's answer (the soft bridge). Nothing is drawn: what comes out
    is a function of the past alone, and so a proper predictive distribution. But one start has one end: the more steps,
    the closer even perfect blocks come to naming one token alone (a likely one, not always the likeliest), and the
    poorer is their likelihood. One step of one block is its own answer.
    """
    z = torch.zeros(rows, tokens, codes.shape[1], device=codes.device)
    log_p = torch.empty(0)
    for step in chain_steps(edges, steps):
        sigma = torch.full((rows,), step.sigma, device=codes.device)
        log_p = F.log_softmax(answer(step.block, z, sigma).float(), dim=2)
        z = euler_step(z, expected_code(log_p, codes), step.sigma, step.sigma_next)
    return log_p


def averaged(log_probabilities: Sequence[Tensor]) -> Tensor:
    """The normalised mean of log-probabilities (the blocks' geometric mean): B times (..., V) -> (..., V)."""
    return F.log_softmax(torch.stack(list(log_probabilities)).mean(dim=0), dim=-1)

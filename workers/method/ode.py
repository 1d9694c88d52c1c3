"""Sampling by the probability-flow ODE, from sigma_max down to 0: z of any shape, one denoiser a noise level.

N batch. z_sigma = y + sigma eps, so dz/dsigma = (z - D(z, sigma)) / sigma (EDM, arXiv 2206.00364, eq. 1, 3).
A noise level is answered by the block that owns it, in whichever part of a step it is asked for: assigned() decides.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from workers.method.partition import block_of
from workers.method.sampler import euler_step

Denoiser = Callable[[Tensor, Tensor], Tensor]  # z (N, ...), sigma (N,) -> D(z, sigma), z's shape
Field = Callable[[Tensor, float], Tensor]  # the same with one noise level for the whole batch
OdeSampler = Literal["euler", "heun", "dpm_solver_pp_2m", "ddim"]

RHO = 7.0  # EDM's spacing: small steps at small noise


@dataclass(frozen=True)
class OdeStep:
    """One step: z left at `sigma` and arrived at `sigma_next`."""

    sigma: float
    sigma_next: float  # 0 in the last step
    denoised: Tensor  # D(z, sigma): (N, ...)
    z: Tensor  # at sigma_next


def assigned(blocks: Sequence[Denoiser], edges: Sequence[float]) -> Field:
    """The denoiser that the blocks make together: each noise level is answered by the block that owns it.

    edges (B + 1) descending; one network for the whole range is a single block. ValueError where the two do not fit
    together, and from the field at a noise level outside the edges.
    """
    if len(edges) != len(blocks) + 1:
        raise ValueError(f"{len(blocks)} blocks need {len(blocks) + 1} edges, not {len(edges)}")

    def field(z: Tensor, sigma: float) -> Tensor:
        owner = blocks[block_of(sigma, edges)]
        return owner(z, torch.full((len(z),), sigma, device=z.device))

    return field


def mean_of(members: Sequence[Denoiser]) -> Denoiser:
    """An ensemble's denoiser: the mean of its members' answers (each estimates the same posterior mean)."""

    def denoise(z: Tensor, sigma: Tensor) -> Tensor:
        return torch.stack([member(z, sigma) for member in members]).mean(dim=0)

    return denoise


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance (arXiv 2207.12598, eq. 6, of denoisers): D_u + scale (D_c - D_u).

    scale 1 is the conditional denoiser itself, and asks the other one nothing.
    """
    if scale == 1.0:
        return conditional

    def denoise(z: Tensor, sigma: Tensor) -> Tensor:
        without = unconditional(z, sigma)
        return without + scale * (conditional(z, sigma) - without)

    return denoise


def noise_levels(
    sampler: OdeSampler, steps: int, *, sigma_min: float, sigma_max: float, sigma_data: float
) -> list[float]:
    """The noise levels that the steps leave from: sigma_max first, sigma_min last, descending; the last step goes to 0.

    EDM's spacing (eq. 5, rho = 7): equal steps of sigma^(1/rho). DDIM's, in its own variance-preserving parametrisation
    x = cos(a) y/sd + sin(a) eps, tan(a) = sigma/sd, sd = sigma_data: equal steps of the angle a, the cosine schedule.
    A single step leaves from sigma_max. ValueError where there is no step or no range.
    """
    if steps < 1 or not 0.0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"{steps} steps from {sigma_max:g} to {sigma_min:g} cannot be laid out")
    if steps == 1:
        return [sigma_max]
    if sampler == "ddim":
        high, low = math.atan(sigma_max / sigma_data), math.atan(sigma_min / sigma_data)
        inner = [sigma_data * math.tan(high + index / (steps - 1) * (low - high)) for index in range(1, steps - 1)]
    else:
        high, low = sigma_max ** (1 / RHO), sigma_min ** (1 / RHO)
        inner = [(high + index / (steps - 1) * (low - high)) ** RHO for index in range(1, steps - 1)]
    return [sigma_max, *inner, sigma_min]  # the ends exactly, so that the first and the last block own them


def solve(sampler: OdeSampler, field: Field, z: Tensor, levels: Sequence[float]) -> Iterator[OdeStep]:
    """The walk of z (N, ...) from levels[0] through all levels to 0, step by step.

    euler: one evaluation a step, first order. heun: a second one at the step's end (EDM, algorithm 1), second order.
    dpm_solver_pp_2m: one evaluation, second order by the previous answer (arXiv 2211.01095, algorithm 2).
    ddim (arXiv 2010.02502, eq. 12 without noise): one evaluation, first order; at equal levels its step *is* Euler's,
    since both go straight from z to D. What is its own is the spacing of the levels: noise_levels().
    The step to 0 lands on D, for every sampler.
    """
    before: OdeStep | None = None
    for sigma, sigma_next in pairwise((*levels, 0.0)):
        denoised = field(z, sigma)
        if sampler == "heun" and sigma_next > 0.0:
            z = _heun_step(field, z, denoised, sigma, sigma_next)
        elif sampler == "dpm_solver_pp_2m" and sigma_next > 0.0 and before is not None:
            z = _multistep(z, denoised, before, sigma, sigma_next)
        else:
            z = euler_step(z, denoised, sigma, sigma_next)
        before = OdeStep(sigma, sigma_next, denoised, z)
        yield before


def sample(sampler: OdeSampler, field: Field, z: Tensor, levels: Sequence[float]) -> Tensor:
    """Where the walk ends: samples, of z's shape. z is noise of standard deviation levels[0]."""
    for step in solve(sampler, field, z, levels):
        z = step.z
    return z


def _heun_step(field: Field, z: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Euler's step, then once more with the mean of the slopes at its two ends."""
    there = euler_step(z, denoised, sigma, sigma_next)
    slope = (z - denoised) / sigma
    slope_there = (there - field(there, sigma_next)) / sigma_next
    return z + (sigma_next - sigma) * (slope + slope_there) / 2


def _multistep(z: Tensor, denoised: Tensor, before: OdeStep, sigma: float, sigma_next: float) -> Tensor:
    """Euler's step towards D carried forward to the middle of the step, linearly in ln sigma."""
    step, step_before = math.log(sigma / sigma_next), math.log(before.sigma / sigma)
    ahead = denoised + step / (2 * step_before) * (denoised - before.denoised)
    return euler_step(z, ahead, sigma, sigma_next)

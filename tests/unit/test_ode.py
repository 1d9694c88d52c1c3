"""Samplers of the probability-flow ODE, held against closed forms."""

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.method.ode import (
    Denoiser,
    OdeSampler,
    assigned,
    guided,
    mean_of,
    noise_levels,
    sample,
    solve,
)
from workers.method.partition import block_of, equal_mass_edges
from workers.method.sampler import euler_step

SAMPLERS: tuple[OdeSampler, ...] = get_args(OdeSampler)
EDGES = equal_mass_edges(3, p_mean=-1.2, p_std=1.2, sigma_min=0.002, sigma_max=80.0)
MEAN, STD = 0.3, 0.5  # of a Gaussian target, whose ODE has a closed solution


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels_of(sampler: OdeSampler, steps: int) -> list[float]:
    return noise_levels(sampler, steps, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)


def gaussian(z: Tensor, sigma: float) -> Tensor:
    """E[y | z] for y ~ Normal(MEAN, STD^2)."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (z - MEAN)


def mixture(z: Tensor, sigma: float) -> Tensor:
    """E[y | z] for y = -1 or 1 with a spread of 0.1 around it."""
    variance = 0.1**2 + sigma**2
    towards = torch.tanh(z / variance)  # the posterior's mean of the sign
    return (0.1**2 * z + sigma**2 * towards) / variance


def recording(index: int, seen: list[tuple[int, float]]) -> Denoiser:
    def denoise(z: Tensor, sigma: Tensor) -> Tensor:
        seen.append((index, sigma[0].item()))
        return torch.zeros_like(z)

    return denoise


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(-4, 4), st.sampled_from(SAMPLERS), st.integers(1, 12))
def test_with_a_perfect_denoiser_every_step_lands_on_y_plus_the_new_noise(
    y: float, eps: float, sampler: OdeSampler, steps: int
) -> None:
    target, noise = torch.tensor([[y]], dtype=torch.float64), torch.tensor([[eps]], dtype=torch.float64)

    def perfect(z: Tensor, sigma: float) -> Tensor:
        return target

    for step in solve(sampler, perfect, target + 80.0 * noise, levels_of(sampler, steps)):
        torch.testing.assert_close(step.z, target + step.sigma_next * noise, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_levels_fall_from_sigma_max_to_sigma_min_and_no_further(sampler: OdeSampler, steps: int) -> None:
    levels = levels_of(sampler, steps)
    assert len(levels) == steps
    assert levels[0] == 80.0
    assert steps == 1 or levels[-1] == 0.002
    assert all(high > low for high, low in pairwise(levels))


def test_edm_levels_are_the_papers_and_ddims_are_equal_angles() -> None:
    torch.testing.assert_close(
        torch.tensor(levels_of("euler", 18)),
        (80 ** (1 / 7) + torch.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7,
        rtol=1e-4,
        atol=0,
    )
    angles = torch.tensor(levels_of("ddim", 18), dtype=torch.float64).div(0.5).atan()
    torch.testing.assert_close(angles.diff(), angles.diff()[:1].expand(17))


def test_no_step_and_no_range_are_refused() -> None:
    for steps, low, high in ((0, 0.1, 1.0), (5, 1.0, 1.0), (5, 0.0, 1.0)):
        with pytest.raises(ValueError, match="cannot be laid out"):
            noise_levels("euler", steps, sigma_min=low, sigma_max=high, sigma_data=0.5)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_evaluation_goes_to_the_block_that_owns_its_noise_level(sampler: OdeSampler) -> None:
    seen: list[tuple[int, float]] = []
    field = assigned([recording(index, seen) for index in range(3)], EDGES)
    levels = levels_of(sampler, 30)
    list(solve(sampler, field, torch.ones(2, 3), levels))
    asked = sorted([*levels, *levels[1:]] if sampler == "heun" else levels, reverse=True)
    assert [index for index, _ in seen] == [block_of(sigma, EDGES) for sigma in asked]
    assert [sigma for _, sigma in seen] == pytest.approx(asked)
    assert {index for index, _ in seen} == {0, 1, 2}


def test_a_step_from_an_edge_belongs_to_the_block_below_it() -> None:
    seen: list[tuple[int, float]] = []
    field = assigned([recording(index, seen) for index in range(3)], EDGES)
    for sigma in (EDGES[0], EDGES[1], math.nextafter(EDGES[1], 100), EDGES[2], EDGES[3]):
        field(torch.ones(1), sigma)
    assert [index for index, _ in seen] == [0, 1, 0, 2, 2]
    with pytest.raises(ValueError, match="outside"):
        field(torch.ones(1), 81.0)
    with pytest.raises(ValueError, match="4 edges"):
        assigned([recording(0, seen)] * 3, EDGES[:3])


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpm_solver_pp_2m", 2)])
def test_the_error_falls_with_the_samplers_order(sampler: OdeSampler, order: int) -> None:
    """Away from 0, where the step is no more than a limit: down to 0.05 in n and 2 n steps, against the exact flow."""

    def slide(steps: int) -> float:
        z = 10.0 * torch.linspace(-2, 2, 9, dtype=torch.float64)
        levels = noise_levels("euler", steps + 1, sigma_min=0.05, sigma_max=10.0, sigma_data=0.5)
        *_, before_last, _ = solve(sampler, gaussian, z, levels)
        truth = MEAN + math.sqrt((STD**2 + 0.05**2) / (STD**2 + 10.0**2)) * (z - MEAN)
        return float((before_last.z - truth).abs().max())

    slope = math.log2(slide(80) / slide(160))
    assert slope == pytest.approx(order, abs=0.25)


def test_second_order_samplers_beat_euler_on_two_modes() -> None:
    fine = noise_levels("heun", 2000, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    z = 80.0 * torch.randn(200, generator=generator(), dtype=torch.float64)
    truth = sample("heun", mixture, z, fine)
    errors = {name: float((sample(name, mixture, z, levels_of(name, 24)) - truth).abs().mean()) for name in SAMPLERS}
    assert errors["heun"] < 0.3 * errors["euler"]
    assert errors["dpm_solver_pp_2m"] < 0.5 * errors["euler"]
    assert truth.abs().mean().item() == pytest.approx(1.0, abs=0.05)


@settings(deadline=None)
@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0.01, 50), st.floats(0.05, 0.95))
def test_ddims_rotation_is_eulers_step(z: float, denoised: float, sigma: float, shrink: float) -> None:
    """DDIM as published, in x = cos(a) y + sin(a) eps; carried back to z = x / cos(a) it is Euler's step."""
    angle, angle_next = math.atan(sigma), math.atan(sigma * shrink)
    x = z * math.cos(angle)
    noise = (x - math.cos(angle) * denoised) / math.sin(angle)
    rotated = math.cos(angle_next) * denoised + math.sin(angle_next) * noise
    ours = euler_step(torch.tensor(z, dtype=torch.float64), torch.tensor(denoised), sigma, sigma * shrink)
    assert ours.item() == pytest.approx(rotated / math.cos(angle_next), abs=1e-5)


def test_blocks_in_the_wrong_order_show_in_what_they_generate() -> None:
    """Each block the exact denoiser in its own interval, and out of it as a network is: what it learnt nearest by."""

    def block(index: int) -> Denoiser:
        def denoise(z: Tensor, sigma: Tensor) -> Tensor:
            return gaussian(z, min(max(sigma[0].item(), EDGES[index + 1]), EDGES[index]))

        return denoise

    blocks = [block(index) for index in range(3)]
    z = 80.0 * torch.randn(500, generator=generator())
    levels = levels_of("euler", 50)
    right, wrong = (sample("euler", assigned(order, EDGES), z, levels) for order in (blocks, blocks[::-1]))
    assert right.mean().item() == pytest.approx(MEAN, abs=0.1)
    assert right.std().item() == pytest.approx(STD, rel=0.15)
    assert wrong.std().item() > 3 * STD


def test_guidance_of_scale_one_is_the_conditional_denoiser_and_asks_no_other() -> None:
    def conditional(z: Tensor, sigma: Tensor) -> Tensor:
        return z + 1

    def unconditional(z: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError("asked")

    z, sigma = torch.randn(4, 2), torch.ones(4)
    assert torch.equal(guided(conditional, unconditional, 1.0)(z, sigma), conditional(z, sigma))


def test_guidance_goes_beyond_the_conditional_away_from_the_unconditional() -> None:
    def constant(value: float) -> Denoiser:
        return lambda z, sigma: torch.full_like(z, value)

    z, sigma = torch.randn(4, 2), torch.ones(4)
    answers = [guided(constant(3.0), constant(2.0), scale)(z, sigma)[0, 0].item() for scale in (0.0, 1.0, 2.5)]
    assert answers == pytest.approx([2.0, 3.0, 4.5])
    assert mean_of([constant(3.0), constant(2.0)])(z, sigma)[0, 0].item() == pytest.approx(2.5)

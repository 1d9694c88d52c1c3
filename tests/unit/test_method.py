"""The mathematics, held against independent computations."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workers.method.codes import CodeFamily, code_norm, expected_code, log_posterior, target_codes
from workers.method.noise import NoiseDistribution, sample_sigmas
from workers.method.objective import edm_target, edm_weight, label_cross_entropy, noised_codes
from workers.method.partition import equal_mass_edges
from workers.method.precondition import c_in, c_noise, c_out, c_skip
from workers.method.sampler import bridged, chain, euler_step, initial_z, product_of_experts, walk

FAMILIES: list[tuple[CodeFamily, int]] = [("simplex", 6), ("orthonormal", 7), ("unit_norm", 20)]
EDGES = equal_mass_edges(3, p_mean=1.4, p_std=1.2, sigma_min=0.002, sigma_max=80.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def simplex(classes: int) -> Tensor:
    return target_codes("simplex", classes, classes - 1, sigma_data=0.5, seed=0)


@given(st.floats(0.01, 50.0), st.floats(-50.0, 50.0), st.floats(0.02, 80.0), st.floats(0.0, 1.0))
def test_with_a_perfect_denoiser_euler_lands_on_y_plus_the_new_noise(
    y: float, eps: float, sigma: float, shrink: float
) -> None:
    target, noise = torch.tensor(y, dtype=torch.float64), torch.tensor(eps, dtype=torch.float64)
    landed = euler_step(target + sigma * noise, target, sigma, sigma * shrink)
    assert landed.item() == pytest.approx(y + sigma * shrink * eps, abs=1e-6 + 1e-9 * abs(eps) * sigma)


def test_a_chain_of_perfect_denoisers_ends_at_the_code() -> None:
    codes = simplex(5)
    labels = torch.arange(5)

    def perfect(images: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        return 1e4 * torch.eye(5)[labels]

    z = codes[labels] + EDGES[0] * torch.randn(5, 4, generator=generator())
    *_, last = walk([perfect] * 3, torch.zeros(5, 1), codes, EDGES, z)
    landed = euler_step(last.z, codes[labels], last.sigma, EDGES[-1])
    torch.testing.assert_close(landed, codes[labels], atol=0.01, rtol=0)


def test_the_chain_hands_each_block_its_own_upper_edge_and_the_last_answer_counts() -> None:
    codes, seen = simplex(4), list[tuple[float, float]]()

    def block(images: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        seen.append((sigma[0].item(), z.abs().max().item()))
        return torch.full((2, 4), float(len(seen)))

    logits = chain([block] * 3, torch.zeros(2, 1), codes, EDGES, init="zero")
    assert [sigma for sigma, _ in seen] == pytest.approx(EDGES[:3])
    assert seen[0][1] == 0.0  # zero init: the mode of the prior
    assert [answer[0, 0].item() for answer in logits] == [1.0, 2.0, 3.0]


def test_a_hard_bridge_hands_on_the_likeliest_code_and_a_soft_one_the_mean() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    logits = torch.tensor([[2.0, 1.0]])
    assert torch.equal(bridged(logits, codes, "hard"), codes[:1])
    assert torch.allclose(bridged(logits, codes, "soft"), logits.softmax(dim=1))


def test_noise_init_samples_the_prior_and_refuses_to_do_so_unseeded() -> None:
    codes = simplex(4)
    z = initial_z("noise", 4000, codes, 80.0, generator=generator())
    assert z.std().item() == pytest.approx(80.0, rel=0.05)
    with pytest.raises(ValueError, match="generator"):
        initial_z("noise", 4, codes, 80.0)


def test_product_of_experts_multiplies_what_each_block_says_alone() -> None:
    said = [torch.randn(6, 4, generator=generator(seed)) for seed in range(3)]
    blocks = [lambda images, z, sigma, logits=logits: logits for logits in said]
    answer = product_of_experts(blocks, torch.zeros(6, 1), simplex(4), EDGES)
    product = torch.stack([logits.softmax(1) for logits in said]).prod(0)
    torch.testing.assert_close(answer.exp(), product / product.sum(1, keepdim=True))


@pytest.mark.parametrize(("family", "dim"), FAMILIES)
def test_codes_are_a_function_of_their_seed_and_have_one_norm(family: CodeFamily, dim: int) -> None:
    codes = target_codes(family, 7, dim, sigma_data=0.5, seed=3)
    assert codes.shape == (7, dim)
    torch.testing.assert_close(codes.norm(dim=1), torch.full((7,), code_norm(family, dim, 0.5)))
    assert torch.equal(codes, target_codes(family, 7, dim, sigma_data=0.5, seed=3))
    assert not torch.allclose(codes, target_codes(family, 7, dim, sigma_data=0.5, seed=4))


@pytest.mark.parametrize(("family", "dim"), FAMILIES[:2])
def test_sigma_data_is_true_of_the_codes_in_every_direction(family: CodeFamily, dim: int) -> None:
    codes = target_codes(family, 7, dim, sigma_data=0.5, seed=0)
    second_moment = codes.T @ codes / 7
    torch.testing.assert_close(second_moment, 0.25 * torch.eye(dim), atol=1e-6, rtol=0)


def test_simplex_codes_are_centred_and_equidistant() -> None:
    codes = simplex(10)
    distances = torch.pdist(codes)
    torch.testing.assert_close(codes.sum(0), torch.zeros(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(distances, distances[:1].expand(45))


@pytest.mark.parametrize(("family", "dim"), [("simplex", 7), ("orthonormal", 6), ("simplex", 0)])
def test_codes_of_a_dimension_their_family_has_not_are_refused(family: CodeFamily, dim: int) -> None:
    with pytest.raises(ValueError, match="dimensions"):
        target_codes(family, 7, dim, sigma_data=0.5, seed=0)


def test_the_posterior_is_bayes_rule_on_gaussian_likelihoods() -> None:
    codes, sigma = simplex(5), torch.tensor([0.7, 2.0, 11.0])
    z = torch.randn(3, 4, generator=generator())
    likelihood = torch.stack(
        [torch.exp(-((z - code) ** 2).sum(1) / (2 * sigma**2)) for code in codes], dim=1
    )  # (N, K), straight from the density
    posterior = log_posterior(z, codes, sigma).exp()
    torch.testing.assert_close(posterior, likelihood / likelihood.sum(1, keepdim=True))
    torch.testing.assert_close(expected_code(posterior.log(), codes), posterior @ codes)


def test_the_posterior_stays_finite_at_the_smallest_noise() -> None:
    codes = simplex(10)
    posterior = log_posterior(codes, codes, torch.full((10,), 0.002))
    assert torch.isfinite(posterior).all()
    assert torch.equal(posterior.argmax(1), torch.arange(10))


@pytest.mark.parametrize("interval", [(0.002, 80.0), (2.0, 5.0), (20.0, 80.0), (0.002, 0.01)])
def test_sampled_sigmas_follow_the_log_normal_cut_to_the_interval(interval: tuple[float, float]) -> None:
    noise = NoiseDistribution(p_mean=0.5, p_std=1.2)
    sigma = sample_sigmas(20_000, interval, noise, generator=generator())
    assert sigma.dtype == torch.float32
    assert interval[0] * (1 - 1e-6) <= sigma.min().item() <= sigma.max().item() <= interval[1] * (1 + 1e-6)
    # Kolmogorov-Smirnov against the truncated distribution from torch's own log-normal.
    log_normal = torch.distributions.LogNormal(torch.tensor(0.5), torch.tensor(1.2))
    low, high = (log_normal.cdf(torch.tensor(edge)) for edge in interval)
    expected = (log_normal.cdf(sigma.sort().values) - low) / (high - low)
    assert (expected - torch.linspace(0, 1, 20_000)).abs().max().item() < 0.02


def test_sampling_reaches_up_to_sigma_max() -> None:
    noise = NoiseDistribution(p_mean=1.4, p_std=1.2)
    assert sample_sigmas(50_000, (20.0, 80.0), noise, generator=generator()).max().item() > 78.0


def test_preconditioning_gives_unit_variance_in_and_passes_z_on_where_noise_is_small() -> None:
    sigma = torch.tensor([0.01, 0.5, 30.0])
    data, noise = 0.5 * torch.randn(100_000, 1, generator=generator()), torch.randn(100_000, 1, generator=generator(1))
    z = data + sigma * noise
    torch.testing.assert_close((c_in(sigma, 0.5) * z).std(0), torch.ones(3), atol=0.01, rtol=0)
    # The network's target (y - c_skip z) / c_out has unit variance too (EDM, appendix B.6).
    target = (data - c_skip(sigma, 0.5) * z) / c_out(sigma, 0.5)
    torch.testing.assert_close(target.std(0), torch.ones(3), atol=0.01, rtol=0)
    rows, noisy = (part.expand(-1, 3).T[:, :, None, None] for part in (data, z))  # one of each noise level
    torch.testing.assert_close(edm_target(rows, noisy, sigma, 0.5)[:, :, 0, 0], target.T)
    torch.testing.assert_close(c_noise(sigma), torch.log(sigma) / 4)
    torch.testing.assert_close(edm_weight(sigma, 0.5) * c_out(sigma, 0.5) ** 2, torch.ones(3))


def test_noised_codes_lie_sigma_away_from_their_own_code() -> None:
    codes, labels = simplex(4), torch.arange(4).repeat(5000)
    sigma = torch.tensor([0.1, 1.0, 5.0, 40.0]).repeat(5000)
    z = noised_codes(codes, labels, sigma, generator=generator())
    spread = ((z - codes[labels]) / sigma[:, None]).std(0)
    torch.testing.assert_close(spread, torch.ones(3), atol=0.03, rtol=0)


def test_no_loss_is_broadcast() -> None:
    with pytest.raises(ValueError, match="belong together"):
        label_cross_entropy(torch.zeros(4, 3), torch.zeros(4, 1, dtype=torch.int64))
    assert label_cross_entropy(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)).item() == pytest.approx(
        math.log(3)
    )


def test_edges_used_by_these_tests_descend() -> None:
    assert all(high > low for high, low in pairwise(EDGES))

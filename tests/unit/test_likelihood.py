import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workers.method.codes import target_codes
from workers.method.likelihood import Bound, likelihood_bound
from workers.method.noise import NoiseDistribution
from workers.method.tokens import (
    Answer,
    averaged,
    chain_steps,
    log_prior,
    noised_tokens,
    posterior_mean,
    soft_chain,
    stratified_sigmas,
)

SIZE, DIM = 11, 6  # more codes than dimensions: they are not at right angles
CODES = target_codes("unit_norm", SIZE, DIM, sigma_data=0.5, seed=0)
EDGES = (8.0, 0.9, 0.5, 0.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_text(rows: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """ln p (rows, tokens, V) of an invented plain model, and tokens drawn from it."""
    log_p = F.log_softmax(1.5 * torch.randn(rows, tokens, SIZE, generator=generator(seed)), dim=2)
    drawn = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator(seed + 1))
    return log_p, drawn.view(rows, tokens)


def bayes(log_p: Tensor) -> Answer:
    """The perfect denoiser of a plain model: p(y | past, z) ~ p(y | past) p(z | y)."""
    return lambda _block, z, sigma: log_p + log_prior(z, CODES, sigma)


def bound_of(log_p: Tensor, tokens: Tensor, answer: Answer, *, draws: int, seed: int = 2) -> Bound:
    return likelihood_bound(answer, log_p, tokens, CODES, EDGES, draws=draws, generator=generator(seed))


def test_a_plain_model_wrapped_as_a_denoiser_is_bounded_by_its_own_likelihood_exactly() -> None:
    log_p, tokens = some_text(rows=2_000, tokens=4)
    bound = bound_of(log_p, tokens, bayes(log_p), draws=16)
    exact = -log_p.gather(2, tokens[..., None])[..., 0]
    # Token by token the two differ by what was drawn alone: the identity is pointwise.
    apart = bound.total - exact
    error = float(apart.mean(dim=1).std() / len(tokens) ** 0.5)
    assert error < 0.01
    assert abs(float(apart.mean())) < 4 * error
    assert float(exact.mean()) > 1.0
    rare = exact > exact.quantile(0.9)
    assert float(apart[rare].mean()) == pytest.approx(0.0, abs=0.12)


def test_what_the_blocks_contribute_adds_up_wherever_the_edges_are() -> None:
    log_p, tokens = some_text(rows=2_000, tokens=4)
    for edges in ((8.0, 0.1), (8.0, 2.0, 0.4, 0.3, 0.1)):
        bound = likelihood_bound(bayes(log_p), log_p, tokens, CODES, edges, draws=24, generator=generator())
        exact = float(-log_p.gather(2, tokens[..., None]).mean())
        assert float(bound.total.mean()) == pytest.approx(exact, abs=0.03)
        assert all(float(block.mean()) >= 0 for block in bound.blocks)


@pytest.mark.parametrize("fault", ["too sure", "ignorant of z", "ignorant of the past"])
def test_a_worse_denoiser_has_a_worse_bound(fault: str) -> None:
    log_p, tokens = some_text(rows=1_000, tokens=4)

    def answer(block: int, z: Tensor, sigma: Tensor) -> Tensor:
        match fault:
            case "too sure":
                return 2.0 * bayes(log_p)(block, z, sigma)
            case "ignorant of z":
                return log_p + 0.3 * log_prior(z, CODES, sigma)
            case _:
                return log_prior(z, CODES, sigma)

    best = bound_of(log_p, tokens, bayes(log_p), draws=8).total.mean(dim=1)
    worse = bound_of(log_p, tokens, answer, draws=8).total.mean(dim=1)
    difference = worse - best
    assert float(difference.mean()) > 4 * float(difference.std() / len(tokens) ** 0.5)


def test_an_integral_without_draws_is_refused() -> None:
    log_p, tokens = some_text(2, 3)
    with pytest.raises(ValueError, match="at least one draw"):
        bound_of(log_p, tokens, bayes(log_p), draws=0)


def test_tokens_are_noised_around_their_own_codes() -> None:
    tokens = torch.tensor([[3, 1], [0, 10]])
    z = noised_tokens(CODES, tokens, torch.tensor([1e-6, 2.0]), generator=generator())
    torch.testing.assert_close(z[0], CODES[tokens[0]], rtol=0, atol=1e-4)
    many = noised_tokens(CODES, torch.full((4_000, 1), 5), torch.full((4_000,), 2.0), generator=generator())
    assert float((many[:, 0] - CODES[5]).std()) == pytest.approx(2.0, rel=0.03)


def test_the_posterior_mean_is_the_code_itself_at_low_noise_and_the_middle_in_pure_noise() -> None:
    tokens = torch.arange(SIZE)[None]
    z = CODES[tokens]
    torch.testing.assert_close(posterior_mean(z, CODES, torch.tensor([0.03])), z, rtol=0, atol=1e-4)
    middle = CODES.mean(dim=0).expand_as(z)
    torch.testing.assert_close(posterior_mean(z, CODES, torch.tensor([1e3])), middle, rtol=0, atol=1e-4)


def test_stratified_levels_follow_the_log_normal_and_cover_the_interval() -> None:
    noise, interval = NoiseDistribution(-0.5, 0.8), (0.2, 3.0)
    sigma = stratified_sigmas(1_000, interval, noise, generator=generator())
    low, high = noise.cdf(0.2), noise.cdf(3.0)
    for place, level in enumerate(sigma.tolist()):
        part = (noise.cdf(level) - low) / (high - low) * 1_000
        assert place - 1e-2 <= part <= place + 1 + 1e-2
    assert interval[0] <= float(sigma.min()) <= float(sigma.max()) <= interval[1]


@pytest.mark.parametrize(("steps", "blocks"), [(1, 3), (16, 3), (7, 2), (4, 4)])
def test_a_chain_walks_every_block_from_its_upper_edge_to_its_lower_one(steps: int, blocks: int) -> None:
    edges = tuple(8.0 * 0.5**place for place in range(blocks + 1))
    walked = chain_steps(edges, steps)
    assert len(walked) == blocks * math.ceil(steps / blocks)
    assert walked[0].sigma == edges[0]
    assert walked[-1].sigma_next == pytest.approx(edges[-1])
    for before, after in pairwise(walked):
        assert before.sigma_next == pytest.approx(after.sigma)
    for step in walked:
        assert edges[step.block + 1] <= step.sigma_next < step.sigma <= edges[step.block] * (1 + 1e-9)


def test_a_soft_chain_is_a_function_of_the_past_and_ends_at_what_a_sure_block_says() -> None:
    sure = torch.full((2, 3, SIZE), -20.0)
    sure[..., 4] = 20.0
    walked = [soft_chain(lambda *_: sure, CODES, EDGES, steps=6, rows=2, tokens=3) for _ in range(2)]
    torch.testing.assert_close(walked[0], walked[1], rtol=0, atol=0)
    torch.testing.assert_close(walked[0], F.log_softmax(sure, dim=2))

    seen: list[float] = []

    def watching(_block: int, z: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float((z - CODES[4]).norm(dim=2).max() / sigma[0]))
        return sure

    soft_chain(watching, CODES, EDGES, steps=9, rows=2, tokens=3)
    assert max(seen) == pytest.approx(seen[0], rel=1e-4)  # z - e shrinks as sigma does: z stays on its ray


def test_a_perfect_chain_of_one_step_is_the_distribution_itself_and_one_of_many_steps_a_single_token() -> None:
    log_p, _ = some_text(3, 4)

    def walked(edges: tuple[float, ...], steps: int) -> Tensor:
        return soft_chain(bayes(log_p), CODES, edges, steps=steps, rows=3, tokens=4)

    torch.testing.assert_close(walked((8.0, 0.1), 1), log_p)
    many = walked(EDGES, 120)
    assert float(many.exp().amax(dim=2).mean()) > 0.95 > float(log_p.exp().amax(dim=2).mean())


def test_averaged_log_probabilities_are_those_of_a_distribution_between_the_two() -> None:
    one, other = (F.log_softmax(torch.randn(2, 3, SIZE, generator=generator(seed)), dim=2) for seed in (0, 1))
    both = averaged([one, other])
    torch.testing.assert_close(both.exp().sum(dim=2), torch.ones(2, 3))
    torch.testing.assert_close(averaged([one, one]), one)
    gap = both - (one + other) / 2  # the same constant for every token
    torch.testing.assert_close(gap, gap[..., :1].expand_as(gap))

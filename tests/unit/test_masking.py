import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from workers.method.chunked import chunked_cross_entropy
from workers.method.masking import (
    bound_parts,
    loss_weights,
    masked_positions,
    stratified_levels,
    unmasked,
)
from workers.method.partition import masking_edges

MASK = 4  # of the vocabulary 0..3
UNIGRAM = torch.tensor([0.5, 0.25, 0.2, 0.05])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("interval", [(1 / 128, 1 / 3), (0.5, 1.0)])
@pytest.mark.parametrize("count", [1, 7, 64])
def test_stratified_levels_cover_their_interval_one_in_each_stratum(count: int, interval: tuple[float, float]) -> None:
    low, high = interval
    for seed in range(20):
        levels = stratified_levels(count, interval, generator=seeded(seed)).double()
        assert levels.shape == (count,)
        strata = ((levels - low) / (high - low) * count + 1e-5).floor().clamp(max=count - 1)
        assert strata.tolist() == list(range(count))


def test_a_level_is_uniform_in_its_interval_over_many_batches() -> None:
    firsts = torch.stack([stratified_levels(4, (0.2, 1.0), generator=seeded(seed))[0] for seed in range(4000)])
    assert firsts.mean().item() == pytest.approx(0.3, abs=0.005)
    assert firsts.min().item() < 0.21
    assert firsts.max().item() > 0.39


def test_one_token_is_masked_for_certain_and_the_others_with_the_probability_of_their_row() -> None:
    levels = torch.tensor([0.001, 0.3, 1.0]).repeat_interleave(2000)
    masked = masked_positions(levels, 20, generator=seeded())
    assert masked.any(dim=1).all()
    shares = masked.view(3, 2000, 20).float().mean(dim=(1, 2))
    assert shares.tolist() == pytest.approx([0.05 + 0.95 * 0.001, 0.05 + 0.95 * 0.3, 1.0], abs=0.005)
    assert masked[:2000].float().mean(dim=0).tolist() == pytest.approx([0.051] * 20, abs=0.02)


def test_the_loss_is_the_mean_over_rows_of_the_mean_cross_entropy_of_the_masked_tokens_alone() -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(12, 5, requires_grad=True), torch.randn(4, 5)
    targets = torch.randint(0, 4, (3, 4))
    masked = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    loss = chunked_cross_entropy(hidden, table, targets.flatten(), loss_weights(masked).flatten(), chunk=None)
    losses = F.cross_entropy(hidden @ table.T, targets.flatten(), reduction="none").view(3, 4)
    torch.testing.assert_close(loss, torch.stack([losses[row][masked[row]].mean() for row in range(3)]).mean())
    (onto_hidden,) = torch.autograd.grad(loss, hidden)
    assert torch.equal(onto_hidden.view(3, 4, 5).any(dim=2), masked), "a visible token taught something"


@pytest.mark.parametrize("level", [0.05, 0.25, 0.9])
def test_the_loss_is_in_expectation_the_one_weighted_by_one_over_t(level: float) -> None:
    """Summed over every set of masked tokens, for a prediction whose cross-entropy depends on the whole set."""
    length = 6
    losses = torch.rand(2**length, length, dtype=torch.float64, generator=seeded())
    weighted = estimated = 0.0
    for number in range(1, 2**length):
        masked = torch.tensor([bool(number >> place & 1) for place in range(length)])
        count = int(masked.sum())
        chance = level**count * (1 - level) ** (length - count)  # every token with probability t
        weighted += chance / level * float(losses[number][masked].sum()) / length
        certain_chance = count / length * level ** (count - 1) * (1 - level) ** (length - count)
        estimated += certain_chance * float((loss_weights(masked[None])[0] * losses[number]).sum())
    assert estimated == pytest.approx(weighted, rel=1e-6)


def test_sets_of_masked_tokens_come_as_often_as_the_expectation_says() -> None:
    length, level, rows = 4, 0.3, 60_000
    masked = masked_positions(torch.full((rows,), level), length, generator=seeded())
    numbers = (masked.long() << torch.arange(length)).sum(dim=1).bincount(minlength=2**length) / rows
    for number in range(2**length):
        count = number.bit_count()
        chance = count / length * level ** (count - 1) * (1 - level) ** (length - count) if count else 0.0
        assert numbers[number].item() == pytest.approx(chance, abs=0.006)


def test_weights_of_another_shape_than_the_losses_are_refused() -> None:
    hidden, table, targets = torch.randn(6, 3), torch.randn(4, 3), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match="would broadcast"):
        chunked_cross_entropy(hidden, table, targets, torch.ones(6, 1), chunk=None)
    with pytest.raises(ValueError, match="do not belong together"):
        chunked_cross_entropy(hidden, torch.randn(4, 2), targets, torch.ones(6), chunk=2)


@pytest.mark.parametrize("chunk", [1, 5, 64])
@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_chunks_have_the_loss_and_the_gradients_of_the_whole(chunk: int, share: float) -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(23, 6), torch.randn(11, 6)
    targets = torch.randint(0, 11, (23,))
    weights = torch.rand(23) * (torch.rand(23) < share)
    found: list[tuple[Tensor, ...]] = []
    for size in (None, chunk):
        inputs = (hidden.clone().requires_grad_(), table.clone().requires_grad_())
        loss = 3.0 * chunked_cross_entropy(*inputs, targets, weights, chunk=size)
        found.append((loss, *torch.autograd.grad(loss, inputs)))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole)
    with torch.no_grad():
        torch.testing.assert_close(
            3.0 * chunked_cross_entropy(hidden, table, targets, weights, chunk=chunk), found[0][0]
        )


def test_chunks_agree_with_the_whole_under_autocast_to_its_rounding() -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(64, 16), torch.randn(30, 16)
    targets, weights = torch.randint(0, 30, (64,)), torch.full((64,), 1 / 64)
    found: list[tuple[Tensor, ...]] = []
    for size in (None, 10):
        inputs = (hidden.clone().requires_grad_(), table.clone().requires_grad_())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = chunked_cross_entropy(*inputs, targets, weights, chunk=size)
        found.append((loss, *torch.autograd.grad(loss, inputs)))
    for whole, parts in zip(*found, strict=True):
        assert parts.dtype == whole.dtype == torch.float32
        torch.testing.assert_close(parts, whole, atol=2e-3, rtol=2e-2)


def test_no_more_tokens_than_a_chunk_have_logits_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    linear = F.linear

    def watched(hidden: Tensor, table: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return linear(hidden, table)

    monkeypatch.setattr(F, "linear", watched)
    hidden, table = torch.randn(50, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    weights = (torch.arange(50) % 2).float()
    chunked_cross_entropy(hidden, table, torch.zeros(50, dtype=torch.int64), weights, chunk=8).backward()
    assert sum(sizes) == 25, "tokens of weight 0 were asked"
    assert max(sizes) == 8


def bound(
    edges: tuple[float, ...], text: Tensor, log_p: Callable[[Tensor, float], Tensor], draws: int = 4
) -> tuple[float, list[float]]:
    """The bound in nats a token, and its parts; log_p(tokens, level) -> (N, T, V)."""
    generator = seeded(1)
    rows, length = text.shape
    parts: list[float] = []
    for part in bound_parts(edges):
        levels = stratified_levels(rows * draws, (part.low, part.high), generator=generator)
        total = 0.0
        for some in levels.view(rows, draws).T:
            masked = masked_positions(some, length, generator=generator)
            answers = log_p(text.masked_fill(masked, MASK), float(some.mean()))
            losses = -answers.gather(2, text[:, :, None])[:, :, 0]
            total += float((loss_weights(masked) * losses).sum()) / draws
        parts.append(part.width * total)
    return sum(parts), parts


def iid_text(rows: int = 400, length: int = 64) -> Tensor:
    return torch.multinomial(UNIGRAM, rows * length, replacement=True, generator=seeded(2)).view(rows, length)


def true_unigram(tokens: Tensor, _level: float) -> Tensor:
    return UNIGRAM.log().expand(*tokens.shape, -1)


@pytest.mark.parametrize("t_max", [1.0, 0.8])
@pytest.mark.parametrize("count", [1, 3])
def test_the_bound_of_the_exact_model_of_independent_tokens_is_their_entropy(count: int, t_max: float) -> None:
    edges = masking_edges(count, t_min=1 / 64, t_max=t_max)
    value, parts = bound(edges, iid_text(), true_unigram)
    entropy = -float((UNIGRAM * UNIGRAM.log()).sum())
    assert value == pytest.approx(entropy, rel=0.01)
    widths = [part.width for part in bound_parts(edges)]
    assert math.fsum(widths) == pytest.approx(1.0)
    # The last step, from t_min to 0, is the rest: t_min times the cross-entropy of a masked token.
    assert parts[-1] == pytest.approx(entropy / 64, rel=0.15)


def test_the_bound_of_a_worse_model_is_its_cross_entropy_and_not_less() -> None:
    guess = torch.full((4,), -math.log(4))
    value, _ = bound(
        masking_edges(2, t_min=1 / 64, t_max=1.0), iid_text(), lambda tokens, _: guess.expand(*tokens.shape, 4)
    )
    assert value == pytest.approx(math.log(4), rel=0.01)


def test_the_bound_of_one_network_is_the_sum_over_any_number_of_blocks() -> None:
    def worse_where_more_is_masked(tokens: Tensor, _level: float) -> Tensor:
        hidden = (tokens == MASK).float().mean(dim=1)[:, None, None]
        return (UNIGRAM.log() * (1 - hidden)).log_softmax(dim=-1).expand(*tokens.shape, 4)

    values = [
        bound(masking_edges(count, t_min=1 / 64, t_max=1.0), iid_text(), worse_where_more_is_masked)[0]
        for count in (1, 2, 5)
    ]
    assert values[1] == pytest.approx(values[0], rel=0.01)
    assert values[2] == pytest.approx(values[0], rel=0.01)
    assert values[0] > -float((UNIGRAM * UNIGRAM.log()).sum()) * 1.02


def test_the_parts_lie_end_to_end_from_one_to_nothing() -> None:
    parts = bound_parts((0.9, 0.5, 0.1))
    assert [(part.block, part.low, part.high) for part in parts] == [
        (0, 1.0, 1.0),
        (0, 0.5, 0.9),
        (1, 0.1, 0.5),
        (1, 0.1, 0.1),
    ]
    assert [part.width for part in parts] == pytest.approx([0.1, 0.4, 0.4, 0.1])


@pytest.mark.parametrize("steps", [1, 2, 7, 300])
@pytest.mark.parametrize("t_max", [1.0, 0.7])
def test_the_sampler_leaves_no_mask_and_never_changes_a_visible_token(steps: int, t_max: float) -> None:
    tokens = torch.full((6, 32), MASK)
    tokens[:, 8:20] = torch.randint(0, 4, (6, 12), generator=seeded())
    given = tokens != MASK
    asked: list[Tensor] = []

    def predict(_block: int, text: Tensor, places: Tensor) -> Tensor:
        asked.append(text)
        return torch.zeros(int(places.sum()), 4)

    edges = masking_edges(3, t_min=1 / 32, t_max=t_max)
    start = (~given).float().mean().item()
    made = unmasked(predict, tokens, mask=MASK, edges=edges, steps=steps, generator=seeded(3), start=start)
    assert (made != MASK).all()
    assert torch.equal(made[given], tokens[given])
    assert (tokens == MASK).any(), "the input was written to"
    assert all((text == MASK).any(dim=1).all() for text in asked), "a finished row was asked about again"


def test_each_step_is_answered_by_the_block_that_owns_its_level() -> None:
    edges = masking_edges(4, t_min=1 / 64, t_max=1.0)
    seen: list[tuple[int, float]] = []

    def predict(block: int, text: Tensor, places: Tensor) -> Tensor:
        seen.append((block, (text == MASK).float().mean().item()))
        return torch.zeros(int(places.sum()), 4)

    tokens = torch.full((64, 64), MASK)
    unmasked(predict, tokens, mask=MASK, edges=edges, steps=41, generator=seeded())
    assert sorted({block for block, _ in seen}) == [0, 1, 2, 3]
    for (block, share), (following, _) in pairwise(seen):
        assert block <= following, "an early block answered after a late one"
        assert edges[block + 1] - 0.03 <= share <= edges[block] + 0.03
    assert seen[0][0] == 0
    assert [block for block, _ in seen].count(0) == pytest.approx(10, abs=1)


def test_infilling_starts_at_the_block_of_what_is_masked() -> None:
    blocks: list[int] = []

    def predict(block: int, text: Tensor, places: Tensor) -> Tensor:
        blocks.append(block)
        return torch.zeros(int(places.sum()), 4)

    tokens = torch.zeros(16, 64, dtype=torch.int64)
    tokens[:, 16:32] = MASK
    edges = masking_edges(4, t_min=1 / 64, t_max=1.0)
    unmasked(predict, tokens, mask=MASK, edges=edges, steps=10, generator=seeded(), start=0.25)
    assert set(blocks) == {3}


def test_samples_of_the_exact_model_have_its_frequencies() -> None:
    def predict(_block: int, text: Tensor, places: Tensor) -> Tensor:
        assert (text[places] == MASK).all()
        return UNIGRAM.log().expand(int(places.sum()), -1)

    edges = masking_edges(2, t_min=1 / 50, t_max=1.0)
    made = unmasked(predict, torch.full((400, 50), MASK), mask=MASK, edges=edges, steps=10, generator=seeded())
    assert (made.flatten().bincount(minlength=4) / made.numel()).tolist() == pytest.approx(UNIGRAM.tolist(), abs=0.01)

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbserve.cards import load_card
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts, JobPlan, TaskKind, Vocabulary
from dbserve.errors import ConfigInvalid
from dbserve.planner import plan_job
from tests.jobs import small_spec
from workers.data import Batch
from workers.memory import counting_saved_bytes
from workers.models.recurrent import (
    RECURRENT,
    Past,
    RecurrentDenoiser,
    UnrolledNetwork,
    answer,
    schedule,
    token_codes,
)
from workers.recompute import Recomputed
from workers.trainer import build_network

VOCABULARY, WINDOW = 11, 12


def facts(vocabulary: int = VOCABULARY, window: int = WINDOW) -> DataFacts:
    symbols = tuple(chr(97 + token) for token in range(vocabulary))
    return DataFacts(
        train_shards=("/nowhere/train.parquet",),
        test_shards=(),
        train_rows=1000,
        test_rows=200,
        validation_rows=100,
        encoding="text",
        vocabulary=Vocabulary(kind="characters", size=vocabulary, symbols=symbols, sha256="0" * 64),
        sequence_length=window,
    )


def spec_of(training: dict[str, Any] | None = None, count: int = 1, **options: Any) -> JobSpec:
    options = {"depth": 4, "width": 16, "heads": 2, **options}
    return small_spec(
        architecture={"kind": "recurrent", "options": options},
        blocks={"count": count},
        data={"uri": "/nowhere"},
        training={"steps": 5, "batch_size": 4, **(training or {})},
        evaluation={"baselines": ["end_to_end", "shallow"]},
    )


def plan_of(training: dict[str, Any] | None = None, *, sizes: tuple[int, int] = (11, 12), **options: Any) -> JobPlan:
    return plan_job(spec_of(training, **options), load_card("recurrent"), facts(*sizes))


def lively(network: nn.Module) -> nn.Module:
    """With weights large enough that everything that reaches the answer is seen in it."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval()


def denoiser(plan: JobPlan) -> RecurrentDenoiser:
    network = lively(RECURRENT.denoiser(plan.contract, 4))
    assert isinstance(network, RecurrentDenoiser)
    return network


def unrolled(plan: JobPlan, layers: int) -> UnrolledNetwork:
    network = lively(RECURRENT.baseline(plan.contract, layers))
    assert isinstance(network, UnrolledNetwork)
    return network


def windows(rows: int = 3, vocabulary: int = VOCABULARY, window: int = WINDOW) -> Tensor:
    return torch.randint(vocabulary, (rows, window))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def sees_what_it_predicts(answer_of: Callable[[Tensor], Tensor]) -> bool:
    """Does any position's answer change when its own token, or a later one, does?"""
    tokens = windows()
    before = answer_of(tokens)
    for position in range(WINDOW):
        changed = tokens.clone()
        changed[:, position:] = (changed[:, position:] + 1) % VOCABULARY
        if not torch.equal(answer_of(changed)[:, : position + 1], before[:, : position + 1]):
            return True
    return False


def test_no_answer_depends_on_the_token_it_is_for_or_on_a_later_one() -> None:
    plan = plan_of()
    network, baseline = denoiser(plan), unrolled(plan, 10)
    assert not sees_what_it_predicts(lambda tokens: answer(network, tokens, schedule(plan.contract, 4)))
    assert not sees_what_it_predicts(baseline)


def test_the_leak_test_catches_a_past_that_is_one_token_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    network = denoiser(plan)
    read = network.trunk.read

    def unshifted(tokens: Tensor) -> Past:
        return read(torch.cat((tokens[:, 1:], tokens[:, :1]), dim=1))  # position i now reads token i

    monkeypatch.setattr(network.trunk, "read", unshifted)
    assert sees_what_it_predicts(lambda tokens: answer(network, tokens, schedule(plan.contract, 4)))


def test_a_state_sees_no_other_positions_state_and_every_earlier_token() -> None:
    plan = plan_of()
    network, tokens = denoiser(plan), windows()
    z, sigma = torch.randn(3, WINDOW, 16), torch.full((3, WINDOW), 0.5)
    before = network(tokens, z, sigma)
    other = z.clone()
    other[:, 5] = torch.randn(3, 16)
    after = network(tokens, other, sigma)
    changed = (after != before).any(dim=2)  # (N, T)
    assert changed[:, 5].all()
    assert changed.sum() == 3
    tokens[:, 2] = (tokens[:, 2] + 1) % VOCABULARY
    changed = (network(tokens, z, sigma) != before).any(dim=2)
    assert not changed[:, :3].any()
    assert changed[:, 3:].all()


def test_noise_level_and_z_reach_the_answer_beyond_what_bayes_rule_adds() -> None:
    plan = plan_of()
    network, tokens = denoiser(plan), windows()
    z = network.codes[tokens]
    levels = [torch.full((3, WINDOW), level) for level in (80.0, 40.0, 0.3)]
    blind, quieter, clear = (network(tokens, z, sigma).log_softmax(dim=2) for sigma in levels)
    assert (quieter - blind).abs().max() > 1e-3  # the prior of both is flat: the time embedding tells them apart
    assert (clear.argmax(dim=2) == tokens).float().mean() > 0.5


def test_what_z_alone_says_is_left_out_of_an_answer_as_z_was_made_from_the_past() -> None:
    plan = plan_of()
    network, tokens = denoiser(plan), windows()
    nn.init.zeros_(network.trunk.head.weight)  # the past says nothing: no number of steps may say more
    for steps in (1, 2, 8):
        assert not answer(network, tokens, schedule(plan.contract, steps)).any()


def test_the_past_is_read_once_however_many_steps_an_answer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    network, read, refined = denoiser(plan), 0, 0
    whole_read, whole_refined = network.trunk.read, network.trunk.refined

    def counting_read(tokens: Tensor) -> Past:
        nonlocal read
        read += 1
        return whole_read(tokens)

    def counting_refined(state: Tensor, past: Past) -> Tensor:
        nonlocal refined
        refined += 1
        return whole_refined(state, past)

    monkeypatch.setattr(network.trunk, "read", counting_read)
    monkeypatch.setattr(network.trunk, "refined", counting_refined)
    answer(network, windows(), schedule(plan.contract, 4))
    assert (read, refined) == (1, 4)


def test_training_runs_the_core_once_and_unrolled_training_runs_it_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(steps=3)
    batch, generator = Batch(windows(4), None, 0.0), torch.Generator()
    low, high = plan.contract.sigma_min, plan.contract.sigma_max
    network, baseline = denoiser(plan), unrolled(plan, plan.end_to_end.layers[1])
    for trained, loss, runs in (
        (network, RECURRENT.denoising_loss(plan.contract, network, (low, high)), 1),
        (baseline, RECURRENT.baseline_loss(plan.contract, baseline), 3),
    ):
        done, whole = 0, trained.trunk.refined

        def counting(state: Tensor, past: Past, whole: Callable[[Tensor, Past], Tensor] = whole) -> Tensor:
            nonlocal done
            done += 1
            return whole(state, past)

        monkeypatch.setattr(trained.trunk, "refined", counting)
        loss(batch, generator).backward()
        assert done == runs
        for name, parameter in trained.named_parameters():
            assert parameter.grad is not None, name


def test_the_levels_of_an_answer_fall_from_sigma_max_and_one_step_stays_there() -> None:
    contract = plan_of().contract
    assert schedule(contract, 1) == (contract.sigma_max,)
    levels = schedule(contract, 8)
    assert levels[0] == contract.sigma_max
    assert sorted(levels, reverse=True) == list(levels)
    assert len(set(levels)) == 8
    assert levels[-1] > contract.sigma_min


def test_a_blind_token_is_trained_on_what_the_first_step_of_an_answer_is_asked() -> None:
    plan = plan_of(blind_share=0.99)
    network = denoiser(plan)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1:]))
    loss = RECURRENT.denoising_loss(plan.contract, network, (plan.contract.sigma_min, plan.contract.sigma_max))
    loss(Batch(windows(64), None, 0.0), torch.Generator().manual_seed(0))
    hook.remove()
    z, sigma = seen[0]
    blind = (z == 0).all(dim=2)
    assert 0.97 < blind.float().mean().item() < 1.0
    assert (sigma[blind] == plan.contract.sigma_max).all()
    assert (sigma[~blind] < plan.contract.sigma_max).all()


def test_the_shallow_baseline_runs_the_core_once_and_the_end_to_end_one_as_often_as_an_answer() -> None:
    spec = spec_of(steps=5, prelude=1, core=2, coda=1)
    plan = plan_job(spec, load_card("recurrent"), facts())
    runs = {
        task.kind: network.steps
        for task in plan.tasks
        if task.kind in (TaskKind.END_TO_END, TaskKind.SHALLOW)
        and isinstance(network := build_network(spec, plan, task), UnrolledNetwork)
    }
    assert runs == {TaskKind.END_TO_END: 5, TaskKind.SHALLOW: 1}
    assert plan.end_to_end.layers == (0, 12)
    assert plan.blocks[0].layers == (0, 4)


def test_a_fresh_network_knows_nothing_its_loss_is_near_ln_of_the_vocabulary() -> None:
    plan = plan_of(width=64, heads=4)
    tokens = windows(32)
    network = RECURRENT.denoiser(plan.contract, 4)
    assert isinstance(network, RecurrentDenoiser)
    for logits in (answer(network, tokens, schedule(plan.contract, 1)), RECURRENT.baseline(plan.contract, 10)(tokens)):
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).item()
        assert loss == pytest.approx(math.log(VOCABULARY), abs=0.2)


def test_codes_have_length_one_are_no_parameter_and_follow_from_the_contract() -> None:
    contract = plan_of().contract
    codes = token_codes(contract)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(VOCABULARY))
    network = denoiser(plan_of())
    assert torch.equal(network.codes, codes)
    assert "codes" not in network.state_dict()


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"depth": 5}, "/architecture/options/depth"),
        ({"heads": 3}, "/architecture/options/heads"),
        ({"heads": 16}, "/architecture/options/heads"),
        ({"kv_heads": 3}, "/architecture/options/kv_heads"),
        ({"count": 2}, "/blocks/count"),
    ],
)
def test_what_cannot_be_is_refused_at_its_key(changes: dict[str, Any], pointer: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        plan_of(**changes)
    assert refused.value.pointer == pointer


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("options", "rows", "sizes"),
    [
        ({}, 4, (11, 12)),
        ({"width": 48, "heads": 4, "kv_heads": 2, "mlp": 40, "steps": 3}, 2, (65, 33)),
        ({"depth": 6, "prelude": 2, "core": 1, "coda": 3, "steps": 7, "width": 32}, 8, (300, 16)),
        ({"depth": 3, "prelude": 1, "core": 2, "coda": 0, "steps": 1}, 3, (11, 64)),
    ],
)
def test_the_card_knows_the_bytes_of_both_networks(
    options: dict[str, Any], rows: int, sizes: tuple[int, int], precision: str, recompute: bool
) -> None:
    training = {"batch_size": rows, "precision": precision, "activation_checkpointing": recompute}
    plan = plan_of(training, sizes=sizes, **options)
    contract = plan.contract
    low, high = contract.sigma_min, contract.sigma_max
    block = RECURRENT.denoiser(contract, plan.blocks[0].layers[1])
    whole, once = (RECURRENT.baseline(contract, planned.layers[1]) for planned in (plan.end_to_end, plan.shallow))
    batch = Batch(windows(rows, *sizes), None, 0.0)
    for network, loss, planned in (
        (block, RECURRENT.denoising_loss(contract, block, (low, high)), plan.blocks[0]),
        (whole, RECURRENT.baseline_loss(contract, whole), plan.end_to_end),
        (once, RECURRENT.baseline_loss(contract, once), plan.shallow),
    ):
        assert planned.parameters == sum(parameter.numel() for parameter in network.parameters())
        with (
            counting_saved_bytes(network) as saved,
            Recomputed(network).counting(saved) if recompute else nullcontext(),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
        ):
            kept = loss(batch, torch.Generator().manual_seed(0))
        assert planned.memory.activations == pytest.approx(saved.total, rel=1e-3), saved.total
        assert kept.dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("baseline", [False, True])
def test_recomputed_layers_have_the_same_gradients_bit_for_bit(precision: str, baseline: bool) -> None:
    contract = plan_of(prelude=1, core=2, coda=1, steps=3, kv_heads=1).contract
    gradients: list[list[Tensor]] = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = RECURRENT.baseline(contract, 8) if baseline else RECURRENT.denoiser(contract, 4)
        if recompute:
            Recomputed(network)
        loss = (
            RECURRENT.baseline_loss(contract, network)
            if baseline
            else RECURRENT.denoising_loss(contract, network, (contract.sigma_min, contract.sigma_max))
        )
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            value = loss(Batch(windows(4, 11, 12), None, 0.0), torch.Generator().manual_seed(0))
        value.backward()  # pyright: ignore[reportUnknownMemberType]
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    kept, anew = gradients
    assert len(kept) == len(list(network.parameters()))
    assert all(map(torch.equal, kept, anew))

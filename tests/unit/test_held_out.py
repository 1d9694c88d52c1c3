"""How a denoiser does on held-out rows, by noise level, and that looking changes nothing."""

import math
from itertools import pairwise
from typing import Any

import pytest

from tests.training import dataset, planned, run, same, spec_of
from workers import trainer
from workers.held_out import BANDS, LEAST_STEPS, HeldOutLoss, bands
from workers.method.partition import interval_mass
from workers.models import architecture
from workers.trainer import build_network


def looking(task: str = "block-1", *, every: int = 5, steps: int = 10) -> HeldOutLoss:
    spec = spec_of(training={"steps": steps})
    plan = planned(spec)
    network = build_network(spec, plan, plan.task(task))
    return HeldOutLoss(architecture("vit"), network, plan, plan.task(task), dataset().validation, every=every)


def test_the_bands_cut_a_blocks_own_noise_levels_into_equal_masses() -> None:
    plan = planned(spec_of())
    found = [(band.low, band.high) for band in looking().look(1)]
    block, contract = plan.blocks[1], plan.contract
    assert len(found) == BANDS
    assert (found[0][0], found[-1][1]) == (block.sigma_min, block.sigma_max)
    assert all(one[1] == two[0] for one, two in pairwise(found))
    assert contract.p_mean is not None
    assert contract.p_std is not None
    masses = [interval_mass(low, high, p_mean=contract.p_mean, p_std=contract.p_std) for low, high in found]
    assert masses == pytest.approx([sum(masses) / BANDS] * BANDS)


def test_masking_is_cut_by_the_probability_of_a_mask() -> None:
    contract = planned(spec_of()).contract.model_copy(update={"p_mean": None, "p_std": None})
    levels = [level for band in bands(contract, 0.1, 0.7) for level in band]
    assert levels == pytest.approx([0.1, 0.3, 0.3, 0.5, 0.5, 0.7])


def test_the_same_network_gets_the_same_figures_twice() -> None:
    held_out = looking()
    assert held_out.look(1) == held_out.look(2)


def test_a_look_comes_with_a_checkpoint_not_too_often_and_at_the_end() -> None:
    held_out = looking(every=5, steps=1000)
    told = [step for step in range(1, 1001) if held_out.told(step)]
    assert told == [*range(5, 1001, LEAST_STEPS), 1000]
    assert [step for step in range(1, 8) if looking(every=20, steps=7).told(step)] == [7]


@pytest.mark.parametrize("options", [{"dropout": 0.2}, {}])
def test_looking_changes_no_bit_of_the_training(monkeypatch: pytest.MonkeyPatch, options: dict[str, float]) -> None:
    spec = spec_of(checkpoint={"every_steps": 2}, options=options)
    monkeypatch.setattr("workers.held_out.LEAST_STEPS", 1)
    looked = run(spec, "block-0")
    assert [bool(report.eval_loss) for report, _ in looked] == [step % 2 == 0 for step in range(1, 11)]
    monkeypatch.setattr(trainer, "_held_out", lambda *_: None)
    unlooked = run(spec, "block-0")
    assert all(same(one, other) for (_, one), (_, other) in zip(looked, unlooked, strict=True))


def test_a_network_that_learns_does_better_in_every_band_than_at_its_beginning() -> None:
    spec = spec_of(training={"steps": 60, "lr": 1e-2})
    plan = planned(spec)
    fresh = HeldOutLoss(
        architecture("vit"), build_network(spec, plan, plan.task("block-0")), plan, plan.task("block-0"),
        dataset().validation, every=5,
    ).look(1)  # fmt: skip
    trained = run(spec, "block-0")[-1][0].eval_loss
    assert all(after.loss < before.loss for before, after in zip(fresh, trained, strict=True))


def test_a_baseline_knows_no_noise_levels() -> None:
    assert [report.eval_loss for report, _ in run(spec_of(), "end_to_end")] == [()] * 10


def test_a_look_that_goes_wrong_costs_nothing_but_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(HeldOutLoss, "_mean", wrong)
    reports = [report for report, _ in run(spec_of(checkpoint={"every_steps": 5}), "block-0")]
    assert [report.eval_loss for report in reports] == [()] * 10


def test_a_look_that_goes_wrong_for_one_of_several_that_look_together_ends_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_out = looking()
    monkeypatch.setattr(held_out, "_entrance", object())
    monkeypatch.setattr(held_out, "look", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        held_out.told(10)


def test_a_loss_that_is_not_finite_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    network = architecture("vit").denoising_loss

    def broken(*given: Any) -> Any:
        loss = network(*given)
        return lambda batch, generator: loss(batch, generator) * math.inf

    monkeypatch.setattr(architecture("vit"), "denoising_loss", broken, raising=False)
    assert [band.loss for band in looking().look(1)] == [None] * BANDS

"""The range of the noise and its edges: Gaussian and masked, cut by rule or by hand."""

import math
from itertools import pairwise
from typing import Any

import pytest

from dbserve.planner import load_card
from tests.plans import CIFAR, TEXT, UNIFORM, masking_card, planned, refused
from workers.method.information import information
from workers.method.partition import interval_mass, masking_training_interval

LEFT_OUT: dict[str, Any] = {"noise": {"sigma_min": None, "sigma_max": None}}


def by_hand(*edges: float) -> dict[str, Any]:
    return {"count": 3, "partition": "explicit", "edges": list(edges)}


def test_edges_given_by_hand_are_the_plans_and_say_the_range() -> None:
    plan = planned(blocks=by_hand(50.0, 2.0, 0.5, 0.01), **LEFT_OUT)
    assert plan.contract.edges == (50.0, 2.0, 0.5, 0.01)
    assert (plan.contract.sigma_min, plan.contract.sigma_max) == (0.01, 50.0)
    assert [(block.sigma_max, block.sigma_min) for block in plan.blocks] == [(50.0, 2.0), (2.0, 0.5), (0.5, 0.01)]


def test_edges_given_by_hand_may_repeat_the_range_but_not_contradict_it() -> None:
    agreed: dict[str, Any] = {"noise": {"sigma_min": 0.01, "sigma_max": 50.0}}
    assert planned(blocks=by_hand(50.0, 2.0, 0.5, 0.01), **agreed).contract.sigma_max == 50.0
    assert "sigma_max" in refused("/blocks/edges/0", blocks=by_hand(49.0, 2.0, 0.5, 0.01), **agreed)
    assert "sigma_min" in refused("/blocks/edges/3", blocks=by_hand(50.0, 2.0, 0.5, 0.02), **agreed)


@pytest.mark.parametrize(
    ("pointer", "edges"),
    [
        ("/blocks/edges/1", (2.0, 50.0, 0.5, 0.01)),
        ("/blocks/edges/2", (50.0, 2.0, 2.0, 0.01)),
        ("/blocks/edges/3", (50.0, 2.0, 0.5, 0.6)),
        ("/blocks/edges", (50.0, 2.0, 0.01)),
        ("/blocks/edges", (50.0, 2.0, 1.0, 0.5, 0.01)),
        ("/blocks/edges/1", (1e6, 1e5, 0.5, 0.01)),  # no noise level is ever drawn above 1e5
    ],
)
def test_edges_that_cut_nothing_are_refused_at_their_place(pointer: str, edges: tuple[float, ...]) -> None:
    assert refused(pointer, blocks=by_hand(*edges), **LEFT_OUT)


def test_blocks_of_equal_information_are_told_equally_much_by_their_intervals() -> None:
    plan = planned(blocks={"count": 3, "partition": "equal_information"}, noise={"sigma_min": 0.2})
    told = [information(sigma, 10, 0.5 * math.sqrt(10)) for sigma in plan.contract.edges]
    shares = [(after - before) / (told[-1] - told[0]) for before, after in pairwise(told)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.01)


def test_equal_information_needs_codes() -> None:
    card = load_card("vit").model_copy(update={"code_norm": None})
    assert "no target codes" in refused(
        "/blocks/partition", CIFAR, card, blocks={"count": 3, "partition": "equal_information"}
    )


def test_masking_is_cut_in_equal_steps_of_the_probability_of_a_mask() -> None:
    plan = planned(TEXT, masking_card(), **UNIFORM)
    contract = plan.contract
    assert (contract.p_mean, contract.p_std, contract.sigma_min, contract.sigma_max) == (None, None, 1 / 64, 1.0)
    widths = [high - low for high, low in pairwise(contract.edges)]
    assert widths == pytest.approx([(1 - 1 / 64) / 3] * 3)
    assert contract.preprocessing == "tokens"
    assert contract.tokens == (TEXT.vocabulary, 64)
    for block in plan.blocks:
        assert (block.train_sigma_min, block.train_sigma_max) == masking_training_interval(
            contract.edges, block.index, 0.05, low_reach=0.5
        )
    assert plan.blocks[2].train_sigma_max == 0.5, "where hardly a token is masked, more noise teaches"


@pytest.mark.parametrize(
    ("pointer", "changes"),
    [
        ("/noise/p_mean", {"noise": {**UNIFORM["noise"], "p_mean": 0.0}}),
        ("/noise/p_std", {"noise": {**UNIFORM["noise"], "p_std": 1.0}}),
        ("/noise/sigma_max", {"noise": {**UNIFORM["noise"], "sigma_max": 1.5}}),
        ("/noise/sigma_min", {"noise": {**UNIFORM["noise"], "sigma_min": 1.0}}),
        ("/blocks/partition", {**UNIFORM, "blocks": {"count": 3, "partition": "uniform_log"}}),
        ("/blocks/partition", {**UNIFORM, "blocks": {"count": 3, "partition": "equal_information"}}),
        ("/blocks/edges/0", {**UNIFORM, "blocks": by_hand(1.1, 0.6, 0.3, 0.1)}),
    ],
)
def test_words_that_masking_does_not_have_are_refused(pointer: str, changes: dict[str, Any]) -> None:
    assert refused(pointer, TEXT, masking_card(), **changes)


def test_masking_can_be_cut_by_hand() -> None:
    plan = planned(TEXT, masking_card(), **UNIFORM, blocks=by_hand(1.0, 0.7, 0.3, 0.02))
    assert plan.contract.edges == (1.0, 0.7, 0.3, 0.02)


def test_an_equal_share_of_the_draws_is_each_blocks_own() -> None:
    edges = planned().contract.edges
    masses = [interval_mass(low, high, p_mean=-1.2, p_std=1.2) for high, low in pairwise(edges)]
    assert masses == pytest.approx([sum(masses) / 3] * 3)


@pytest.mark.parametrize("kind", ["mdm", "llama", "recurrent"])
def test_text_has_no_scale_that_sigma_data_could_state(kind: str) -> None:
    changes: dict[str, Any] = {"architecture": {"kind": kind, "options": {"depth": 4}}, "blocks": {"count": 1}}
    assert refused("/noise/sigma_data", TEXT, **changes, noise={**UNIFORM["noise"], "sigma_data": 2.0})
    assert planned(TEXT, **changes, noise=UNIFORM["noise"], evaluation={"baselines": []})

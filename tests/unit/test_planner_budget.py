"""max_bytes_per_worker, and the bytes that every option of training costs."""

import re
from typing import Any

import pytest

from dbserve.contracts.card import OptionRule
from dbserve.contracts.plan import NetworkPlan
from dbserve.planner import load_card
from tests.plans import CIFAR, TEXT, UNIFORM, masking_card, planned, refused, vit

TWELVE = vit()
LAYER = 12 * 128 * 128  # weights of a layer of masking_card()


def text(**changes: Any) -> NetworkPlan:
    """Block 0 of three, four layers each, of masking_card()."""
    return planned(TEXT, masking_card(), **UNIFORM, architecture=TWELVE, **changes).blocks[0]


def within(limit: int, **changes: Any) -> tuple[int, int]:
    """(blocks, bytes of the largest) under a limit."""
    plan = planned(blocks={"max_bytes_per_worker": limit}, **changes)
    return len(plan.blocks), max(block.memory.total for block in plan.blocks)


def test_the_fewest_equal_blocks_that_fit_are_taken() -> None:
    by_count = {count: planned(blocks={"count": count}).blocks[0].memory.total for count in (1, 2, 3, 4, 6, 12)}
    for count, size in by_count.items():
        assert within(size) == (count, size)
    for count, fewer in ((2, 1), (3, 2), (12, 6)):
        assert within(by_count[fewer] - 1) == (count, by_count[count])


def test_what_no_number_of_blocks_can_do_is_refused_with_its_parts_and_a_way_out() -> None:
    least = planned(blocks={"count": 12}).blocks[0].memory
    message = refused("/blocks/max_bytes_per_worker", blocks={"max_bytes_per_worker": least.total - 1})
    for part in (least.total, least.parameters, least.gradients, least.optimizer, least.activations, least.total - 1):
        assert f"{part:,}" in message
    accumulate = int(re.findall(r"accumulate: (\d+) fits", message)[0])
    assert accumulate == 2
    assert within(least.total - 1, training={"accumulate": accumulate})[0] == 12
    batch_size = int(re.findall(r"batch_size: (\d+) fits", message)[0])
    assert within(least.total - 1, training={"batch_size": batch_size})[0] == 12
    assert refused(
        "/blocks/max_bytes_per_worker",
        blocks={"max_bytes_per_worker": least.total - 1},
        training={"batch_size": batch_size + 1},
    )


def test_where_not_even_one_row_fits_nothing_is_promised() -> None:
    message = refused("/blocks/max_bytes_per_worker", blocks={"max_bytes_per_worker": 1000})
    assert "fits" not in message
    assert "narrower" in message


def test_recomputing_layers_is_a_way_out_where_it_is_offered() -> None:
    least = planned(TEXT, masking_card(), **UNIFORM, architecture=vit(depth=4), blocks={"count": 2}).blocks[0].memory
    rule = OptionRule(expression="blocks < 3", pointer="/blocks/count", message="at most 2 blocks")
    card = masking_card(rules=(rule,))
    limited: dict[str, Any] = {
        **UNIFORM,
        "architecture": vit(depth=4),
        "blocks": {"max_bytes_per_worker": least.total - 1},
    }
    assert "activation_checkpointing: true fits" in refused("/blocks/max_bytes_per_worker", TEXT, card, **limited)
    assert planned(TEXT, card, **limited, training={"activation_checkpointing": True}).blocks[0].layers == (0, 2)


def test_a_baseline_that_no_worker_can_hold_is_said_to_be_one() -> None:
    plan = planned(
        blocks={"max_bytes_per_worker": planned().blocks[0].memory.total},
        evaluation={"baselines": ["end_to_end", "data_parallel", "shallow"]},
    )
    told = [warning for warning in plan.warnings if "more than a worker's" in warning]
    assert [warning.split()[2] for warning in told] == ["end_to_end", "data_parallel"]
    assert f"{plan.end_to_end.memory.total:,}" in told[0]


def test_a_batch_in_parts_saves_the_activations_of_one_part() -> None:
    whole, halves = text().memory, text(training={"accumulate": 2}).memory
    assert halves.activations == whole.activations // 2
    assert halves.total == whole.total - halves.activations


def test_recomputed_layers_save_what_the_card_says() -> None:
    assert text().memory.activations == 4 * 128 * 64 * 128 * 4
    assert text(training={"activation_checkpointing": True}).memory.activations == 128 * 64 * 128 * 4


def test_muon_keeps_one_moment_of_the_layers_matrices_and_adamw_two_of_everything() -> None:
    parameters = 4 * LAYER + 1000 + 256
    assert text().memory.optimizer == 8 * parameters
    assert text(training={"optimizer": "muon"}).memory.optimizer == 8 * parameters - 4 * 4 * LAYER


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_averaged_weights_are_one_more_copy(optimizer: str) -> None:
    plain = text(training={"optimizer": optimizer})
    averaged = text(training={"optimizer": optimizer, "ema": 0.99})
    assert averaged.memory.optimizer == plain.memory.optimizer + 4 * plain.parameters
    assert averaged.memory.total == plain.memory.total + 4 * plain.parameters


@pytest.mark.parametrize(
    ("pointer", "training"),
    [
        ("/training/optimizer", {"optimizer": "muon"}),
        ("/training/activation_checkpointing", {"activation_checkpointing": True}),
    ],
)
def test_what_an_architecture_does_not_offer_is_refused(pointer: str, training: dict[str, Any]) -> None:
    bare = load_card("vit").denoiser.model_copy(update={"checkpointed": None, "hidden_matrices": None})
    card = load_card("vit").model_copy(update={"denoiser": bare, "baseline": bare})
    assert refused(pointer, CIFAR, card, training=training)


def test_bytes_add_up_whatever_the_training() -> None:
    for training in ({"accumulate": 4}, {"ema": 0.9}, {"optimizer": "muon"}, {"precision": "bf16"}):
        plan = planned(TEXT, masking_card(), **UNIFORM, training=training)
        for network in (*plan.blocks, plan.end_to_end, plan.shallow):
            memory = network.memory
            parts = memory.parameters + memory.gradients + memory.optimizer + memory.activations
            assert memory.total == parts > 0

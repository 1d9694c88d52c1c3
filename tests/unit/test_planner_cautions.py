"""What is planned and said to be unwise: each sentence where it is true, and nowhere else."""

import math
import random
from typing import Any

import pytest

from dbserve.planner import load_card
from tests.plans import CIFAR, TEXT, UNIFORM, masking_card, planned
from workers.method.recognition import code_accuracy

GOOD: dict[str, Any] = {"noise": {"p_mean": None, "p_std": None, "sigma_min": None, "sigma_max": None}}


def told(part: str, *arguments: Any, **changes: Any) -> list[str]:
    """The plan's warnings that contain a phrase."""
    return [warning for warning in planned(*arguments, **changes).warnings if part in warning]


def test_the_architectures_own_noise_is_planned_with_one_warning_that_is_true_of_it() -> None:
    assert [warning.partition(":")[2] for warning in planned(**GOOD).warnings] == [" it works from its input alone"]
    assert planned(**GOOD, blocks={"count": 2}).warnings == ()


def test_a_block_that_can_read_the_class_off_z_is_named() -> None:
    warnings = told("can read the class off z")
    assert [warning.split()[1] for warning in warnings] == ["1", "2"], "the published noise, for codes of norm 1.5"
    assert "99% right" in warnings[1] or "100% right" in warnings[1]
    assert not told("can read the class off z", blocks={"count": 1})


def test_a_block_that_owns_no_noise_to_speak_of_is_idle() -> None:
    cut = {"count": 3, "partition": "explicit", "edges": [80.0, 79.0, 0.3, 0.002]}
    assert [warning.split()[1] for warning in told("idle", blocks=cut)] == ["0"]
    masked = {"count": 3, "partition": "explicit", "edges": [1.0, 0.5, 0.495, 0.1]}
    assert [warning.split()[1] for warning in told("idle", TEXT, masking_card(), **UNIFORM, blocks=masked)] == ["1"]
    assert not told("idle")


def test_a_block_whose_interval_tells_nothing_of_the_target_is_named() -> None:
    cut = {"count": 3, "partition": "explicit", "edges": [80.0, 2.0, 0.1, 0.002]}
    assert [warning.split()[1] for warning in told("of what z tells", blocks=cut)] == ["2"]
    assert told("nearly all of it was told before", blocks=cut)
    assert not told("of what z tells", blocks={"count": 3, "partition": "equal_information"})


def test_steps_that_do_not_cover_the_rows_once_are_mentioned() -> None:
    assert told("cover 28.4% of the training rows", training={"steps": 100})
    assert not told("training rows", training={"steps": 352})


def test_cutting_that_saves_nothing_is_mentioned() -> None:
    heavy = load_card("vit").denoiser.model_copy(update={"parameters": "10000000 + layers"})
    card = load_card("vit").model_copy(update={"denoiser": heavy})
    assert told("cutting saves no memory", CIFAR, card, blocks={"count": 12}, training={"batch_size": 1})
    costly = load_card("vit").denoiser.model_copy(update={"parameters": "1000000 + 10000 * layers", "activations": "0"})
    card = load_card("vit").model_copy(update={"denoiser": costly})
    assert told("12 blocks take only 1% fewer bytes a worker than 6", CIFAR, card, blocks={"count": 12})
    assert not told("fewer bytes a worker")


def test_one_block_is_the_whole_network_unless_it_saves_the_unrolling() -> None:
    assert told("no memory is saved", blocks={"count": 1})
    unrolled = load_card("vit").baseline.model_copy(update={"activations": "4 * plain_bytes"})
    assert not told(
        "no memory is saved", CIFAR, load_card("vit").model_copy(update={"baseline": unrolled}), blocks={"count": 1}
    )


def test_an_experiment_is_called_one() -> None:
    assert told("experimental", CIFAR, load_card("vit").model_copy(update={"experimental": True}))
    assert not told("experimental")


def test_a_warmup_that_outlasts_a_baseline_is_mentioned() -> None:
    baselines = {"baselines": ["data_parallel"]}
    assert told("warmup (667) takes them all", training={"warmup": 667}, evaluation=baselines)
    assert not told("warmup", training={"warmup": 666}, evaluation=baselines)


@pytest.mark.parametrize(("sigma", "classes"), [(1.0, 10), (0.5, 3), (0.3, 100), (80.0, 4)])
def test_the_class_is_read_off_z_as_often_as_a_drawn_z_allows(sigma: float, classes: int) -> None:
    draw, trials = random.Random(0), 4000
    right = sum(
        1.0 + sigma * draw.gauss() > max(sigma * draw.gauss() for _ in range(classes - 1)) for _ in range(trials)
    )
    scatter = math.sqrt(0.25 / trials)
    assert code_accuracy(sigma, classes, norm=1.0) == pytest.approx(right / trials, abs=4 * scatter)


def test_only_noise_leaves_a_guess_and_no_noise_leaves_no_doubt() -> None:
    assert code_accuracy(1e6, 10, norm=1.0) == pytest.approx(0.1, abs=1e-4)
    assert code_accuracy(1e-3, 10, norm=1.0) == pytest.approx(1.0)


def test_baselines_that_nothing_will_be_compared_with_are_named() -> None:
    some: dict[str, Any] = {"blocks": {"count": 3, "train": [0]}}
    assert "shallow" in told("compared with nothing", **some, evaluation={"baselines": ["shallow"]})[0]
    assert not told("compared with nothing", **some, evaluation={"baselines": []})
    assert not told("compared with nothing")


@pytest.mark.parametrize(("steps", "samples", "told_of"), [(2, 8, True), (3, 8, False), (2, 0, False)])
def test_too_few_sampling_steps_for_every_block_are_told_of(steps: int, samples: int, told_of: bool) -> None:
    evaluation: dict[str, Any] = {"sampling_steps": steps, "samples": samples, "baselines": []}
    assert bool(told("take no part in samples", TEXT, masking_card(), **UNIFORM, evaluation=evaluation)) == told_of
    assert not told("take no part in samples", evaluation=evaluation), "a classifier samples nothing"

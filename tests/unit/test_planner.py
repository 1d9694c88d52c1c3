import math
import subprocess
import sys
from typing import Any

import pytest
import yaml

from dbserve.contracts.card import OptionRule
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan, TaskKind
from dbserve.errors import ConfigInvalid, DataInvalid
from dbserve.planner import load_card, plan_job
from tests.plans import CIFAR, SAMPLE, planned, refused, vit
from workers.method.codes import code_norm
from workers.method.partition import log_uniform_edges, training_interval


def test_the_sample_job_is_planned_as_published() -> None:
    plan = planned()
    assert [block.layers for block in plan.blocks] == [(0, 4), (4, 8), (8, 12)]
    assert plan.contract.edges == pytest.approx((80.0, 0.505041, 0.179632, 0.002), rel=1e-5)
    assert [block.sigma_max for block in plan.blocks] == list(plan.contract.edges[:3])
    assert [block.sigma_min for block in plan.blocks] == list(plan.contract.edges[1:])
    assert plan.contract.code_dim == 9
    assert plan.contract.options["conditioning"] == "add"
    assert plan.contract.options["mlp"] is None
    # 12 layers of 12 D^2 + 13 D; patches 48 D + D; cls D; 64 positions; norm 2 D; head D K + K.
    assert plan.end_to_end.parameters == 12 * (12 * 128**2 + 13 * 128) + 49 * 128 + 128 + 64 * 128 + 256 + 1290
    # 4 such layers, the projection of z and the time embedding besides.
    plain = 4 * (12 * 128**2 + 13 * 128) + 49 * 128 + 128 + 64 * 128 + 256 + 1290
    assert {block.parameters for block in plan.blocks} == {plain + 9 * 128 + 65 * 128 + 129 * 128}
    assert plan.shallow.parameters == plain
    assert plan.memory_ratio == plan.blocks[0].memory.total / plan.end_to_end.memory.total
    assert 0.27 < plan.memory_ratio < 1 / 3
    for network in (*plan.blocks, plan.end_to_end, plan.shallow):
        memory = network.memory
        assert memory.parameters == memory.gradients == 4 * network.parameters
        assert memory.optimizer == 8 * network.parameters
        assert memory.total == memory.parameters + memory.gradients + memory.optimizer + memory.activations
    assert [(task.name, task.needs) for task in plan.tasks] == [
        ("block-0", ()),
        ("block-1", ()),
        ("block-2", ()),
        ("end_to_end", ()),
        ("shallow-0", ()),
        ("shallow-1", ()),
        ("shallow-2", ()),
        ("assembly", ("block-0", "block-1", "block-2")),
        ("evaluation", ("assembly",)),
    ]
    assert plan.task("evaluation").after == ("end_to_end", "shallow-0", "shallow-1", "shallow-2")
    assert {task.steps for task in plan.tasks} == {2000, 0}
    assert plan.contract_hash == plan.contract.digest()


def test_block_0_owns_sigma_max_and_trains_a_little_beyond_its_own_interval() -> None:
    plan = planned(blocks={"count": 3, "overlap": 0.1})
    for block in plan.blocks:
        assert (block.train_sigma_min, block.train_sigma_max) == training_interval(
            plan.contract.edges, block.index, 0.1
        )
    assert plan.blocks[0].sigma_max == 80.0
    assert plan.blocks[0].train_sigma_min < plan.blocks[0].sigma_min


def test_noise_left_out_is_the_architectures_best_for_its_codes() -> None:
    document = yaml.safe_load(SAMPLE)
    del document["noise"]
    spec = JobSpec.model_validate(document)
    contract = plan_job(spec, load_card("vit"), CIFAR).contract
    assert contract.p_mean == pytest.approx(math.log(code_norm("simplex", 9, 0.5)) + 1)
    assert (contract.p_std, contract.sigma_min, contract.sigma_max) == (1.2, 0.002, 80.0)


def test_the_plan_is_a_function_of_its_arguments_and_survives_json() -> None:
    plan = planned()
    assert planned() == plan
    assert JobPlan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize(
    "change",
    [
        {"noise": {"p_mean": -1.0}},
        {"noise": {"sigma_max": 79.0}},
        {"blocks": {"count": 4}},
        {"blocks": {"count": 3, "partition": "uniform_log"}},
        {"architecture": vit(codes="orthonormal")},
    ],
)
def test_whatever_blocks_hold_in_common_changes_the_contract(change: dict[str, Any]) -> None:
    assert planned(**change).contract_hash != planned().contract_hash


@pytest.mark.parametrize("change", [{"training": {"seed": 7}}, {"training": {"lr": 1e-3}}, {"name": "other"}])
def test_what_is_private_to_a_run_leaves_the_contract_alone(change: dict[str, Any]) -> None:
    assert planned(**change).contract_hash == planned().contract_hash


def test_layers_can_be_cut_unevenly_by_hand() -> None:
    plan = planned(blocks={"layers": [2, 4, 6]})
    assert [block.layers for block in plan.blocks] == [(0, 2), (2, 6), (6, 12)]
    assert plan.shallow.layers == (0, 6)
    assert plan.memory_ratio == plan.blocks[2].memory.total / plan.end_to_end.memory.total
    assert any("different numbers of layers" in warning for warning in plan.warnings)


def test_layers_per_block_is_another_way_to_count() -> None:
    assert planned(blocks={"layers_per_block": 4}).blocks == planned(blocks={"count": 3}).blocks


def test_a_branch_puts_a_trunk_before_the_blocks_and_leaves_the_baselines_free() -> None:
    plan = planned(blocks={"count": 3, "branch": {"steps": 500}})
    assert plan.task("trunk").steps == 500
    assert plan.task("block-1").needs == ("trunk",)
    assert plan.task("block-1").steps == 2000
    assert plan.task("end_to_end").needs == ()


def test_a_subset_of_blocks_is_trained_without_assembly_or_evaluation() -> None:
    plan = planned(
        blocks={"count": 3, "train": [2, 0]}, evaluation={"baselines": []}, resources={"gpus_per_block": 0.5}
    )
    assert [task.name for task in plan.tasks] == ["block-0", "block-2"]
    assert plan.gpus == 1.0
    assert len(plan.blocks) == 3


def test_baselines_run_only_when_they_are_named() -> None:
    kinds = {task.kind for task in planned(evaluation={"baselines": ["end_to_end"]}).tasks}
    assert TaskKind.END_TO_END in kinds
    assert TaskKind.SHALLOW not in kinds


@pytest.mark.parametrize(
    ("pointer", "changes"),
    [
        ("/architecture/options/dept", {"architecture": {"kind": "vit", "options": {"dept": 12}}}),
        ("/architecture/options/a~1b", {"architecture": {"kind": "vit", "options": {"a/b": 1}}}),
        ("/architecture/options/heads", {"architecture": vit(heads=3)}),
        ("/architecture/options/heads", {"architecture": vit(heads=0)}),
        ("/architecture/options/heads", {"architecture": vit(heads=4.0)}),
        ("/architecture/options/depth", {"architecture": vit(depth=True)}),
        ("/architecture/options/depth", {"architecture": vit(depth=None)}),
        ("/architecture/options/width", {"architecture": vit(width="128")}),
        ("/architecture/options/dropout", {"architecture": vit(dropout=1.0)}),
        ("/architecture/options/codes", {"architecture": vit(codes="learned")}),
        ("/architecture/options/patch", {"architecture": vit(patch=5)}),
        ("/architecture/options/patch", {"architecture": vit(patch=64)}),
        ("/blocks/count", {"blocks": {"count": 5}}),
        ("/blocks/count", {"blocks": {"count": 24}}),
        ("/blocks/layers_per_block", {"blocks": {"layers_per_block": 5}}),
        ("/blocks/layers_per_block", {"blocks": {"layers_per_block": 13}}),
        ("/blocks/layers", {"blocks": {"layers": [4, 4, 5]}}),
        ("/blocks/train/1", {"blocks": {"count": 3, "train": [0, 3]}}),
        ("/blocks/branch", {"blocks": {"layers": [2, 10], "branch": {"steps": 5}}}),
        ("/blocks/branch", {"blocks": {"count": 1, "branch": {"steps": 5}}}),
        ("/evaluation/baselines/0", {"blocks": {"count": 1}, "evaluation": {"baselines": ["shallow_long"]}}),
        (
            "/evaluation/baselines/1",
            {"training": {"batch_size": 15_001}, "evaluation": {"baselines": ["shallow", "data_parallel"]}},
        ),
        ("/noise/sigma_min", {"noise": {"sigma_min": 80.0}}),
        ("/noise/p_mean", {"noise": {"p_mean": 20.0, "p_std": 0.1}}),
        ("/training/batch_size", {"training": {"batch_size": 45_001}}),
    ],
)
def test_what_cannot_be_is_refused_at_its_key(pointer: str, changes: dict[str, Any]) -> None:
    assert refused(pointer, **changes)


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    ("pointer", "changes"),
    [
        ("/architecture/options/depth", {"architecture": vit(depth=1_000_000_000)}),
        ("/architecture/options/depth", {"architecture": vit(depth=10**300)}),
        ("/blocks/layers_per_block", {"architecture": vit(depth=100_000), "blocks": {"layers_per_block": 1}}),
        ("/blocks/layers", {"blocks": {"layers": [10**30]}}),
        ("/architecture/options", {"architecture": vit(depth=99_999, width=65_536)}),
    ],
)
def test_absurd_sizes_are_refused_by_arithmetic(pointer: str, changes: dict[str, Any]) -> None:
    assert refused(pointer, **changes)


def test_a_refusal_says_what_was_wrong_in_the_users_numbers() -> None:
    assert "heads (3) must divide width (128)" in refused("/architecture/options/heads", architecture=vit(heads=3))
    assert "greater than the maximum" in refused("/architecture/options/mlp", architecture=vit(mlp=10**7))
    assert "depth (12)" in refused("/blocks/count", blocks={"count": 5})
    assert "depth, " in refused("/architecture/options/dept", architecture={"kind": "vit", "options": {"dept": 1}})


def test_one_class_is_nothing_to_classify() -> None:
    with pytest.raises(ConfigInvalid, match="at least 2 classes"):
        planned(CIFAR.model_copy(update={"class_names": ("cat",)}))


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigInvalid, match=r"known: .*vit") as refusal:
        load_card("resnet")
    assert refusal.value.pointer == "/architecture/kind"


def test_planning_imports_no_torch() -> None:
    code = "import sys, dbserve.planner as p; p.list_cards(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_training_leaves_out_is_the_architectures_best() -> None:
    spec = JobSpec.model_validate({**yaml.safe_load(SAMPLE), "training": {"steps": 10}, "blocks": {"count": 3}})
    card = load_card("vit")
    recipe = card.recipe.model_copy(update={"lr": 0.25, "ema": 0.5, "overlap": 0.2, "partition": "uniform_log"})
    plan = plan_job(spec, card.model_copy(update={"recipe": recipe}), CIFAR)
    assert (plan.training.lr, plan.training.ema) == (0.25, 0.5)
    assert plan.contract.edges == pytest.approx(log_uniform_edges(3, sigma_min=0.002, sigma_max=80.0))
    assert plan.blocks[1].train_sigma_max == pytest.approx(training_interval(plan.contract.edges, 1, 0.2)[1])
    given = spec.model_copy(update={"training": spec.training.model_copy(update={"lr": "scan", "ema": 0.0})})
    assert plan_job(given, card.model_copy(update={"recipe": recipe}), CIFAR).training.lr == "scan"
    assert plan_job(given, card.model_copy(update={"recipe": recipe}), CIFAR).training.ema == 0.0


def test_images_keep_their_shape_and_say_how_a_pixel_is_prepared() -> None:
    assert planned().contract.image == (32, 32, 3)
    assert planned().contract.preprocessing == "x/127.5-1"
    assert planned(CIFAR.model_copy(update={"encoding": "float32"})).contract.preprocessing == "identity"
    with pytest.raises(ValueError, match="images"):
        _ = planned().contract.tokens


def test_an_architecture_of_images_refuses_text() -> None:
    text = CIFAR.model_copy(update={"encoding": "text", "image_shape": None, "sequence_length": 8})
    with pytest.raises(DataInvalid, match="the shards hold text") as refusal:
        planned(text)
    assert refusal.value.pointer == "/data/uri"


@pytest.mark.parametrize(
    ("pointer", "said_at", "blocks"),
    [
        ("/heads", "/architecture/options/heads", {"count": 3}),
        ("/blocks/count", "/blocks/count", {"count": 3}),
        ("/blocks/count", "/blocks/layers_per_block", {"layers_per_block": 4}),
        ("/blocks/count", "/blocks/layers", {"layers": [4, 4, 4]}),
    ],
)
def test_a_cards_rule_points_into_the_options_or_to_what_the_job_says(
    pointer: str, said_at: str, blocks: dict[str, Any]
) -> None:
    rule = OptionRule(expression="blocks == 1", pointer=pointer, message="one block, not {blocks}")
    card = load_card("vit").model_copy(update={"rules": (rule,)})
    assert refused(said_at, CIFAR, card, blocks=blocks) == "one block, not 3"

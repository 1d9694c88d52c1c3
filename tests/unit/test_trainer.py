import math
import threading
from typing import Any

import pytest
import torch

from dbserve.contracts.job import JobSpec, TrainingSpec
from dbserve.contracts.plan import TaskPlan
from dbserve.errors import NonfiniteLoss
from tests.training import dataset, planned, run, same, spec_of
from workers.optimizer import learning_rate
from workers.trainer import build_network, train_block

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("task", ["trunk", "block-0", "block-1", "end_to_end", "shallow-1"])
@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"conditioning": "adaln_low_rank"}])
def test_a_training_resumed_from_a_capture_goes_on_bit_for_bit(task: str, options: dict[str, Any]) -> None:
    spec = spec_of(options=options, blocks={"count": 2, "branch": {"steps": 10}})
    whole = run(spec, task)
    resumed = run(spec, task, state=whole[4][1])
    assert [report.step for report, _ in resumed] == [6, 7, 8, 9, 10]
    assert [report.loss for report, _ in resumed] == [report.loss for report, _ in whole[5:]]
    assert same(resumed[-1][1], whole[-1][1])
    assert resumed[-1][1].summary.samples == whole[-1][1].summary.samples == 320
    assert resumed[-1][1].summary.loss == whole[-1][1].summary.loss


def test_a_capture_is_a_copy_that_later_steps_leave_alone() -> None:
    reports = run(spec_of(), "block-0")
    first = {name: tensor.clone() for name, tensor in reports[0][1].weights.items()}
    assert not same(reports[0][1], reports[1][1])
    assert all(torch.equal(first[name], tensor) for name, tensor in reports[0][1].weights.items())


def test_what_happened_in_the_process_before_changes_nothing() -> None:
    spec = spec_of(options={"dropout": 0.1})
    first = run(spec, "block-0")
    torch.manual_seed(12345)
    torch.rand(7)
    assert same(run(spec, "block-0")[-1][1], first[-1][1])


def test_seed_and_task_each_give_other_weights() -> None:
    def weights(seed: int, task: str) -> torch.Tensor:
        spec = spec_of(training={"seed": seed})
        plan = planned(spec)
        return torch.cat([p.flatten() for p in build_network(spec, plan, plan.task(task)).parameters()])

    one = weights(0, "block-0")
    assert torch.equal(one, weights(0, "block-0"))
    assert not torch.equal(one, weights(1, "block-0"))
    assert not torch.equal(one, weights(0, "block-1"))


def test_building_a_network_leaves_the_callers_random_numbers_alone() -> None:
    spec = spec_of()
    plan = planned(spec)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    build_network(spec, plan, plan.task("block-0"))
    assert torch.equal(torch.rand(3), expected)


def test_a_block_starts_from_the_trunk_and_then_goes_its_own_way() -> None:
    spec = spec_of(blocks={"count": 2, "branch": {"steps": 4}}, training={"lr": 1e-9})
    trunk = run(spec, "trunk")[-1][1]
    assert trunk.step == 4
    first, second = (run(spec, f"block-{b}", initial_weights=trunk.weights)[-1][1] for b in range(2))
    for name, tensor in trunk.weights.items():
        torch.testing.assert_close(first.weights[name], tensor, atol=1e-6, rtol=0)
    assert any(not torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


@pytest.mark.parametrize("task", ["block-0", "block-1", "end_to_end", "shallow-0"])
def test_every_kind_of_task_learns(task: str) -> None:
    spec = spec_of(training={"steps": 60, "lr": 1e-2})
    losses = [report.loss for report, _ in run(spec, task)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_block_is_trained_on_its_own_noise_and_a_trunk_on_all() -> None:
    spec = spec_of(blocks={"count": 2, "branch": {"steps": 30}}, training={"steps": 30})
    plan = planned(spec)
    seen: dict[str, torch.Tensor] = {}
    for name in ("trunk", "block-0", "block-1"):
        sigmas: list[torch.Tensor] = []

        def keep(_module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], to: Any = sigmas) -> None:
            to.append(arguments[2])

        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, arguments, keep=keep: (
                keep(module, arguments) if type(module).__name__ == "VitDenoiser" else None
            )
        )
        for _ in train_block(spec, plan, plan.task(name), dataset()):
            pass
        hook.remove()
        seen[name] = torch.cat(sigmas)
    for block in plan.blocks:
        sigma = seen[f"block-{block.index}"]
        assert block.train_sigma_min <= sigma.min().item()
        assert sigma.max().item() <= block.train_sigma_max * (1 + 1e-6)
    assert seen["trunk"].min().item() < plan.blocks[0].train_sigma_min
    assert seen["trunk"].max().item() > plan.blocks[1].train_sigma_max


def test_a_loss_that_is_no_number_stops_the_task_and_names_the_step() -> None:
    spec = spec_of(training={"lr": 10.0, "warmup": 0, "grad_clip": None, "weight_decay": 10.0, "steps": 400})
    plan = planned(spec)
    poisoned = build_network(spec, plan, plan.task("end_to_end")).state_dict()
    poisoned["head.bias"] = torch.full_like(poisoned["head.bias"], math.inf)
    with pytest.raises(NonfiniteLoss, match=r"end_to_end: the loss of step 1 is nan"):
        run(spec, "end_to_end", initial_weights=poisoned)


def test_nothing_is_left_to_do_from_the_last_step() -> None:
    spec = spec_of()
    assert run(spec, "block-0", state=run(spec, "block-0")[-1][1]) == []


def test_closing_the_generator_ends_the_thread_that_loads_data() -> None:
    spec = spec_of()
    plan = planned(spec)
    before = threading.active_count()
    training = train_block(spec, plan, plan.task("block-0"), dataset())
    next(training)
    assert threading.active_count() == before + 1
    training.close()
    assert threading.active_count() == before


def test_the_summary_thins_the_loss_curve_and_keeps_its_mean() -> None:
    spec = spec_of(training={"steps": 210, "batch_size": 4})
    plan = planned(spec)
    reports = list(train_block(spec, plan, plan.task("shallow-0"), dataset()))
    summary = reports[-1].capture().summary
    assert len(summary.loss) == 105
    assert summary.loss[-1].step == 210
    mean = sum(report.loss for report in reports) / 210
    assert sum(point.loss for point in summary.loss) / 105 == pytest.approx(mean)
    assert summary.samples == reports[-1].samples == 840
    assert 0 < summary.data_wait_seconds < summary.train_seconds


def test_the_learning_rate_warms_up_and_falls_to_nothing() -> None:
    cosine = TrainingSpec(steps=100, lr=0.5, warmup=10)
    rates = [learning_rate(cosine, 0.5, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert rates[10] == 0.5
    assert rates[55] == pytest.approx(0.25)
    assert rates[100] == pytest.approx(0.0)
    constant = TrainingSpec(steps=100, lr=0.5, schedule="constant")
    assert {learning_rate(constant, 0.5, step, 100) for step in range(100)} == {0.5}
    assert learning_rate(cosine, 0.5, 3, 4) == pytest.approx(0.5)  # a trunk shorter than the warmup


def test_the_schedule_wsd_is_constant_and_falls_linearly_over_the_last_fifth() -> None:
    wsd = TrainingSpec(steps=100, lr=0.5, warmup=10, schedule="wsd")
    rates = [learning_rate(wsd, 0.5, step, 100) for step in range(101)]
    assert rates[4] == pytest.approx(0.25)
    assert set(rates[10:81]) == {0.5}
    assert rates[90] == pytest.approx(0.25)
    assert rates[95] == pytest.approx(0.125)
    assert rates[100] == 0.0


def test_only_matrices_decay() -> None:
    spec = spec_of(training={"lr": 1e-3, "weight_decay": 10.0, "steps": 1, "warmup": 0})
    plan = planned(spec)
    before = build_network(spec, plan, plan.task("block-0")).state_dict()
    after = run(spec, "block-0")[-1][1].weights
    # One AdamW step moves an element by at most lr; decay takes lr * 10 of a matrix besides.
    assert (after["trunk.positions"] - before["trunk.positions"]).abs().max().item() <= 1.001e-3
    weight = "trunk.embedding.weight"
    assert (after[weight] - 0.99 * before[weight]).abs().max().item() <= 1.001e-3


def measured_and_planned(spec: JobSpec, shape: tuple[int, int, int], task: str) -> list[tuple[str, int, int]]:
    plan = planned(spec, shape)
    node: TaskPlan = plan.task(task)
    report = next(train_block(spec, plan, node, dataset(spec.training.batch_size, shape)))
    assert report.memory is not None
    network = {"end_to_end": plan.end_to_end, "shallow-0": plan.shallow}.get(task, plan.blocks[node.index])
    kinds = ("parameters", "gradients", "optimizer", "activations")
    return [(kind, getattr(report.memory, kind), getattr(network.memory, kind)) for kind in kinds]


@pytest.mark.parametrize("task", ["block-0", "end_to_end", "shallow-0"])
@pytest.mark.parametrize(
    ("shape", "options", "training"),
    [
        ((8, 8, 1), {"depth": 6, "width": 64, "heads": 4, "patch": 2}, {"batch_size": 64}),
        ((8, 8, 1), {"depth": 2, "width": 48, "heads": 4, "patch": 2, "dropout": 0.1}, {}),
        ((8, 8, 1), {"depth": 4, "width": 24, "heads": 3, "mlp": 200, "conditioning": "adaln_low_rank"}, {}),
        ((8, 8, 1), {"depth": 4, "width": 24, "heads": 3, "mlp": 50, "conditioning": "adaln", "dropout": 0.2}, {}),
        ((16, 24, 3), {"depth": 4, "width": 32, "codes": "unit_norm", "z_input": "raw", "readout": "linear"}, {}),
        ((28, 28, 1), {"depth": 6, "width": 32, "codes": "orthonormal"}, {"batch_size": 8}),
        ((16, 16, 3), {"depth": 4, "width": 64, "dropout": 0.1}, {"precision": "bf16"}),
        ((16, 16, 3), {"depth": 4, "width": 64, "conditioning": "adaln_low_rank"}, {"precision": "bf16"}),
        ((32, 32, 3), {"depth": 12, "width": 128, "heads": 4, "mlp": 3072, "dropout": 0.1}, {"batch_size": 4}),
    ],
)
def test_planned_bytes_are_within_5_percent_of_measured_ones(
    shape: tuple[int, int, int], options: dict[str, Any], training: dict[str, Any], task: str
) -> None:
    spec = spec_of(options=options, training=training)
    for kind, measured, plan in measured_and_planned(spec, shape, task):
        assert plan == pytest.approx(measured, rel=0.05), kind

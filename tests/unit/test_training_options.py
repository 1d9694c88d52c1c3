"""What a job can ask of its training: averaged weights, micro-batches, recomputed layers, muon, a scan, compiling."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbserve.contracts.job import TrainingSpec
from dbserve.errors import CheckpointInvalid, ConfigInvalid, NonfiniteLoss
from tests.artefacts import save
from tests.training import planned, run, same, spec_of
from workers import checkpoint
from workers.averaging import Average
from workers.checkpoint import RateTrial, TrainingState
from workers.optimizer import Optimizer
from workers.rate_scan import RATES, best_rate, outcome, trial_of
from workers.trainer import build_network

pytestmark = pytest.mark.usefixtures("one_thread")


def state_of(task: str, *, options: dict[str, Any] | None = None, **training: Any) -> TrainingState:
    """The state after the last step."""
    return run(spec_of(training=training, options=options or {}), task)[-1][1]


@pytest.mark.parametrize(
    "training",
    [
        {"ema": 0.9},
        {"optimizer": "muon"},
        {"optimizer": "muon", "ema": 0.99, "accumulate": 4, "schedule": "wsd"},
        {"accumulate": 2},
        {"activation_checkpointing": True, "precision": "bf16"},
        {"lr": "scan"},
    ],
)
@pytest.mark.parametrize("task", ["block-1", "end_to_end"])
def test_every_option_resumes_bit_for_bit(task: str, training: dict[str, Any]) -> None:
    spec = spec_of(training=training, options={"dropout": 0.1})
    whole = run(spec, task)
    resumed = run(spec, task, state=whole[4][1])
    assert [report.loss for report, _ in resumed] == [report.loss for report, _ in whole[5:]]
    assert same(resumed[-1][1], whole[-1][1])
    assert resumed[-1][1].summary.scan == whole[-1][1].summary.scan


def test_the_average_follows_the_weights_more_slowly_the_longer_it_has_run() -> None:
    network = nn.Linear(1, 1, bias=False)
    average = Average(network, 0.9)
    expected = network.weight.item()
    for step in range(200):
        with torch.no_grad():
            network.weight.fill_(float(step))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.state()["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert 189 < expected < 191  # ten steps behind: of a decay of 0.9


def test_the_average_of_a_tied_weight_is_kept_once_and_told_under_both_names() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    network[1].weight = network[0].weight
    average = Average(network, 0.5)
    assert average.bytes == 16
    assert average.state().keys() == {"0.weight", "1.weight"}


def test_averaged_weights_are_counted_kept_and_answer(tmp_path: Path) -> None:
    spec = spec_of(training={"ema": 0.9})
    plan = planned(spec)
    (report, _), *_, (_, state) = run(spec, "block-0")
    assert report.memory is not None
    assert report.memory.optimizer == pytest.approx(plan.blocks[0].memory.optimizer, rel=0.05)
    assert report.memory.optimizer > plan.blocks[0].memory.parameters * 2.9
    assert any(not torch.equal(state.average[name], state.weights[name]) for name in state.weights)
    for name, kept in (("with", state), ("without", state_of("block-0", ema=0.0))):
        save(tmp_path, name, kept, plan, run="job/block-0/1")
        loaded = checkpoint.load(tmp_path / name, contract=plan.contract)
        answering = checkpoint.answering_weights(tmp_path / name)
        assert same(loaded, kept)
        assert all(torch.equal(answering[n], (kept.average or kept.weights)[n]) for n in kept.weights)
    shutil.copy(tmp_path / "with" / checkpoint.AVERAGE, tmp_path / "without")
    with pytest.raises(CheckpointInvalid, match=r"ema\.safetensors"):
        checkpoint.load(tmp_path / "without", contract=plan.contract)


def test_a_training_that_keeps_an_average_refuses_a_state_without_one() -> None:
    state = state_of("block-0", ema=0.0)
    with pytest.raises(CheckpointInvalid, match="averaged weights"):
        run(spec_of(training={"ema": 0.9}), "block-0", state=TrainingState(5, state.weights, {}, state.summary))


def test_micro_batches_have_the_gradient_of_the_whole_batch() -> None:
    whole, parts = (state_of("end_to_end", steps=1, warmup=0, accumulate=count) for count in (1, 4))
    moment = "exp_avg.head.weight"  # 0.1 of the gradient, after one step
    assert whole.optimizer[moment].abs().max().item() > 1e-3
    torch.testing.assert_close(parts.optimizer[moment], whole.optimizer[moment], atol=1e-7, rtol=1e-5)
    assert parts.summary.loss[0].loss == pytest.approx(whole.summary.loss[0].loss, rel=1e-6)
    assert parts.summary.samples == whole.summary.samples == 32
    assert parts.summary.memory.activations is not None
    assert whole.summary.memory.activations is not None
    assert parts.summary.memory.activations < 0.3 * whole.summary.memory.activations


def test_every_micro_batch_draws_noise_of_its_own() -> None:
    sigmas: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if type(module).__name__ == "VitDenoiser":
            sigmas.append(arguments[2])

    hook = nn.modules.module.register_module_forward_pre_hook(keep)
    state_of("block-0", steps=2, warmup=0, accumulate=2)
    hook.remove()
    trained = sigmas[:4]  # what comes after them is a look at held-out rows
    assert len({tuple(sigma.tolist()) for sigma in trained}) == 4


@pytest.mark.parametrize("task", ["block-0", "end_to_end"])
@pytest.mark.parametrize("options", [{"dropout": 0.2}, {"conditioning": "adaln_low_rank", "dropout": 0.1}])
def test_recomputed_layers_train_bit_for_bit_alike(task: str, options: dict[str, Any]) -> None:
    kept = state_of(task, options={"depth": 4, **options})
    assert same(state_of(task, options={"depth": 4, **options}, activation_checkpointing=True), kept)


@pytest.mark.parametrize("task", ["block-0", "end_to_end"])
@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({"depth": 8, "width": 64, "heads": 4, "patch": 2}, {}),
        ({"depth": 8, "width": 48, "heads": 4, "patch": 2, "dropout": 0.1, "mlp": 300}, {"accumulate": 2}),
        ({"depth": 2, "width": 64, "heads": 4, "patch": 2, "dropout": 0.1}, {}),
        ({"depth": 12, "width": 48, "heads": 4, "patch": 2, "conditioning": "adaln_low_rank"}, {}),
        ({"depth": 6, "width": 64, "heads": 4, "patch": 2, "conditioning": "adaln"}, {"precision": "bf16"}),
        ({"depth": 6, "width": 64, "heads": 4, "patch": 2, "dropout": 0.1}, {"precision": "bf16"}),
    ],
)
def test_planned_bytes_of_recomputed_layers_are_within_5_percent(
    task: str, options: dict[str, Any], training: dict[str, Any]
) -> None:
    spec = spec_of(options=options, training={"activation_checkpointing": True, "steps": 1, "warmup": 0, **training})
    plan = planned(spec)
    predicted = (plan.end_to_end if task == "end_to_end" else plan.blocks[0]).memory.activations
    measured = run(spec, task)[0][0].memory
    assert measured is not None
    assert predicted == pytest.approx(measured.activations, rel=0.05)


def test_muon_trains_the_matrices_of_the_layers_and_adamw_the_rest() -> None:
    state = state_of("block-0", optimizer="muon")
    by_muon = {name.removeprefix("momentum_buffer.") for name in state.optimizer if name.startswith("momentum_buffer")}
    layer = "trunk.layers.0"
    assert by_muon == {f"{layer}.{part}.weight" for part in ("qkv", "projection", "expand", "contract")}
    assert f"exp_avg.{layer}.qkv.bias" in state.optimizer
    assert f"exp_avg.{layer}.qkv.weight" not in state.optimizer
    assert "exp_avg.trunk.embedding.weight" in state.optimizer
    plan = planned(spec_of(training={"optimizer": "muon"}))
    assert state.summary.memory.optimizer == pytest.approx(plan.blocks[0].memory.optimizer, rel=0.05)


def test_one_rate_moves_a_matrix_as_far_under_muon_as_under_adamw() -> None:
    moved: list[float] = []
    for optimizer in ("adamw", "muon"):
        spec = spec_of(training={"optimizer": optimizer, "steps": 1, "warmup": 0, "weight_decay": 0.0})
        plan = planned(spec)
        name = "trunk.layers.0.expand.weight"
        before = build_network(spec, plan, plan.task("block-0")).state_dict()[name]
        moved.append((run(spec, "block-0")[-1][1].weights[name] - before).pow(2).mean().sqrt().item())
    assert 0.1 < moved[1] / moved[0] < 1.0  # a first step of AdamW is lr an element; later ones are 0.2 to 0.4 of it


def test_muon_is_refused_where_torch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigInvalid, match="muon") as refused:
        state_of("block-0", optimizer="muon")
    assert refused.value.pointer == "/training/optimizer"


def test_a_scan_keeps_the_rate_of_the_lowest_loss_and_tells_what_it_took() -> None:
    first, *_, last = [report for report, _ in run(spec_of(training={"lr": "scan", "steps": 40}), "block-0")]
    summary = last.capture().summary
    assert [trial.rate for trial in summary.scan] == list(RATES)
    assert summary.learning_rate == min(summary.scan, key=lambda trial: trial.loss or math.inf).rate
    assert summary.scan_steps == 4 * 20
    assert summary.scan_seconds > 0
    assert summary.samples == 40 * 32  # of the training alone
    assert first.learning_rate == pytest.approx(summary.learning_rate / 3)  # the first of three steps of warmup
    assert len({trial.loss for trial in summary.scan}) == 4


def test_a_scan_leaves_the_training_as_if_its_rate_had_been_given() -> None:
    scanned = state_of("block-0", lr="scan", ema=0.9)
    assert same(state_of("block-0", lr=scanned.summary.learning_rate, ema=0.9), scanned)


def test_a_trial_is_short_and_its_warmup_shortened() -> None:
    training = TrainingSpec(steps=1000, lr="scan", warmup=100, ema=0.99)
    assert (trial_of(training, 1000).steps, trial_of(training, 1000).warmup) == (50, 5)
    assert (trial_of(training, 100).steps, trial_of(training, 100_000).steps) == (20, 200)
    assert trial_of(training, 50).warmup <= 20  # a trunk shorter than the warmup


def test_a_rate_whose_loss_is_no_number_is_out() -> None:
    losses = {3e-4: [4.0, 3.0, 2.0, 1.5], 1e-3: [4.0, 2.0, 1.0, 0.5], 3e-3: [math.inf, 1.0, 0.1, 0.1]}
    trials = [outcome(rate, values) for rate, values in losses.items()]
    assert trials[2].loss is None
    assert best_rate(trials, "block-0") == 1e-3
    assert outcome(1e-3, [8.0] * 6 + [1.0, 3.0]).loss == 2.0
    with pytest.raises(NonfiniteLoss, match="block-0"):
        best_rate([RateTrial(rate=1.0, loss=None)], "block-0")


def test_a_loss_that_is_no_number_in_one_micro_batch_stops_the_task() -> None:
    spec = spec_of(training={"accumulate": 4, "ema": 0.9})
    plan = planned(spec)
    poisoned = build_network(spec, plan, plan.task("end_to_end")).state_dict()
    poisoned["head.bias"] = torch.full_like(poisoned["head.bias"], math.inf)
    with pytest.raises(NonfiniteLoss, match="the loss of step 1"):
        run(spec, "end_to_end", initial_weights=poisoned)


def test_under_bf16_the_loss_and_what_is_kept_stay_float32() -> None:
    state = state_of("block-0", precision="bf16", ema=0.9)
    kept = (*state.weights.values(), *state.optimizer.values(), *state.average.values())
    assert {tensor.dtype for tensor in kept} == {torch.float32}


def test_compiling_without_a_compiler_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)  # pyright: ignore[reportUnknownLambdaType]
    with pytest.raises(ConfigInvalid, match=r"C\+\+ compiler") as refused:
        run(compiled()[0], "block-0")
    assert refused.value.pointer == "/training/compile"


def compiled() -> tuple[Any, Any]:
    spec = spec_of(training={"compile": True, "steps": 3})
    return spec, planned(spec)


@pytest.mark.timeout(900)  # compiling takes a minute of CPU
@pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))) and not os.environ.get("DBSERVE_REQUIRE_SERVERS"),
    reason="no C++ compiler is installed",
)
def test_a_compiled_training_goes_as_one_that_is_not_and_keeps_the_names_of_its_weights() -> None:
    spec, _ = compiled()
    plain = run(spec.model_copy(update={"training": spec.training.model_copy(update={"compile": False})}), "block-0")
    torch._dynamo.utils.counters.clear()  # pyright: ignore
    faster = run(spec, "block-0")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0  # pyright: ignore  something was compiled
    assert [one.loss for one, _ in faster] == pytest.approx([one.loss for one, _ in plain], rel=1e-4)
    assert faster[-1][1].weights.keys() == plain[-1][1].weights.keys()


def test_compiling_and_recomputing_are_not_offered_together() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        planned(spec_of(training={"compile": True, "activation_checkpointing": True}))
    assert refused.value.pointer == "/training/compile"


def test_an_optimizer_without_a_step_has_no_state() -> None:
    spec = spec_of()
    plan = planned(spec)
    network = build_network(spec, plan, plan.task("block-0"))
    assert Optimizer(network, plan.training).state() == {}

"""The examination of image generators, on small networks and on closed forms."""

import base64
import io
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dbserve.cards import load_card
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.report import Comparison
from dbserve.planner import plan_job
from tests.jobs import FACTS, small_spec
from workers.data import Batch, Dataset, Split
from workers.evaluation import features, frechet, generation
from workers.evaluation.entrants import entrants_of
from workers.evaluation.features import images_of, train_features
from workers.evaluation.frechet import distances, frechet_distance, moments
from workers.evaluation.pictures import picture_grid
from workers.evaluation.sampling import Studio, asked_classes
from workers.evaluation.subject import Examined, Subject
from workers.models.dit import DIT

LEVEL = np.array([40, 215])  # brightness of the two classes
CPU = torch.device("cpu")
Networks = tuple[tuple[nn.Module, ...], dict[str, nn.Module]]  # the blocks, and the baselines by task


@pytest.fixture(scope="module", autouse=True)
def _small_and_on_one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "STEPS", 50)  # two tones are soon told apart
        patch.setattr(frechet, "REPLICATES", 60)
        yield
    torch.set_num_threads(before)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The distance


def test_the_distance_of_two_diagonal_gaussians_is_the_textbooks() -> None:
    scale, shift = torch.tensor([1.0, 3.0, 0.5]), torch.tensor([2.0, 0.0, -1.0])
    one = moments(torch.randn(200_000, 3, generator=generator()))
    other = moments(scale * torch.randn(200_000, 3, generator=generator(1)) + shift)
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    assert frechet_distance(one, other) == pytest.approx(expected, rel=0.02)


def test_the_distance_agrees_with_a_general_matrix_square_root() -> None:
    one, other = (moments(torch.randn(50, 6, generator=generator(seed)) @ torch.randn(6, 6)) for seed in (0, 1))
    eigenvalues = torch.linalg.eigvals(one.covariance @ other.covariance)  # of a product: real, not symmetric
    expected = (
        (one.mean - other.mean).square().sum()
        + one.covariance.trace()
        + other.covariance.trace()
        - 2 * eigenvalues.real.clamp(min=0).sqrt().sum()
    )
    assert frechet_distance(one, other) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-9)


def test_fewer_rows_than_features_and_features_that_never_vary_have_a_distance() -> None:
    flat = torch.zeros(5, 8)
    assert frechet_distance(moments(flat), moments(flat + 1)) == pytest.approx(8.0)
    assert np.isfinite(frechet_distance(moments(torch.randn(4, 8)), moments(torch.randn(4, 8))))
    with pytest.raises(ValueError, match="covariance"):
        moments(torch.zeros(1, 3))


def test_bootstrap_errors_are_as_large_as_the_spread_over_new_samples() -> None:
    reference = torch.randn(2000, 4, generator=generator())
    fresh = [
        frechet_distance(moments(torch.randn(200, 4, generator=generator(seed)) + 0.5), moments(reference))
        for seed in range(1, 60)
    ]
    sample = torch.randn(200, 4, generator=generator(100)) + 0.5
    found = distances({"a": sample}, reference)
    assert found.standard_error("a") == pytest.approx(float(np.std(fresh)), rel=0.4)


def test_differences_are_paired_so_what_two_sets_have_in_common_cancels() -> None:
    common = torch.randn(300, 4, generator=generator())
    near = common + 0.01 * torch.randn(300, 4, generator=generator(1))
    found = distances({"a": common, "b": near, "far": common + 2}, torch.randn(500, 4, generator=generator(2)))
    assert found.difference("a", "b").error < 0.3 * found.standard_error("a")
    assert found.difference("far", "a").settled
    assert found.difference("far", "a").value == pytest.approx(found.values["far"] - found.values["a"])
    with pytest.raises(ValueError, match="number"):
        distances({"a": common, "b": near[:100]}, common)


# The job


def two_tones(rows: int, seed: int, *, shape: tuple[int, int, int] = (8, 8, 1)) -> Split:
    """Dark and bright images with a little structure: learnable in seconds."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, rows)
    images = LEVEL[labels][:, None, None, None] + random.integers(-20, 20, (rows, *shape))
    images[:, : shape[0] // 2] = 255 - images[:, : shape[0] // 2]
    return Split(inputs=images.astype(np.uint8), labels=labels.astype(np.int64))


def spec_of(**evaluation: Any) -> JobSpec:
    return small_spec(
        architecture={"kind": "dit", "options": {"depth": 2, "width": 32, "heads": 2, "patch": 4}},
        noise={"sigma_data": 0.7},
        evaluation={
            "baselines": ["end_to_end", "shallow_ensemble"],
            "batch_size": 50,
            "samples": 200,
            "sampling_steps": 12,
            **evaluation,
        },
    )


def plan_for(spec: JobSpec) -> JobPlan:
    facts = FACTS.model_copy(update={"class_names": ("dark", "bright")})
    return plan_job(spec, load_card("dit"), facts)


def trained(plan: JobPlan, data: Dataset, interval: tuple[float, float], layers: int, steps: int = 150) -> nn.Module:
    torch.manual_seed(layers)
    network = DIT.denoiser(plan.contract, layers)
    loss_of = DIT.denoising_loss(plan.contract, network, interval)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    draws = generator(layers)
    for step in range(steps):
        rows = torch.randint(len(data.train), (64,), generator=draws)
        labels = torch.from_numpy(data.train.targets[rows.numpy()])
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        optimizer.zero_grad()
        loss_of(Batch(images_of(data.train, rows, CPU), labels, 0.0), draws).backward()
        optimizer.step()
    return network.eval()


class FakeSubject(Subject):
    """A subject whose baselines are at hand instead of on disk."""

    networks: dict[str, nn.Module]

    def baselines(self) -> dict[str, nn.Module]:
        return self.networks


def subject_of(
    spec: JobSpec, data: Dataset, blocks: tuple[nn.Module, ...], networks: dict[str, nn.Module]
) -> FakeSubject:
    plan = plan_for(spec)
    plan = plan.model_copy(update={"tasks": tuple(t for t in plan.tasks if not t.steps or t.name in networks)})
    subject = FakeSubject(spec=spec, plan=plan, data=data, blocks=blocks, finals={}, device=CPU)
    object.__setattr__(subject, "networks", networks)
    return subject


def examine(subject: Subject) -> Examined:
    with torch.inference_mode():  # as evaluate() calls it
        return generation.examine(subject)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset(train=two_tones(600, 0), validation=two_tones(20, 1), test=two_tones(200, 2))


@pytest.fixture(scope="module")
def networks(data: Dataset) -> Networks:
    plan = plan_for(spec_of())
    blocks = tuple(trained(plan, data, (one.train_sigma_min, one.train_sigma_max), 1) for one in plan.blocks)
    whole_range = (plan.contract.sigma_min, plan.contract.sigma_max)
    shallow = trained(plan, data, whole_range, 1)
    return blocks, {
        "end_to_end": trained(plan, data, whole_range, 2),
        "shallow-0": shallow,
        "shallow-1": deepcopy(shallow),
    }


@pytest.fixture(scope="module")
def examined(data: Dataset, networks: Networks) -> Examined:
    return examine(subject_of(spec_of(), data, *networks))


def comparison(found: Examined) -> Comparison:
    assert isinstance(found.quality, Comparison)
    return found.quality


def values_of(found: Examined, metric: str) -> dict[str, float]:
    return {one.key: one.values[metric].value for one in comparison(found).contestants if metric in one.values}


def test_every_contestant_is_measured_and_the_blocks_come_first(examined: Examined) -> None:
    quality = comparison(examined)
    keys = [one.key for one in quality.contestants]
    assert keys == ["blocks", "end_to_end", "shallow", "shallow_ensemble", "reversed", "floor"]
    assert quality.primary == "frechet"
    metrics = {metric.key for metric in quality.metrics}
    assert metrics == {"frechet", "class_accuracy", "denoising_loss", "seconds"}
    for one in quality.contestants[:-1]:
        assert set(one.values) == metrics
    assert all(one.values["frechet"].standard_error for one in quality.contestants)


def test_blocks_generate_the_classes_they_are_asked_for_and_the_wrong_order_shows(examined: Examined) -> None:
    apart = values_of(examined, "frechet")
    assert values_of(examined, "class_accuracy")["blocks"] > 0.9
    assert apart["reversed"] > 1.5 * apart["blocks"]
    assert apart["floor"] < apart["blocks"]
    assert not any("reversed order" in warning for warning in examined.warnings)
    assert any(
        "In their right order the blocks are" in finding and "better" in finding for finding in examined.findings
    )


def test_a_sample_by_blocks_runs_a_blocks_layers_a_step(examined: Examined) -> None:
    layers = {one.key: one.layer_evaluations for one in comparison(examined).contestants}
    assert layers["blocks"] == 12 * 1
    assert layers["end_to_end"] == 12 * 2
    assert layers["shallow"] == 12 * 1
    assert layers["shallow_ensemble"] == 12 * 2
    assert layers["floor"] is None


def test_heun_and_guidance_are_counted_as_what_they_run(data: Dataset, networks: Networks) -> None:
    options = {"depth": 2, "width": 32, "heads": 2, "patch": 4, "sampler": "heun", "guidance": 2.0}
    spec = spec_of().model_copy(update={"architecture": spec_of().architecture.model_copy(update={"options": options})})
    subject = subject_of(spec, data, *networks)
    studio = Studio(
        DIT, subject.plan.contract, train_features(data.train, 2, CPU), torch.tensor([0, 1]), 5, 2, True, CPU
    )
    with torch.inference_mode():
        assert studio.draw(entrants_of(subject)[0]).layer_evaluations == 2 * (5 + 4)


def test_facts_of_blocks_say_their_loss_in_their_own_noise_levels(examined: Examined) -> None:
    quality = comparison(examined)
    assert [one.index for one in quality.blocks] == [0, 1]
    assert quality.blocks[0].sigma_min == quality.blocks[1].sigma_max
    assert sum(one.values["steps"] or 0 for one in quality.blocks) == 12
    for one in quality.blocks:
        assert set(one.values) == {metric.key for metric in quality.block_metrics}
        assert one.values["loss"] is not None
        assert one.values["loss_idle"] is not None
        assert one.values["loss"] < 0.8 * one.values["loss_idle"]
        assert one.values["difference"] == pytest.approx(one.values["loss"] - (one.values["loss_end_to_end"] or 0))
    assert not any("looks untrained" in warning for warning in examined.warnings)


def test_the_whole_loss_weighs_intervals_as_their_noise_levels_are_drawn(examined: Examined) -> None:
    blocks = comparison(examined).blocks
    mean = sum(one.values["loss"] or 0.0 for one in blocks) / 2  # equal mass
    assert values_of(examined, "denoising_loss")["blocks"] == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize("index", [0, 1])
def test_an_untrained_block_is_named_in_the_warnings(index: int, data: Dataset, networks: Networks) -> None:
    spec = spec_of(samples=0, baselines=[])
    blocks = list(networks[0])
    blocks[index] = DIT.denoiser(plan_for(spec).contract, 1).eval()
    found = examine(subject_of(spec, data, tuple(blocks), {}))
    assert any(warning.startswith(f"Block {index}: looks untrained") for warning in found.warnings)
    assert not any(warning.startswith(f"Block {1 - index}: looks untrained") for warning in found.warnings)


def test_without_samples_the_loss_is_the_headline_and_the_report_says_why(data: Dataset, networks: Networks) -> None:
    found = examine(subject_of(spec_of(samples=0), data, *networks))
    assert comparison(found).primary == "denoising_loss"
    assert comparison(found).samples == ()
    assert {metric.key for metric in comparison(found).metrics} == {"denoising_loss"}
    assert any("evaluation.samples" in warning for warning in found.warnings)


def test_a_block_that_no_sampling_step_reaches_is_warned_of(data: Dataset, networks: Networks) -> None:
    found = examine(subject_of(spec_of(sampling_steps=1, samples=8, baselines=[]), data, networks[0], {}))
    assert any(warning.startswith("Block 1: no sampling step") for warning in found.warnings)


def test_data_far_from_sigma_data_are_warned_of(data: Dataset, networks: Networks) -> None:
    spec = spec_of(samples=0, baselines=[])
    spec = spec.model_copy(update={"noise": spec.noise.model_copy(update={"sigma_data": 5.0})})
    found = examine(subject_of(spec, data, networks[0], {}))
    assert any("sigma_data is 5" in warning for warning in found.warnings)


def test_pictures_are_sheets_of_the_samples_in_their_own_size(examined: Examined) -> None:
    samples = comparison(examined).samples
    assert [one.title for one in samples][:2] == ["Assembled blocks", "End-to-end"]
    assert samples[-1].title == "Real images"
    for one in samples:
        assert one.png is not None
        sheet = Image.open(io.BytesIO(base64.b64decode(one.png)))
        assert (one.width, one.height) == sheet.size
        assert sheet.mode == "L"


def test_a_picture_lies_where_its_number_says() -> None:
    images = [torch.full((3, 30, 40), 20 * index, dtype=torch.uint8) for index in range(12)]
    sample = picture_grid(images, "title", "caption")
    assert sample.png is not None
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(sample.png))))
    assert sheet.shape == (62, 10 * 42 - 2, 3)
    assert sheet[15, 42 * 7 + 5].tolist() == [140, 140, 140]
    assert sheet[32 + 15, 42 + 5].tolist() == [220, 220, 220]


def test_arrays_of_float32_are_examined_without_pictures(data: Dataset) -> None:
    def floats(split: Split) -> Split:
        return Split(((split.inputs - 127.5) / 90).astype(np.float32), split.labels)

    spec = spec_of(baselines=[], samples=20, sampling_steps=3)
    plan = plan_for(spec)
    latents = Dataset(floats(data.train), floats(data.validation), floats(data.test))
    blocks = tuple(DIT.denoiser(plan.contract, 1).eval() for _ in plan.blocks)
    subject = subject_of(spec, latents, blocks, {})
    contract = plan.contract.model_copy(update={"preprocessing": "identity"})
    object.__setattr__(subject, "plan", plan.model_copy(update={"contract": contract, "tasks": ()}))
    found = examine(subject)
    assert comparison(found).samples == ()
    assert np.isfinite(values_of(found, "frechet")["blocks"])


def test_the_classifier_is_the_same_for_the_same_rows_and_learns_them(data: Dataset) -> None:
    first, second = (train_features(data.train, 2, CPU) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    rows = torch.from_numpy(data.test.inputs.copy()).permute(0, 3, 1, 2) / 127.5 - 1
    right = (first(rows).argmax(dim=1) == torch.from_numpy(data.test.targets.copy())).double().mean()
    assert right.item() > 0.95


def test_classes_are_asked_for_as_the_test_rows_have_them(data: Dataset) -> None:
    asked = asked_classes(data.test, 450)
    assert asked[:200].tolist() == data.test.targets.tolist() == asked[200:400].tolist()


def test_the_floor_has_real_images_of_the_classes_asked_for(data: Dataset) -> None:
    classes = np.array([1, 1, 1, 0, 7])
    rows = generation._real(data.train, classes)
    assert rows.targets[:4].tolist() == [1, 1, 1, 0]
    assert len(np.unique(rows.inputs[:3], axis=0)) == 3
    assert len(rows) == 5


def test_samples_come_out_the_same_again(examined: Examined, data: Dataset, networks: Networks) -> None:
    again = examine(subject_of(spec_of(), data, *networks))
    assert values_of(again, "frechet") == values_of(examined, "frechet")
    assert values_of(again, "denoising_loss") == values_of(examined, "denoising_loss")

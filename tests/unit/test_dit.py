"""The diffusion transformer: preconditioning, labels, loss, and the bytes its card promises."""

import math
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dbserve.cards import Sizes, load_card
from dbserve.contracts.plan import JobPlan
from dbserve.errors import ConfigInvalid
from dbserve.planner import plan_job
from tests.jobs import FACTS, small_spec
from workers.data import Batch, normalise
from workers.memory import SavedBytes, watching
from workers.method.noise import NoiseDistribution, sample_sigmas
from workers.method.objective import edm_target, edm_weight, noised, squared_error
from workers.models import architecture
from workers.models.cards import card_text
from workers.models.dit import DIT, NETWORK, DitNetwork, grid_positions, hidden
from workers.models.encoder import patches, unpatched
from workers.recompute import Recomputed

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"depth": 4, "width": 32, "heads": 4}


def plan_of(shape: tuple[int, int, int] = (8, 8, 1), **options: Any) -> JobPlan:
    spec = small_spec(architecture={"kind": "dit", "options": OPTIONS | options})
    return plan_job(spec, load_card("dit"), FACTS.model_copy(update={"image_shape": shape}))


def network_of(plan: JobPlan, layers: int = 2, *, awake: bool = True) -> DitNetwork:
    """A fresh one says F = 0; `awake` draws its head, and what else begins at zero, at random."""
    network = DIT.denoiser(plan.contract, layers)
    if awake:
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return network.eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(rows: int, shape: tuple[int, int, int]) -> Batch:
    height, width, channels = shape
    images = torch.randint(0, 256, (rows, channels, height, width), dtype=torch.uint8, generator=generator())
    return Batch(images, torch.randint(0, 10, (rows,), generator=generator()), 0.0)


def test_the_denoiser_is_edms_preconditioning_of_its_network() -> None:
    """Table 1 of the paper, written out by hand around the bare network F(c_in z, c_noise, y)."""
    network, data = network_of(plan_of()), 0.5
    z, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 4, 9])
    answers = network(z, torch.tensor([0.01, 0.7, 30.0]), labels)
    for row, sigma in enumerate((0.01, 0.7, 30.0)):
        scaled = z[row : row + 1] / math.sqrt(sigma**2 + data**2)
        angles = math.log(sigma) / 4 * network.time.frequencies
        condition = network.time.layers(torch.cat((angles.sin(), angles.cos()))) + network.labels.weight[labels[row]]
        x = network.embedding(patches(scaled, 2)) + network.positions + condition
        for layer in network.layers:
            x = layer(x)
        raw = unpatched(network.head(network.norm(x)), 2, (8, 8, 1))
        skip = data**2 / (sigma**2 + data**2)
        expected = skip * z[row : row + 1] + sigma * data / math.sqrt(sigma**2 + data**2) * raw
        torch.testing.assert_close(answers[row : row + 1], expected, atol=1e-4, rtol=1e-4)


def test_a_fresh_network_passes_the_scaled_input_on_and_its_loss_is_near_one() -> None:
    plan = plan_of()
    network = network_of(plan, awake=False)
    targets = 0.5 * torch.randn(4000, 1, 8, 8, generator=generator())
    sigma = torch.tensor([0.01, 0.3, 1.0, 40.0]).repeat(1000)
    z = noised(targets, sigma, generator=generator(1))
    labels = torch.zeros(4000, dtype=torch.int64)
    with torch.no_grad():
        answer = network(z, sigma, labels)
    torch.testing.assert_close(answer, z * (0.25 / (sigma**2 + 0.25))[:, None, None, None])
    assert edm_target(targets, z, sigma, 0.5).square().mean().item() == pytest.approx(1.0, abs=0.02)


def test_the_loss_is_the_weighted_squared_error_of_the_denoised_images() -> None:
    """EDM's eq. 8, from the draws that the loss makes: noise levels, noise, hidden classes."""
    plan = plan_of((8, 12, 3))
    network, batch, contract = network_of(plan), batch_of(64, (8, 12, 3)), plan.contract
    assert contract.p_mean is not None
    assert contract.p_std is not None
    loss = DIT.denoising_loss(contract, network, (0.05, 20.0))(batch, generator(1))
    random, targets = generator(1), normalise(batch.inputs)
    sigma = sample_sigmas(64, (0.05, 20.0), NoiseDistribution(contract.p_mean, contract.p_std), generator=random)
    z = noised(targets, sigma, generator=random)
    answer = network(z, sigma, hidden(batch.targets, 0.1, 10, generator=random))
    by_hand = (edm_weight(sigma, 0.5) * squared_error(answer, targets)).mean()
    torch.testing.assert_close(loss, by_hand, rtol=1e-4, atol=0)
    assert loss.dtype == torch.float32


def test_answers_that_would_broadcast_onto_their_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        squared_error(torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 1))


def test_noised_images_lie_their_own_sigma_away() -> None:
    targets = torch.randn(4, 3, 40, 40, generator=generator())
    sigma = torch.tensor([0.01, 0.5, 3.0, 80.0])
    z = noised(targets, sigma, generator=generator(1))
    torch.testing.assert_close((z - targets).flatten(1).std(dim=1), sigma, rtol=0.03, atol=0)


def test_label_dropout_hides_its_share_of_the_classes_behind_the_null_class() -> None:
    labels = torch.arange(10).repeat(2000)
    seen = hidden(labels, 0.1, 10, generator=generator())
    assert (seen == 10).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(seen[seen != 10], labels[seen != 10])
    assert torch.equal(hidden(labels, 0.0, 10, generator=generator()), labels)


def test_the_null_class_learns_when_labels_are_dropped_and_is_absent_when_they_are_not() -> None:
    plan = plan_of(label_dropout=0.5)
    network = network_of(plan)
    DIT.denoising_loss(plan.contract, network, (0.1, 1.0))(batch_of(64, (8, 8, 1)), generator()).backward()
    gradient = network.labels.weight.grad
    assert gradient is not None
    assert gradient.shape == (11, 32)
    assert gradient[10].abs().max() > 0
    assert len(network_of(plan_of(label_dropout=0.0)).labels.weight) == 10


def test_guidance_without_a_null_class_is_refused_at_guidance() -> None:
    with pytest.raises(ConfigInvalid, match="label_dropout") as refused:
        plan_of(label_dropout=0.0, guidance=2.0)
    assert "/architecture/options/guidance" in str(refused.value.__dict__) + str(refused.value)
    plan_of(label_dropout=0.0, guidance=1.0)
    plan_of(guidance=2.0)


@pytest.mark.parametrize(
    ("options", "name"), [({"heads": 3}, "heads"), ({"width": 30, "heads": 3}, "width"), ({"patch": 3}, "patch")]
)
def test_sizes_that_do_not_divide_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"{name} \\("):
        plan_of(**options)


def test_guidance_of_one_is_the_conditional_answer_and_more_goes_beyond_it() -> None:
    network = network_of(plan_of())
    z, sigma, labels = torch.randn(3, 1, 8, 8), torch.full((3,), 0.5), torch.tensor([1, 2, 3])
    conditional, nothing = network(z, sigma, labels), network(z, sigma, torch.full((3,), 10))
    assert torch.equal(DIT.of_classes(network, labels, 1.0)(z, sigma), conditional)
    guided = DIT.of_classes(network, labels, 3.0)(z, sigma)
    torch.testing.assert_close(guided, nothing + 3.0 * (conditional - nothing))
    assert (guided - conditional).abs().max() > 1e-3


@pytest.mark.parametrize("conditioning", ["add", "adaln_low_rank", "adaln"])
def test_z_sigma_class_and_place_all_reach_the_answer(conditioning: str) -> None:
    network = network_of(plan_of(conditioning=conditioning))
    z, sigma, labels = torch.randn(2, 1, 8, 8), torch.full((2,), 1.0), torch.tensor([1, 2])
    answer = network(z, sigma, labels)
    turned = network(z.roll(2, dims=3), sigma, labels).roll(-2, dims=3)
    others = (network(-z, sigma, labels), network(z, sigma, labels + 1), turned)
    assert all((other - answer).abs().max().item() > 1e-3 for other in others)
    bare = (network(z, sigma, labels) - network(z, 1.2 * sigma, labels)).abs().max()
    assert bare.item() > 1e-3


def test_positions_tell_every_patch_from_every_other() -> None:
    positions = grid_positions(5, 7, 32)[0]
    assert positions.shape == (35, 32)
    assert torch.cdist(positions, positions).add(10 * torch.eye(35)).min().item() > 0.5
    row_of = positions[:, 16:].view(5, 7, 16)
    torch.testing.assert_close(row_of[2, 0], row_of[2, 6])  # the second half says the row


def test_blocks_share_no_storage_and_hold_only_what_is_trained() -> None:
    plan = plan_of()
    first, second = network_of(plan), network_of(plan)
    storages = [
        {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
        for network in (first, second)
    ]
    assert not storages[0] & storages[1]
    assert set(first.state_dict()) == {name for name, _ in first.named_parameters()}


def test_arrays_of_float32_are_learnt_as_they_are() -> None:
    plan = plan_of((8, 8, 4))
    latents = Batch(7.0 * torch.randn(4, 4, 8, 8), torch.tensor([0, 1, 2, 3]), 0.0)
    network = network_of(plan, awake=False)
    loss = DIT.baseline_loss(plan.contract, network)(latents, generator())
    assert loss.item() > 10  # of a standard deviation 14 times sigma_data


def test_a_few_steps_on_its_interval_lower_a_blocks_loss() -> None:
    plan = plan_of()
    torch.manual_seed(0)
    network = DIT.denoiser(plan.contract, 1)
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (32, 1, 8, 4))
    batch = Batch(torch.from_numpy(stripes), torch.zeros(32, dtype=torch.int64), 0.0)
    loss_of = DIT.denoising_loss(plan.contract, network, (0.3, 2.0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = list[float]()
    for step in range(40):
        optimizer.zero_grad()
        loss = loss_of(batch, generator(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])


def test_equal_generators_give_equal_losses_and_other_ones_others() -> None:
    plan = plan_of(dropout=0.0)
    loss_of = DIT.denoising_loss(plan.contract, network_of(plan), (0.1, 1.0))
    batch = batch_of(16, (8, 8, 1))
    assert torch.equal(loss_of(batch, generator(1)), loss_of(batch, generator(1)))
    assert not torch.equal(loss_of(batch, generator(1)), loss_of(batch, generator(2)))


def sizes_of(shape: tuple[int, int, int], batch: int, bytes_: int, plan: JobPlan) -> Sizes:
    height, width_px, channels = shape
    names = plan.contract.options | {
        "classes": 10,
        "height": height,
        "width_px": width_px,
        "channels": channels,
        "batch": batch,
        "bytes": bytes_,
        "sigma_data": 0.5,
        "blocks": 2,
    }
    return Sizes(load_card("dit"), names, plan.training)  # type: ignore[arg-type]


FOOTPRINTS: list[tuple[dict[str, Any], tuple[int, int, int], int, int]] = [
    ({}, (8, 8, 1), 8, 1),
    ({"width": 48, "mlp": 100}, (8, 12, 3), 16, 4),
    ({"conditioning": "adaln_low_rank", "label_dropout": 0.0}, (8, 8, 1), 8, 2),
    ({"conditioning": "adaln", "dropout": 0.1, "patch": 4}, (8, 8, 3), 4, 3),
    ({"dropout": 0.2}, (14, 14, 1), 4, 2),
]


@pytest.mark.parametrize(("options", "shape", "batch", "layers"), FOOTPRINTS)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_card_says_the_measured_bytes(
    options: dict[str, Any], shape: tuple[int, int, int], batch: int, layers: int, bf16: bool, recomputed: bool
) -> None:
    plan = plan_of(shape, **options)
    sizes = sizes_of(shape, batch, 2 if bf16 else 4, plan)
    network = network_of(plan, layers).train()
    loss_of = DIT.denoising_loss(plan.contract, network, (0.01, 1.0))
    saved = SavedBytes.of(network)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        if recomputed:
            layers_recomputed = Recomputed(network)
            with watching(saved), layers_recomputed.counting(saved):
                loss = loss_of(batch_of(batch, shape), generator())
        else:
            with watching(saved):
                loss = loss_of(batch_of(batch, shape), generator())
    formula = NETWORK.checkpointed if recomputed else NETWORK.activations
    assert formula is not None
    assert sizes.number(formula, layers=layers) == pytest.approx(saved.total, rel=0.001)
    assert sizes.number(NETWORK.parameters, layers=layers) == sum(p.numel() for p in network.parameters())
    loss.backward()


def test_hidden_matrices_are_the_matrices_of_the_layers() -> None:
    plan = plan_of(mlp=48)
    network = network_of(plan, 3)
    matrices = sum(
        parameter.numel()
        for layer in network.residual_layers()
        for parameter in layer.parameters()
        if parameter.ndim == 2
    )
    assert NETWORK.hidden_matrices is not None
    assert sizes_of((8, 8, 1), 8, 4, plan).number(NETWORK.hidden_matrices, layers=3) == matrices


@pytest.mark.parametrize("shape", [(14, 14, 1), (32, 32, 3)])
def test_a_third_of_the_layers_takes_little_more_than_a_third_of_the_bytes(shape: tuple[int, int, int]) -> None:
    spec = small_spec(
        architecture={"kind": "dit", "options": {"depth": 6, "width": 64}},
        blocks={"count": 3},
        training={"steps": 1, "batch_size": 128},
    )
    plan = plan_job(spec, load_card("dit"), FACTS.model_copy(update={"image_shape": shape}))
    assert plan.memory_ratio < 0.36


def test_the_card_in_the_package_is_that_of_the_network() -> None:
    assert architecture("dit") is DIT
    assert (files("dbserve.cards") / "dit.json").read_text(encoding="utf-8") == card_text(DIT)

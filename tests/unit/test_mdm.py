"""Masked diffusion's network: what it may say, what teaches it, and the bytes its card promises."""

import math
from importlib.resources import files
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dbserve.cards import Sizes, load_card
from dbserve.contracts.plan import JobPlan, Vocabulary
from dbserve.errors import ConfigInvalid
from dbserve.planner import plan_job
from tests.jobs import FACTS, small_spec
from workers.data import Batch
from workers.memory import SavedBytes, watching
from workers.method.masking import loss_weights, masked_positions, stratified_levels
from workers.models import architecture
from workers.models.cards import card_text
from workers.models.mdm import FOOTPRINT, MDM, MaskedTransformer, Options
from workers.recompute import Recomputed

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"depth": 4, "width": 32, "heads": 4}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def plan_of(vocabulary: int = 27, length: int = 16, *, spec: dict[str, Any] | None = None, **options: Any) -> JobPlan:
    facts = FACTS.model_copy(
        update={
            "image_shape": None,
            "class_names": (),
            "encoding": "text",
            "vocabulary": Vocabulary(kind="characters", size=vocabulary, sha256="0" * 64),
            "sequence_length": length,
        }
    )
    asked = {"architecture": {"kind": "mdm", "options": OPTIONS | options}, **(spec or {})}
    data = {"uri": "builtin:digits", "sequence_length": length}
    return plan_job(small_spec(**{"data": data, **asked}), load_card("mdm"), facts)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(rows: int, vocabulary: int, length: int) -> Batch:
    return Batch(torch.randint(0, vocabulary, (rows, length), generator=generator(5)), None, 0.0)


def test_the_mask_is_an_input_and_never_an_answer() -> None:
    network = MDM.denoiser(plan_of(table=40).contract, 2)
    assert network.mask == 40
    assert network.embedding.weight.shape == (41, 32)
    logits = network(torch.full((2, 16), network.mask))
    assert logits.shape == (2, 16, 27)
    assert network.table.untyped_storage().data_ptr() == network.embedding.weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("chunk", [None, 7])
def test_the_loss_is_the_cross_entropy_of_masked_tokens_and_no_other(chunk: int | None) -> None:
    plan = plan_of(loss_chunk=chunk)
    network = MDM.denoiser(plan.contract, 2)
    batch = batch_of(6, 27, 16)
    loss = MDM.denoising_loss(plan.contract, network, (0.2, 0.7))(batch, generator(1))
    noise = generator(1)
    levels = stratified_levels(6, (0.2, 0.7), generator=noise)
    masked = masked_positions(levels, 16, generator=noise)
    assert 0 < masked.sum() < masked.numel()
    logits = network(batch.inputs.masked_fill(masked, network.mask))
    losses = F.cross_entropy(logits.flatten(0, 1), batch.inputs.flatten(), reduction="none").view(6, 16)
    torch.testing.assert_close(loss, (loss_weights(masked) * losses).sum())
    assert loss.dtype == torch.float32
    # The loss does not know the tokens behind the masks but as targets: visible ones are no targets.
    torch.testing.assert_close(loss, torch.stack([losses[row][masked[row]].mean() for row in range(6)]).mean())


def test_a_fresh_network_knows_nothing_its_loss_is_near_ln_of_the_vocabulary() -> None:
    for vocabulary in (27, 2000):
        plan = plan_of(vocabulary, width=64)
        loss_of = MDM.baseline_loss(plan.contract, MDM.baseline(plan.contract, 4))
        loss = loss_of(batch_of(64, vocabulary, 16), generator())
        assert loss.item() == pytest.approx(math.log(vocabulary), abs=0.2)


def test_a_token_behind_a_mask_cannot_be_seen_and_both_sides_of_it_can() -> None:
    network = MDM.denoiser(plan_of().contract, 2).eval()
    tokens = batch_of(1, 26, 16).inputs
    masked = torch.zeros(1, 16, dtype=torch.bool)
    masked[0, 7] = True
    other = tokens.clone()
    other[0, 7] = 26
    answer = network(tokens.masked_fill(masked, network.mask))
    assert torch.equal(answer, network(other.masked_fill(masked, network.mask)))
    for place in (0, 15):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 26
        assert (network(changed.masked_fill(masked, network.mask)) - answer)[0, 7].abs().max() > 1e-5


def test_a_block_trains_on_its_interval_the_last_one_up_to_its_reach_and_the_baseline_on_all() -> None:
    plan = plan_of(spec={"blocks": {"count": 4, "overlap": 0.1}}, low_mask_reach=0.6)
    assert plan.contract.edges == pytest.approx((1.0, 49 / 64, 34 / 64, 19 / 64, 1 / 16))
    width = 15 / 64
    trained = [(block.train_sigma_min, block.train_sigma_max) for block in plan.blocks]
    assert trained[1] == pytest.approx((34 / 64 - 0.1 * width, 49 / 64 + 0.1 * width))
    assert trained[3] == pytest.approx((1 / 16, 0.6))
    assert (plan.contract.p_mean, plan.contract.p_std) == (None, None)
    seen: list[float] = []

    class Watched(MaskedTransformer):
        def features(self, tokens: torch.Tensor) -> torch.Tensor:
            seen.extend((tokens == self.mask).float().mean(dim=1).tolist())
            return super().features(tokens)

    network = Watched(Options.model_validate(plan.contract.options), plan.contract, 1)
    batch = batch_of(64, 27, 16)
    MDM.denoising_loss(plan.contract, network, (0.7, 1.0))(batch, generator())
    assert sum(seen) / len(seen) == pytest.approx(0.85, abs=0.05)
    seen.clear()
    MDM.baseline_loss(plan.contract, network)(batch, generator())
    assert sum(seen) / len(seen) == pytest.approx(0.55, abs=0.05)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"heads": 3}, "heads"),
        ({"width": 33, "heads": 3}, "width"),
        ({"positions": 15}, "positions"),
        ({"table": 26}, "table"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        plan_of(**options)
    assert refused.value.pointer == f"/architecture/options/{name}"


def test_equal_generators_give_equal_losses_and_other_ones_others() -> None:
    plan = plan_of()
    loss_of = MDM.denoising_loss(plan.contract, MDM.denoiser(plan.contract, 2), (0.3, 0.7))
    batch = batch_of(8, 27, 16)
    assert torch.equal(loss_of(batch, generator(1)), loss_of(batch, generator(1)))
    assert not torch.equal(loss_of(batch, generator(1)), loss_of(batch, generator(2)))


def test_a_few_steps_teach_a_block_which_tokens_are_frequent() -> None:
    plan = plan_of(4, 16)
    network = MDM.denoiser(plan.contract, 1)
    loss_of = MDM.denoising_loss(plan.contract, network, (0.5, 1.0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    tokens = torch.multinomial(torch.tensor([0.7, 0.2, 0.1, 1e-6]), 64 * 16, replacement=True, generator=generator())
    batch = Batch(tokens.view(64, 16), None, 0.0)
    noise = generator(1)
    losses: list[float] = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_of(batch, noise)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(4), abs=0.2)
    assert losses[-1] < 1.0  # the entropy is 0.80


FOOTPRINTS: list[tuple[dict[str, Any], int, int, int, int]] = [
    ({}, 27, 16, 8, 1),  # options, vocabulary, tokens, rows, layers
    ({"width": 48, "mlp": 100, "positions": 40, "table": 50}, 27, 24, 4, 3),
    ({"dropout": 0.1}, 300, 32, 4, 2),
    ({"dropout": 0.2, "loss_chunk": 50}, 500, 32, 8, 4),
    ({"loss_chunk": 10_000, "table": 1200}, 1000, 16, 8, 1),
]


def sizes_of(vocabulary: int, length: int, batch: int, bytes_: int, plan: JobPlan) -> Sizes:
    names = plan.contract.options | {
        "vocabulary": vocabulary,
        "sequence_length": length,
        "batch": batch,
        "bytes": bytes_,
        "sigma_data": 0.5,
        "blocks": 2,
    }
    return Sizes(load_card("mdm"), names, plan.training)  # type: ignore[arg-type]


@pytest.mark.parametrize(("options", "vocabulary", "length", "batch", "layers"), FOOTPRINTS)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_card_says_the_measured_bytes(
    options: dict[str, Any], vocabulary: int, length: int, batch: int, layers: int, bf16: bool, recomputed: bool
) -> None:
    plan = plan_of(vocabulary, length, **options)
    sizes = sizes_of(vocabulary, length, batch, 2 if bf16 else 4, plan)
    network = MDM.denoiser(plan.contract, layers).train()
    loss_of = MDM.denoising_loss(plan.contract, network, (0.1, 0.4))
    saved = SavedBytes.of(network)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        if recomputed:
            layers_recomputed = Recomputed(network)
            with watching(saved), layers_recomputed.counting(saved):
                loss = loss_of(batch_of(batch, vocabulary, length), generator())
        else:
            with watching(saved):
                loss = loss_of(batch_of(batch, vocabulary, length), generator())
    formula = FOOTPRINT.checkpointed if recomputed else FOOTPRINT.activations
    assert formula is not None
    assert sizes.number(formula, layers=layers) == pytest.approx(saved.total, rel=0.001)
    assert sizes.number(FOOTPRINT.parameters, layers=layers) == sum(p.numel() for p in network.parameters())
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_hidden_matrices_are_the_matrices_of_the_layers() -> None:
    plan = plan_of(mlp=48)
    layers = MDM.denoiser(plan.contract, 3).residual_layers()
    matrices = sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2)
    assert FOOTPRINT.hidden_matrices is not None
    assert sizes_of(27, 16, 8, 4, plan).number(FOOTPRINT.hidden_matrices, layers=3) == matrices


@pytest.mark.parametrize(
    ("vocabulary", "options"),
    [(27, {"depth": 6, "width": 128}), (5000, {"depth": 6, "width": 256, "loss_chunk": 1024}), (256, {"depth": 12})],
)
def test_a_third_of_the_layers_takes_well_under_half_of_the_bytes(vocabulary: int, options: dict[str, Any]) -> None:
    spec = {"blocks": {"count": 3}, "training": {"steps": 1, "batch_size": 32}}
    plan = plan_of(vocabulary, 128, spec=spec, **{"width": 128, **options})
    assert plan.memory_ratio <= 0.45


def test_blocks_share_no_storage_and_hold_only_what_is_trained() -> None:
    contract = plan_of().contract
    blocks = [MDM.denoiser(contract, 2) for _ in range(2)]
    storages = [{p.untyped_storage().data_ptr() for p in block.parameters()} for block in blocks]
    assert not storages[0] & storages[1]
    assert set(blocks[0].state_dict()) == {name for name, _ in blocks[0].named_parameters()}


def test_the_card_in_the_package_is_that_of_the_network() -> None:
    assert architecture("mdm") is MDM
    assert (files("dbserve.cards") / "mdm.json").read_text(encoding="utf-8") == card_text(MDM)

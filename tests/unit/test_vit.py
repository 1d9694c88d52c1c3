import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbserve.contracts.plan import JobPlan
from dbserve.planner import load_card, plan_job
from tests.jobs import FACTS, small_spec
from workers.method.codes import log_posterior
from workers.models import ARCHITECTURES, architecture
from workers.models.cards import card_text
from workers.models.dropout import Dropout
from workers.models.encoder import Layer, patches
from workers.models.protocol import Answering
from workers.models.vit import Options, VitClassifier, VitDenoiser

VIT = ARCHITECTURES["vit"]
PUBLISHED = {
    "codes": "unit_norm",
    "readout": "linear",
    "z_input": "raw",
    "chain_init": "noise",
    "conditioning": "adaln_low_rank",
}


def plan_of(image_shape: tuple[int, int, int] = (8, 8, 1), **options: Any) -> JobPlan:
    options = {"depth": 2, "width": 16, "heads": 2, "patch": 4, **options}
    spec = small_spec(architecture={"kind": "vit", "options": options})
    return plan_job(spec, load_card("vit"), FACTS.model_copy(update={"image_shape": image_shape}))


def denoiser(plan: JobPlan, layers: int = 2) -> VitDenoiser:
    network = VIT.denoiser(plan.contract, layers)
    assert isinstance(network, VitDenoiser)
    return network.eval()


def images(rows: int, shape: tuple[int, int, int] = (8, 8, 1)) -> Tensor:
    return torch.rand(rows, shape[2], shape[0], shape[1]) * 2 - 1


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_the_card_of_every_architecture_is_the_one_its_network_writes() -> None:
    for kind, network in ARCHITECTURES.items():
        assert load_card(kind).model_dump_json(indent=2) + "\n" == card_text(network), "run `make cards`"


def test_options_the_planner_completes_are_the_networks_own_defaults() -> None:
    contract = plan_job(
        small_spec(architecture={"kind": "vit", "options": {"depth": 2}}), load_card("vit"), FACTS
    ).contract
    assert Options.model_validate(contract.options) == Options(depth=2)


@pytest.mark.parametrize("conditioning", ["add", "adaln", "adaln_low_rank"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_last_layer_computes_for_the_cls_token_exactly_what_the_whole_layer_would(
    conditioning: Any, dropout: float
) -> None:
    options = Options(width=24, heads=3, mlp=40, conditioning=conditioning, dropout=dropout)
    whole = Layer(options.layer(), updated=None, modulated=conditioning != "add").eval()
    last = Layer(options.layer(), updated=1, modulated=conditioning != "add").eval()
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.3)
    last.load_state_dict(whole.state_dict())
    x, condition = torch.randn(5, 9, 24), torch.randn(5, 24)
    torch.testing.assert_close(last(x, condition), whole(x, condition)[:, :1])


def test_attention_is_that_of_torchs_own_multi_head_layer() -> None:
    layer = Layer(Options(width=24, heads=3, mlp=40).layer(), updated=None, modulated=False).eval()
    reference = nn.TransformerEncoderLayer(24, 3, 40, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    pairs = {
        "self_attn.in_proj": layer.qkv,
        "self_attn.out_proj.": layer.projection,
        "linear1.": layer.expand,
        "linear2.": layer.contract,
        "norm1.": layer.attention_norm,
        "norm2.": layer.mlp_norm,
    }
    state = {
        f"{name}{'' if name.endswith('.') else '_'}{kind}": getattr(module, kind)
        for name, module in pairs.items()
        for kind in ("weight", "bias")
    }
    reference.load_state_dict(state)
    x = torch.randn(4, 7, 24)
    torch.testing.assert_close(layer(x), reference(x))


def test_patches_are_cut_row_by_row_without_mixing_pixels() -> None:
    shape = (8, 12, 3)
    trunk = denoiser(plan_of(shape)).trunk
    x = images(2, shape)
    torch.testing.assert_close(patches(x, trunk.patch), F.unfold(x, 4, stride=4).transpose(1, 2))


@pytest.mark.parametrize(
    "options", [{}, PUBLISHED, {"conditioning": "adaln", "codes": "orthonormal"}, {"dropout": 0.2}]
)
def test_a_fresh_network_knows_nothing_its_loss_is_near_ln_of_the_classes(options: dict[str, Any]) -> None:
    plan = plan_of(width=64, heads=4, **options)
    x, labels = images(256), torch.randint(0, 10, (256,))
    z = torch.zeros(256, plan.contract.code_dim)
    for logits in (
        denoiser(plan)(x, z, torch.full((256,), plan.contract.sigma_max)),
        VIT.baseline(plan.contract, 2).eval()(x),
    ):
        assert logits.shape == (256, 10)
        assert F.cross_entropy(logits, labels).item() == pytest.approx(math.log(10), abs=0.3)


def test_the_bayes_readout_adds_what_z_alone_says_and_nothing_at_sigma_max() -> None:
    plan = plan_of()
    network = denoiser(plan)
    codes = VIT.codes(plan.contract)
    x, z = images(10), codes + 0.1 * torch.randn(10, 9)
    clear, blind = torch.full((10,), 0.01), torch.full((10,), 1e6)
    assert torch.equal(network(x, z, clear).argmax(1), torch.arange(10))
    torch.testing.assert_close(log_posterior(z, codes, blind), torch.full((10, 10), -math.log(10)))
    torch.testing.assert_close(network(x, z, blind), network(x, torch.zeros_like(z), blind), atol=1e-4, rtol=1e-4)


def test_the_linear_readout_says_only_what_the_head_says() -> None:
    plan = plan_of(**PUBLISHED)
    network = denoiser(plan)
    nn.init.zeros_(network.head.weight)
    nn.init.zeros_(network.head.bias)
    z = VIT.codes(plan.contract)
    assert not network(images(10), z, torch.full((10,), 0.01)).any()
    assert VIT.answering(plan.contract) == Answering(init="noise", bridge="soft", decode=None)
    assert plan.contract.code_dim == 16


@pytest.mark.parametrize("z_input", ["posterior_mean", "raw"])
def test_image_z_and_sigma_all_reach_the_answer(z_input: str) -> None:
    plan = plan_of(z_input=z_input, readout="linear")
    network = denoiser(plan)
    x, z, sigma = images(3), torch.randn(3, 9), torch.full((3,), 1.0)
    answer = network(x, z, sigma)
    for other in (network(-x, z, sigma), network(x, -z, sigma), network(x, z, 20 * sigma)):
        assert (other - answer).abs().max().item() > 1e-4


def test_two_blocks_share_no_storage_and_hold_only_what_is_trained() -> None:
    plan = plan_of()
    first, second = denoiser(plan), denoiser(plan)
    storages = [
        {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
        for network in (first, second)
    ]
    assert not storages[0] & storages[1]
    assert set(first.state_dict()) == {name for name, _ in first.named_parameters()}
    assert len(storages[0]) == len(list(first.parameters())) + len(list(first.buffers()))


@pytest.mark.parametrize("conditioning", ["adaln", "adaln_low_rank"])
def test_a_fresh_modulated_layer_passes_its_input_on(conditioning: Any) -> None:
    layer = Layer(Options(width=24, heads=3, conditioning=conditioning).layer(), updated=None, modulated=True)
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(layer(x, torch.randn(2, 24)), x)


def test_baseline_and_block_differ_only_in_what_brings_z_and_sigma_in() -> None:
    plan = plan_of()
    baseline = architecture("vit").baseline(plan.contract, 2)
    assert isinstance(baseline, VitClassifier)
    own = {name for name, _ in denoiser(plan).named_parameters() if not name.startswith(("time.", "z_projection."))}
    assert own == {name for name, _ in baseline.named_parameters()}


@pytest.mark.parametrize("shape", [(64, 63), (5,), (3, 7, 11)])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_share_scales_the_rest_and_masks_the_gradient_alike(shape: tuple[int, ...], p: float) -> None:
    x = torch.ones(shape, requires_grad=True)
    out = Dropout(p)(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, out.detach())
    torch.testing.assert_close(out[out > 0], torch.full_like(out[out > 0], 1 / (1 - p)), rtol=1e-4, atol=0)


def test_dropout_keeps_the_mean_draws_anew_and_repeats_under_a_seed() -> None:
    layer, x = Dropout(0.3), torch.ones(400, 1000)
    first, second = layer(x), layer(x)
    assert (first == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)
    assert first.mean().item() == pytest.approx(1.0, abs=0.005)
    both = ((first == 0) & (second == 0)).float().mean().item()
    assert both == pytest.approx(0.09, abs=0.005)
    neighbours = ((first[:, 1:] == 0) & (first[:, :-1] == 0)).float().mean().item()
    assert neighbours == pytest.approx(0.09, abs=0.005)
    torch.manual_seed(5)
    again = layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), again)


@pytest.mark.parametrize("p", [1e-9, 1 - 1e-9])
def test_dropout_at_its_limits_stays_finite(p: float) -> None:
    assert torch.isfinite(Dropout(p)(torch.ones(1000))).all()


def test_dropout_is_absent_from_evaluation() -> None:
    x = torch.randn(8, 8)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dbserve.contracts.plan import JobPlan
from dbserve.errors import ConfigInvalid
from dbserve.planner import load_card, plan_job
from tests.jobs import small_spec
from tests.plans import TEXT
from workers.data import Batch
from workers.memory import counting_saved_bytes
from workers.method.noise import NoiseDistribution
from workers.method.tokens import noised_tokens, stratified_sigmas
from workers.models.cards import card_text
from workers.models.llama import LLAMA, LlamaDecoder, LlamaDenoiser, Options, Reading
from workers.recompute import Recomputed

VOCABULARY = 256


def plan_of(
    batch: int = 4,
    precision: str = "fp32",
    count: int = 2,
    length: int = 16,
    recompute: bool = False,
    **options: Any,
) -> JobPlan:
    options = {"depth": 4, "width": 24, "heads": 2, **options}
    spec = small_spec(
        architecture={"kind": "llama", "options": options},
        blocks={"count": count},
        training={
            "steps": 20,
            "batch_size": batch,
            "precision": precision,
            "activation_checkpointing": recompute,
        },
    )
    return plan_job(spec, LLAMA.card(), TEXT.model_copy(update={"sequence_length": length}))


def denoiser(plan: JobPlan | None = None, layers: int = 2) -> LlamaDenoiser:
    return LLAMA.denoiser((plan or plan_of()).contract, layers)


def text(rows: int = 4, length: int = 16) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length))


def shaken(network: LlamaDenoiser) -> LlamaDenoiser:
    """With weights large enough that everything matters."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_the_card_is_the_one_the_network_writes() -> None:
    assert load_card("llama").model_dump_json(indent=2) + "\n" == card_text(LLAMA), "run `make cards`"
    assert load_card("llama").experimental


def test_options_the_planner_completes_are_the_networks_own_defaults() -> None:
    contract = plan_job(
        small_spec(architecture={"kind": "llama", "options": {"depth": 2}}), LLAMA.card(), TEXT
    ).contract
    assert Options.model_validate(contract.options) == Options(depth=2)


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"width": 30, "heads": 4}, "/heads"),
        ({"width": 12, "heads": 4}, "/heads"),
        ({"heads": 2, "kv_heads": 4}, "/kv_heads"),
        ({"table": 100}, "/table"),
        ({"positions": 15}, "/positions"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, int], pointer: str) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        plan_of(**options)
    assert refusal.value.pointer == f"/architecture/options{pointer}"


def test_the_noise_range_goes_from_nothing_to_tell_to_nothing_left_to_tell() -> None:
    contract = plan_of(code_dim=128).contract
    codes, tokens = denoiser(plan_of(code_dim=128)).codes, text(64)
    for sigma, wanted in ((contract.sigma_max, math.log(VOCABULARY)), (contract.sigma_min, 0.0)):
        level = torch.full((64,), sigma)
        z = noised_tokens(codes, tokens, level, generator=torch.Generator().manual_seed(0))
        logits = z @ codes.T / sigma**2
        assert float(F.cross_entropy(logits.flatten(0, 1), tokens.flatten())) == pytest.approx(wanted, abs=0.05)
    assert contract.edges[0] == contract.sigma_max == 8.0


def test_fresh_networks_know_nothing() -> None:
    plan, tokens = plan_of(width=64), text(8)
    for network in (denoiser(plan), LLAMA.baseline(plan.contract, 4)):
        loss = F.cross_entropy(network(tokens).flatten(0, 1), tokens.flatten())
        assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=0.05)
    sigma = torch.full((8,), plan.contract.sigma_max)
    logits = denoiser(plan).denoise(tokens, torch.zeros(8, 16, plan.contract.code_dim), sigma)
    assert float(F.cross_entropy(logits.flatten(0, 1), tokens.flatten())) == pytest.approx(math.log(256), abs=0.05)


def moved(network: LlamaDenoiser, shift: int) -> Tensor:
    """Whether (T, T) the answer at place t depends on token s, with z held; inputs shifted by `shift` places more."""
    tokens = text(1, 8)
    embedded = network.embedding(tokens).detach().requires_grad_()
    start = network.start.detach().expand(1, 1, -1)
    inputs = torch.cat((start, embedded), dim=1)[:, shift : shift + 8]
    z, sigma = torch.randn(1, 8, network.codes.shape[1]), torch.tensor([0.5])
    answer = network.answer(network.read(inputs), z, sigma)
    rows = [torch.autograd.grad(answer[0, t].square().sum(), embedded, retain_graph=True)[0][0] for t in range(8)]
    return torch.stack(rows).abs().sum(dim=2) > 0


def test_an_answer_depends_on_the_tokens_before_its_place_and_on_no_other() -> None:
    network = shaken(denoiser())
    assert torch.equal(moved(network, 0), torch.ones(8, 8, dtype=torch.bool).tril(-1))
    tokens, changed = text(2), text(2)
    for place in range(16):
        changed[:, :place] = tokens[:, :place]  # places below `place` agree
        torch.testing.assert_close(network(changed)[:, : place + 1], network(tokens)[:, : place + 1])


def test_a_mask_that_lets_a_token_see_itself_would_be_caught() -> None:
    assert bool(moved(shaken(denoiser()), 1).diagonal().all())


def test_no_noisy_token_sees_another_ones_z_and_no_clean_one_sees_any() -> None:
    network, tokens = shaken(denoiser()), text(1, 8)
    z = torch.randn(1, 8, network.codes.shape[1])
    reading = network.read(network.shifted(tokens))
    before = network.answer(reading, z, torch.tensor([0.5]))
    z[0, 3] += 1.0
    after = network.answer(reading, z, torch.tensor([0.5]))
    changed = (before - after).abs().sum(dim=2)[0] > 0
    assert changed.tolist() == [place == 3 for place in range(8)]


def test_the_clean_stream_is_the_plain_network() -> None:
    plan, tokens = plan_of(), text()
    block, plain = shaken(denoiser(plan)), LLAMA.baseline(plan.contract, 2).eval()
    own = {name: value for name, value in block.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(own)
    torch.testing.assert_close(block(tokens), plain(tokens))


def test_a_noisy_stream_to_which_z_and_sigma_say_nothing_answers_as_the_clean_one() -> None:
    network, tokens = shaken(denoiser()), text()
    for parameter in (*network.z_projection.parameters(), *network.time.parameters()):
        torch.nn.init.zeros_(parameter)
    reading = network.read(network.shifted(tokens))
    z = torch.randn(4, 16, network.codes.shape[1])
    torch.testing.assert_close(network.beside(reading, z, torch.full((4,), 0.5)), reading.hidden)


def test_a_text_read_place_by_place_is_answered_as_one_read_whole() -> None:
    network, tokens = shaken(denoiser(plan_of(kv_heads=1))), text(3, 9)
    z, sigma = torch.randn(3, 9, network.codes.shape[1]), torch.tensor([0.3, 1.0, 4.0])
    inputs = network.shifted(tokens)
    whole = network.read(inputs)
    answers: list[Tensor] = []
    part: Reading | None = None
    for place in range(9):
        part = network.read(inputs[:, place : place + 1], part.memory if part else ())
        torch.testing.assert_close(part.hidden[:, 0], whole.hidden[:, place], rtol=1e-4, atol=1e-4)
        answers.append(network.answer(part, z[:, place : place + 1], sigma))
    torch.testing.assert_close(torch.cat(answers, dim=1), network.answer(whole, z, sigma), rtol=1e-4, atol=1e-3)


def test_the_loss_is_the_cross_entropy_of_both_streams_by_bayes_rule() -> None:
    plan, tokens = plan_of(loss_chunk=7, clean_share=0.3, noisy_share=0.6, code_dim=10), text(4)
    network = shaken(denoiser(plan))
    interval = (0.3, 2.0)
    got = LLAMA.denoising_loss(plan.contract, network, interval)(
        Batch(tokens, None, 0.0), torch.Generator().manual_seed(3)
    )
    # The same draws, as the loss makes them: levels, then noise; 3 of 4 rows are noised.
    generator = torch.Generator().manual_seed(3)
    assert plan.contract.p_mean is not None
    assert plan.contract.p_std is not None
    sigma = stratified_sigmas(
        3, interval, NoiseDistribution(plan.contract.p_mean, plan.contract.p_std), generator=generator
    )
    z = noised_tokens(network.codes, tokens[:3], sigma, generator=generator)
    reading = network.read(network.shifted(tokens[:3]))
    scores = -(z[:, :, None] - network.codes).square().sum(dim=3) / (2 * sigma.square()[:, None, None])
    noisy = F.cross_entropy(
        (network.logits(network.beside(reading, z, sigma)) + scores).flatten(0, 1), tokens[:3].flatten()
    )
    clean = F.cross_entropy(network(tokens).flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(got, 0.3 * clean + 0.7 * noisy, rtol=1e-4, atol=1e-4)


def test_every_weight_is_trained_and_the_codes_are_not() -> None:
    plan = plan_of(tied=False)
    network = denoiser(plan)
    loss = LLAMA.denoising_loss(plan.contract, network, (0.3, 2.0))
    loss(Batch(text(), None, 0.0), torch.Generator().manual_seed(0)).backward()  # pyright: ignore[reportUnknownMemberType]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    assert not network.codes.requires_grad
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    torch.testing.assert_close(network.codes.norm(dim=1), torch.ones(VOCABULARY))
    assert torch.equal(network.codes, denoiser(plan).codes)


def test_blocks_share_no_storage() -> None:
    plan = plan_of()
    blocks = [denoiser(plan), denoiser(plan)]
    addresses = [
        {value.untyped_storage().data_ptr() for value in (*block.parameters(), *block.buffers())} for block in blocks
    ]
    assert not addresses[0] & addresses[1]


def test_training_teaches_a_block_both_its_streams() -> None:
    plan = plan_of(width=32)
    network = denoiser(plan)
    loss = LLAMA.denoising_loss(plan.contract, network, (0.5, 8.0))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    tokens = (torch.arange(16) * 5 % 7)[None] + torch.arange(4)[:, None]  # each token follows from the one before it
    for step in range(60):
        optimizer.zero_grad()
        loss(Batch(tokens, None, 0.0), torch.Generator().manual_seed(step)).backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    network.eval()
    z = torch.zeros(4, 16, plan.contract.code_dim)
    for logits in (network(tokens), network.denoise(tokens, z, torch.full((4,), 8.0))):
        assert float(F.cross_entropy(logits[:, 2:].flatten(0, 1), tokens[:, 2:].flatten())) < 1.6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("batch", "length", "options"),
    [
        (4, 16, {}),
        (5, 16, {"code_dim": 10, "tied": False, "table": 300}),
        (6, 32, {"width": 48, "heads": 4, "kv_heads": 2, "mlp": 40}),
        (5, 16, {"loss_chunk": None, "noisy_share": 0.3}),
    ],
)
def test_the_planned_bytes_are_those_that_training_saves(
    precision: str, batch: int, length: int, options: dict[str, Any], recompute: bool
) -> None:
    plan = plan_of(batch, precision, length=length, recompute=recompute, **options)
    contract = plan.contract
    block, whole = denoiser(plan, 2), LLAMA.baseline(contract, 4)
    for planned, network, loss in (
        (plan.blocks[0], block, LLAMA.denoising_loss(contract, block, (0.3, 2.0))),
        (plan.end_to_end, whole, LLAMA.baseline_loss(contract, whole)),
    ):
        assert isinstance(network, LlamaDecoder)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
            counting_saved_bytes(network) as saved,
            Recomputed(network).counting(saved) if recompute else nullcontext(),
        ):
            loss(Batch(text(batch, length), None, 0.0), torch.Generator().manual_seed(0))
        assert planned.memory.activations == pytest.approx(saved.total, rel=0.001)
        assert planned.parameters == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("baseline", [False, True])
def test_recomputed_layers_have_the_same_gradients_bit_for_bit(precision: str, baseline: bool) -> None:
    plan = plan_of(kv_heads=1, noisy_share=0.5)
    gradients: list[list[Tensor]] = []
    for recompute in (False, True):
        torch.manual_seed(0)
        network = LLAMA.baseline(plan.contract, 3) if baseline else denoiser(plan, 3)
        if recompute:
            Recomputed(network)
        loss = (
            LLAMA.baseline_loss(plan.contract, network)
            if baseline
            else LLAMA.denoising_loss(plan.contract, network, (0.3, 2.0))
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss(Batch(text(), None, 0.0), torch.Generator().manual_seed(0))
        value.backward()  # pyright: ignore[reportUnknownMemberType]
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    kept, anew = gradients
    assert len(kept) == len(list(network.parameters()))
    assert all(map(torch.equal, kept, anew))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("depth", [8, 12])
def test_a_quarter_of_the_layers_trains_in_less_than_half_the_bytes(depth: int, precision: str) -> None:
    plan = plan_of(32, precision, count=4, length=128, depth=depth, width=128, heads=4)
    assert plan.memory_ratio < 0.5


def test_a_sure_posterior_mean_enters_the_projection_at_the_length_it_is_given() -> None:
    network, tokens = denoiser(plan_of(z_scale=5.0)), text(1)
    entered: list[Tensor] = []
    network.z_projection.register_forward_pre_hook(lambda _layer, inputs: entered.append(inputs[0]))
    network.denoise(tokens, network.codes[tokens], torch.tensor([0.02]))
    torch.testing.assert_close(entered[0].norm(dim=2), torch.full((1, 16), 5.0), rtol=0, atol=1e-2)

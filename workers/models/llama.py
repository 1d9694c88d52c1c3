"""A causal decoder for text, and its blocks: denoisers of the next token's code beside a clean stream.

Experimental: no recipe is known that beats a plain network of L/B layers (docs/method.md).

A block reads a text twice (paper, App. E.4). The clean stream is a plain decoder: at place i it holds token i - 1 (a
learned start token at place 0) and predicts token i from the past alone. The noisy stream stands beside it with the
same weights: at place i it starts from the same embedding, plus a projection of what z_i = e(x_i) + sigma eps tells,
plus the noise level, and in every layer reads the clean stream's keys and values up to place i and nothing else. So a
clean token never sees z, a noisy one sees no other, the clean stream is kept (as keys and values) while z is walked
down, and with z = 0 in pure noise the noisy stream has nothing to add: there the clean stream's own answer stands.

Shapes: N rows, n noised rows, T tokens, D width, V table, d code dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from dbserve.contracts.card import ArchitectureCard, Footprint, NoiseDefaults, OptionRule, Recipe
from dbserve.contracts.plan import Contract
from workers.data import Batch
from workers.method.chunked import chunked_cross_entropy
from workers.method.codes import target_codes
from workers.method.noise import NoiseDistribution
from workers.method.tokens import log_prior, noised_tokens, posterior_mean, stratified_sigmas
from workers.models.decoder import (
    DECODER_DEFINITIONS,
    UNIT_CODES_RULE,
    DecoderLayer,
    KeysValues,
    RMSNorm,
    Shape,
    default_hidden,
    rotary,
)
from workers.models.encoder import FREQUENCIES, TimeEmbedding
from workers.models.gaussian import noise_of
from workers.models.protocol import Loss

INIT_STD = 0.02  # of the embedding, which is the head as well: fresh logits are near 0


class Options(BaseModel, frozen=True):
    """Options of kind "llama"."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    depth: Annotated[int, Field(ge=1, le=100_000, description="layers of the whole network")] = 8
    width: Annotated[int, Field(ge=2, le=65_536, description="of a token")] = 128
    heads: Annotated[int, Field(ge=1, le=4_096, description="attention heads; width / heads is even")] = 4
    kv_heads: Annotated[
        int | None, Field(ge=1, le=4_096, description="heads of keys and values; divides heads; null: heads")
    ] = None
    mlp: Annotated[int | None, Field(ge=1, le=1_048_576, description="hidden width; null: 8/3 of the width")] = None
    table: Annotated[int | None, Field(ge=2, le=1_048_576, description="tokens embedded; null: the vocabulary")] = None
    positions: Annotated[int | None, Field(ge=2, le=1_048_576, description="longest window; null: sequence_length")] = (
        None
    )
    tied: Annotated[bool, Field(description="the embedding is the head")] = True
    rope_theta: Annotated[float, Field(gt=1.0, le=1e9, description="base of the rotary frequencies")] = 10_000.0
    norm_eps: Annotated[float, Field(gt=0.0, le=0.1, description="of RMSNorm")] = 1e-5
    code_dim: Annotated[int | None, Field(ge=2, le=65_536, description="of the frozen codes; null: width")] = None
    clean_share: Annotated[
        float, Field(ge=0.0, lt=1.0, description="weight of the clean stream's own loss: the next token in pure noise")
    ] = 0.5
    noisy_share: Annotated[
        float, Field(gt=0.0, le=1.0, description="of a batch's rows that are noised; the others train the clean stream")
    ] = 0.5
    z_scale: Annotated[
        float, Field(gt=0.0, le=100.0, description="length of a sure posterior mean as it enters the projection")
    ] = 2.0
    loss_chunk: Annotated[
        int | None, Field(ge=1, le=1_048_576, description="tokens with logits at one time; null: all, and kept")
    ] = 4096
    decode: Annotated[
        Literal["average", "chain"], Field(description="average: of the blocks' log-probabilities in pure noise")
    ] = "average"
    euler_steps: Annotated[
        int, Field(ge=1, le=10_000, description="of a chain, at least one of each block; more are surer, not better")
    ] = 1

    @property
    def shape(self) -> Shape:
        return Shape(
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads or self.heads,
            hidden=self.mlp or default_hidden(self.width),
            norm_eps=self.norm_eps,
            rope_theta=self.rope_theta,
        )


Memory = tuple[KeysValues, ...]  # of each layer, the tokens read so far


@dataclass(frozen=True)
class Reading:
    """What a stream knows of T places: its inputs, what its layers made of them, and all they can look back on."""

    inputs: Tensor  # (N, T, D)
    hidden: Tensor  # (N, T, D), after the final norm
    memory: Memory
    start: int  # the first of the T places

    def first(self, rows: int) -> Reading:
        """The first rows of it."""
        memory = tuple(KeysValues(layer.keys[:rows], layer.values[:rows]) for layer in self.memory)
        return Reading(self.inputs[:rows], self.hidden[:rows], memory, self.start)


class LlamaDecoder(nn.Module):
    """The plain network, and the baseline. tokens (N, T) -> logits (N, T, V) of the same tokens from their past."""

    def __init__(self, options: Options, contract: Contract, layers: int) -> None:
        super().__init__()
        vocabulary, _ = contract.tokens
        size = options.table or vocabulary.size
        self.shape = options.shape
        self.embedding = nn.Embedding(size, options.width)
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        self.start = nn.Parameter(INIT_STD * torch.randn(options.width))
        self.layers = nn.ModuleList(DecoderLayer(self.shape) for _ in range(layers))
        self.norm = RMSNorm(options.width, options.norm_eps)
        self.head = None if options.tied else nn.Linear(options.width, size, bias=False)
        if self.head is not None:
            nn.init.normal_(self.head.weight, std=INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(self.read(self.shifted(tokens)).hidden)

    def shifted(self, tokens: Tensor) -> Tensor:
        """Inputs of the places of `tokens` (N, T): the start token, then all but the last. (N, T, D)."""
        start = self.start.expand(len(tokens), 1, -1)
        return torch.cat((start, self.embedding(tokens[:, :-1])), dim=1)

    def read(self, inputs: Tensor, memory: Memory = ()) -> Reading:
        """inputs (N, T, D) at the T places after those in `memory` (none: from the first place)."""
        start = len(memory[0]) if memory else 0
        turn = rotary(self.shape, start, start + inputs.shape[1], inputs.device)
        x, seen = inputs, list[KeysValues]()
        for index, layer in enumerate(self.layers):
            x, known = layer(x, turn, memory[index] if memory else None)
            seen.append(known)
        return Reading(inputs, self.norm(x), tuple(seen), start)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return hidden @ self.table.T

    @property
    def table(self) -> Tensor:
        """Of the head: (V, D)."""
        return self.embedding.weight if self.head is None else self.head.weight

    def residual_layers(self) -> Sequence[nn.Module]:
        return tuple(self.layers)


class LlamaDenoiser(LlamaDecoder):
    """A block: the clean stream is the plain network, `beside` is the noisy one with the same layers."""

    codes: Tensor

    def __init__(self, options: Options, contract: Contract, layers: int) -> None:
        super().__init__(options, contract, layers)
        self.z_scale = options.z_scale
        codes = target_codes(
            "unit_norm",
            self.embedding.num_embeddings,
            contract.code_dim,
            sigma_data=contract.sigma_data,
            seed=contract.codes_seed,
        )
        self.register_buffer("codes", codes, persistent=False)
        self.z_projection = nn.Linear(contract.code_dim, options.width, bias=False)
        nn.init.normal_(self.z_projection.weight, std=INIT_STD)
        self.time = TimeEmbedding(options.width)

    def beside(self, clean: Reading, z: Tensor, sigma: Tensor) -> Tensor:
        """The noisy stream at the places of `clean`: z (N, T, d) of their tokens, sigma (N,) -> hidden (N, T, D)."""
        seen = self.z_projection(self.z_scale * posterior_mean(z, self.codes, sigma))
        x = clean.inputs + seen + self.time(sigma)[:, None]
        turn = rotary(self.shape, clean.start, clean.start + x.shape[1], x.device)
        for layer, known in zip(self.layers, clean.memory, strict=True):
            x, _ = layer(x, turn, seen=known)
        return self.norm(x)

    def answer(self, clean: Reading, z: Tensor, sigma: Tensor) -> Tensor:
        """ln p(x | past) + ln p(z | x), up to a constant of x: logits (N, T, V) by Bayes' rule, float32."""
        return self.logits(self.beside(clean, z, sigma)).float() + log_prior(z, self.codes, sigma)

    def denoise(self, tokens: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """answer() for whole texts: tokens (N, T), z (N, T, d), sigma (N,) -> logits (N, T, V)."""
        return self.answer(self.read(self.shifted(tokens)), z, sigma)


def next_token_loss(network: LlamaDecoder, chunk: int | None, batch: Batch) -> Tensor:
    """Mean -ln p(token | its past) over all places, nats."""
    tokens = batch.inputs
    hidden = network.read(network.shifted(tokens)).hidden
    return _mean_cross_entropy(hidden, network.table, tokens, chunk)


def denoising_loss(
    network: LlamaDenoiser,
    options: Options,
    interval: tuple[float, float],
    noise: NoiseDistribution,
    batch: Batch,
    generator: torch.Generator,
) -> Tensor:
    """clean_share x (mean -ln p(token | past), all rows) + the rest x (mean -ln p(token | past, z), noised rows)."""
    tokens = batch.inputs
    clean = network.read(network.shifted(tokens))
    noised = math.ceil(options.noisy_share * len(tokens))
    sigma = stratified_sigmas(noised, interval, noise, generator=generator)
    z = noised_tokens(network.codes, tokens[:noised], sigma, generator=generator)
    hidden = network.beside(clean.first(noised), z, sigma)
    # <z, e> / sigma^2 is a product of vectors as the head's logits are: both at once, so that they too come in chunks.
    with torch.autocast(z.device.type, enabled=False):
        scores = torch.cat((hidden.float(), z / sigma.square()[:, None, None]), dim=2)
        table = torch.cat((network.table, network.codes), dim=1)
        noisy = _mean_cross_entropy(scores, table, tokens[:noised], options.loss_chunk)
    plain = _mean_cross_entropy(clean.hidden, network.table, tokens, options.loss_chunk)
    return options.clean_share * plain + (1 - options.clean_share) * noisy


def _mean_cross_entropy(hidden: Tensor, table: Tensor, tokens: Tensor, chunk: int | None) -> Tensor:
    """hidden (N, T, D), table (V, D), tokens (N, T) -> nats a token."""
    weights = torch.full((tokens.numel(),), 1 / tokens.numel(), device=hidden.device)
    return chunked_cross_entropy(hidden.flatten(0, 1), table, tokens.flatten(), weights, chunk=chunk)


# The card's formulas. tests/unit/test_llama.py holds them against measured bytes.
RULES = (
    UNIT_CODES_RULE,
    OptionRule(
        expression="width % heads == 0 and width // heads % 2 == 0",
        pointer="/heads",
        message="heads ({heads}) must divide width ({width}) into even parts, which the rotation pairs",
    ),
    OptionRule(
        expression="heads % (kv_heads or heads) == 0",
        pointer="/kv_heads",
        message="kv_heads ({kv_heads}) must divide heads ({heads})",
    ),
    OptionRule(
        expression="(table or vocabulary) >= vocabulary",
        pointer="/table",
        message="table ({table}) is smaller than the vocabulary ({vocabulary} tokens)",
    ),
    OptionRule(
        expression="(positions or sequence_length) >= sequence_length",
        pointer="/positions",
        message="windows of {sequence_length} tokens do not fit into positions ({positions})",
    ),
)
# Of codes of length 1. sigma_max: z tells at most 1/128 nat. sigma_min: another token's code is by 8 nats less likely
# than all tokens together are many, so that z leaves nothing to tell. p_mean: about where codes of length 1 become
# legible, 1 / sqrt(2 ln V), moved up because the past has told most of it already.
NOISE = NoiseDefaults(
    p_mean="0.4 - ln(2 * ln(table or vocabulary)) / 2",
    p_std="0.8",
    sigma_min="0.5 / sqrt(ln(table or vocabulary) + 8)",
    sigma_max="8.0",
)
DEFINITIONS = (
    *DECODER_DEFINITIONS,
    ("size", "table or vocabulary"),
    ("tokens", "batch * sequence_length"),
    ("noised", "ceil(batch * noisy_share) * sequence_length"),
    ("head_parameters", "size * width * (1 if tied else 2)"),
    ("plain_parameters", "layers * layer_parameters + head_parameters + 2 * width"),
    # Of the clean stream around its layers: rotation, the final norm's input, the tokens that the embedding looked up.
    ("stream_bytes", "rotary_bytes + tokens * (4 * width + 12)"),
    ("stream_layers_bytes", "layers * (tokens * causal_token_bytes + layer_copies)"),
    # Of the loss of `tokens` places: gradients of what enters the head and of its table, where logits come in chunks;
    # else what enters, its table under autocast, log-probabilities, weights.
    (
        "loss_bytes",
        "tokens * bytes * width + 4 * size * width if loss_chunk else"
        " tokens * (bytes * width + 4 * size + 4) + (2 * size * width if bytes == 2 else 0)",
    ),
    # Of the noisy stream around its layers: norm, loss (in float32), what is projected of z, the noise level, embedded.
    ("head_width", "width + (code_dim or width)"),
    (
        "beside_bytes",
        "rotary_bytes + noised * (4 * width + 4 + bytes * (code_dim or width))"
        " + (noised * 4 * head_width + 4 * size * head_width if loss_chunk else"
        " noised * (4 * head_width + 4 * size + 4) + 4 * size * head_width)"
        f" + noised // sequence_length * bytes * ({2 * FREQUENCIES} + 2 * width)"
        " + (2 * (width * width) if bytes == 2 else 0)",
    ),
    ("beside_layers_bytes", "noised * layers * seeing_token_bytes"),
    # Recomputed, a layer keeps its input; the noisy stream's besides the keys and values of the clean one, those of all
    # rows. The most is saved anew by a layer of the clean stream, which has all the rows.
    ("anew_bytes", "tokens * (causal_token_bytes - 4 * width) + layer_copies"),
    ("beside_inputs_bytes", "layers * (noised * 4 * width + tokens * 2 * bytes * kv_width)"),
)
DENOISER = Footprint(
    parameters=f"plain_parameters + (code_dim or width) * width + {2 * FREQUENCIES + 2} * width + width * width",
    activations="stream_layers_bytes + stream_bytes + loss_bytes + beside_layers_bytes + beside_bytes",
    checkpointed="layers * tokens * 4 * width + stream_bytes + loss_bytes + beside_inputs_bytes + beside_bytes"
    " + anew_bytes",
    hidden_matrices="layers * layer_matrices",
)
BASELINE = Footprint(
    parameters="plain_parameters",
    activations="stream_layers_bytes + stream_bytes + loss_bytes",
    checkpointed="layers * tokens * 4 * width + stream_bytes + loss_bytes + anew_bytes",
    hidden_matrices="layers * layer_matrices",
)


class Llama:
    """Architecture "llama"."""

    kind = "llama"

    def card(self) -> ArchitectureCard:
        return ArchitectureCard(
            kind=self.kind,
            summary="Llama-like decoder; predicts the next token as denoising of its code. Experimental: no recipe is "
            "known that beats a plain network of a block's layers.",
            family="next_token",
            experimental=True,
            modality="text",
            recipe=Recipe(partition="equal_information", overlap=0.1, lr=2e-3),
            options_schema=Options.model_json_schema(),
            rules=RULES,
            definitions=DEFINITIONS,
            code_dim="code_dim or width",
            code_norm="1",
            noise=NOISE,
            denoiser=DENOISER,
            baseline=BASELINE,
        )

    def denoiser(self, contract: Contract, layers: int) -> LlamaDenoiser:
        return LlamaDenoiser(_options(contract), contract, layers)

    def denoising_loss(self, contract: Contract, network: nn.Module, interval: tuple[float, float]) -> Loss:
        assert isinstance(network, LlamaDenoiser)
        return partial(denoising_loss, network, _options(contract), interval, noise_of(contract))

    def baseline(self, contract: Contract, layers: int) -> LlamaDecoder:
        return LlamaDecoder(_options(contract), contract, layers)

    def baseline_loss(self, contract: Contract, network: nn.Module) -> Loss:
        assert isinstance(network, LlamaDecoder)
        return partial(_baseline_loss, network, _options(contract).loss_chunk)


LLAMA = Llama()


def _options(contract: Contract) -> Options:
    return Options.model_validate(contract.options)


def _baseline_loss(network: LlamaDecoder, chunk: int | None, batch: Batch, _generator: torch.Generator) -> Tensor:
    return next_token_loss(network, chunk, batch)

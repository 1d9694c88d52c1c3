"""Recurrent depth over text: one core, run K times, trained as a denoiser that runs it once (paper, section 5.5).

Shapes: N rows, T tokens, D width (and code dimensions), V vocabulary, K steps. Tokens are shifted right: the features
of position i come from a learned start token and the tokens before i, and its answer is for token i.

    prelude   the clean past, causally -> features (N, T, D), computed once however many steps follow
    core      refines a state (N, T, D); its layers' keys and values come from the features
    coda      reads the state out, its keys and values from the features as well

A state therefore never sees another position's state: what a position is refined with is the same at training, where
states hold noised true tokens, and at inference, where they hold guesses. Huginn (arXiv 2502.05171), whose adapter
this is, lets states attend to each other; the unrolled baseline here does as the denoiser does, so that the two
differ in how they are trained and in nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from dbserve.contracts.card import ArchitectureCard, Family, Footprint, NoiseDefaults, OptionRule, Recipe
from dbserve.contracts.plan import Contract
from workers.data import Batch
from workers.method.codes import expected_code, log_posterior, target_codes
from workers.method.noise import NoiseDistribution, sample_sigmas
from workers.method.objective import label_cross_entropy, noised_codes
from workers.method.partition import equal_mass_edges
from workers.method.sampler import euler_step
from workers.models.decoder import (
    DECODER_DEFINITIONS,
    UNIT_CODES_RULE,
    DecoderLayer,
    KeysValues,
    RMSNorm,
    Rotary,
    Shape,
    default_hidden,
    rotary,
)
from workers.models.encoder import FREQUENCIES, TimeEmbedding
from workers.models.gaussian import noise_of
from workers.models.protocol import Loss

POSTERIOR_SCALE = 8.0  # length of a sure posterior mean as it enters the adapter; the codes have length 1


class Options(BaseModel, frozen=True):
    """Options of kind "recurrent"."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    depth: Annotated[int, Field(ge=2, le=100_000, description="distinct layers: prelude + core + coda")] = 4
    prelude: Annotated[int, Field(ge=1, le=100_000, description="layers that read the past")] = 1
    core: Annotated[int, Field(ge=1, le=100_000, description="layers of the core, shared by all steps")] = 2
    coda: Annotated[int, Field(ge=0, le=100_000, description="layers that read the state out")] = 1
    steps: Annotated[int, Field(ge=1, le=1_024, description="runs of the core for an answer")] = 4
    width: Annotated[int, Field(ge=2, le=65_536, description="of a token, and of its code")] = 128
    heads: Annotated[int, Field(ge=1, le=4_096, description="attention heads; divides width")] = 4
    kv_heads: Annotated[int | None, Field(ge=1, le=4_096, description="of keys and values; null: heads")] = None
    mlp: Annotated[int | None, Field(ge=1, le=1_048_576, description="hidden width; null: 8/3 x width")] = None
    blind_share: Annotated[
        float, Field(ge=0.0, lt=1.0, description="of the tokens trained on the first step of an answer: z = 0")
    ] = 0.5

    def layer(self) -> Shape:
        return Shape(self.width, self.heads, self.kv_heads or self.heads, self.mlp or default_hidden(self.width))


@dataclass(frozen=True)
class Past:
    """What the clean past says; every step reads it and none changes it."""

    onto_state: Tensor  # (N, T, D): the adapter's half for the features
    rotation: Rotary
    core: tuple[KeysValues, ...]  # one for each layer
    coda: tuple[KeysValues, ...]


class Trunk(nn.Module):
    """Prelude, adapter, core, coda, head."""

    def __init__(self, options: Options, vocabulary: int) -> None:
        super().__init__()
        self.shape = options.layer()
        width = options.width
        self.start = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.prelude, self.core, self.coda = (
            nn.ModuleList(DecoderLayer(self.shape) for _ in range(count))
            for count in (options.prelude, options.core, options.coda)
        )
        # Huginn's adapter is one matrix for (state, features) side by side: these are its two halves, and the features'
        # one runs once for all steps.
        self.from_features = nn.Linear(width, width, bias=False)
        self.from_state = nn.Linear(width, width, bias=False)
        self.norm = RMSNorm(width, self.shape.norm_eps)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def read(self, tokens: Tensor) -> Past:
        """tokens (N, T) int64 -> what the past of every position says."""
        before = self.embedding(tokens[:, :-1])
        features = torch.cat((self.start.expand(len(tokens), -1, -1), before), dim=1)  # (N, T, D)
        rotation = rotary(self.shape, 0, tokens.shape[1], tokens.device)
        for layer in self.prelude:
            features, _ = layer(features, rotation)
        core, coda = (
            tuple(_remembered(cast(DecoderLayer, layer), features, rotation) for layer in layers)
            for layers in (self.core, self.coda)
        )
        return Past(self.from_features(features), rotation, core, coda)

    def refined(self, state: Tensor, past: Past) -> Tensor:
        """One run of the core: (N, T, D), as the adapter made it, -> (N, T, D)."""
        for layer, seen in zip(self.core, past.core, strict=True):
            state, _ = layer(state, past.rotation, seen=seen)
        return state

    def read_out(self, state: Tensor, past: Past) -> Tensor:
        """(N, T, D) -> logits (N, T, V)."""
        for layer, seen in zip(self.coda, past.coda, strict=True):
            state, _ = layer(state, past.rotation, seen=seen)
        return self.head(self.norm(state))

    def residual_layers(self) -> Sequence[nn.Module]:
        return (*self.prelude, *self.core, *self.coda)


def _remembered(layer: DecoderLayer, features: Tensor, rotation: Rotary) -> KeysValues:
    """The layer's keys and values of the features (N, T, D)."""
    normed = layer.attention_norm(features)
    keys, values = (
        made.view(*made.shape[:2], -1, layer.head_width).transpose(1, 2)
        for made in (layer.keys(normed), layer.values(normed))
    )
    return KeysValues(rotation(keys), values)


class RecurrentDenoiser(nn.Module):
    """tokens (N, T) int64, z (N, T, D), sigma (N, T) -> logits (N, T, V). The core runs once."""

    codes: Tensor

    def __init__(self, options: Options, contract: Contract) -> None:
        super().__init__()
        self.register_buffer("codes", token_codes(contract), persistent=False)  # (V, D)
        self.trunk = Trunk(options, len(self.codes))
        self.time = TimeEmbedding(options.width)

    def forward(self, tokens: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        logits, prior = self.told(self.trunk.read(tokens), z, sigma)
        return logits + prior

    def told(self, past: Past, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What the past and what z alone say of the token: (N, T, V) each. By Bayes' rule their sum is, up to a
        constant, ln p(token | past, z); the second is known and needs no network."""
        rows = z.shape[:2]
        prior = log_posterior(z.flatten(0, 1), self.codes, sigma.flatten())  # (N T, V)
        seen = POSTERIOR_SCALE * expected_code(prior, self.codes)  # (N T, D)
        state = self.trunk.from_state(seen) + self.time(sigma.flatten())
        # float32: under autocast both summands are bfloat16, which a residual stream must not be.
        state = state.view(*rows, -1).float() + past.onto_state
        logits = self.trunk.read_out(self.trunk.refined(state, past), past)
        return logits, prior.view(*rows, -1)

    def residual_layers(self) -> Sequence[nn.Module]:
        return self.trunk.residual_layers()


class UnrolledNetwork(nn.Module):
    """The baseline: tokens (N, T) int64 -> logits (N, T, V), the core run `steps` times with gradients through all.

    The first state is learned, where Huginn draws it: the answer is a function of the tokens alone.
    """

    def __init__(self, options: Options, vocabulary: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, options.width))
        self.trunk = Trunk(options, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.after(self.steps, tokens)

    def after(self, steps: int, tokens: Tensor) -> Tensor:
        """The answer after that many runs of the core (at least 1)."""
        past = self.trunk.read(tokens)
        state = self.first
        for _ in range(steps):
            state = self.trunk.refined(self.trunk.from_state(state).float() + past.onto_state, past)
        return self.trunk.read_out(state, past)

    def residual_layers(self) -> Sequence[nn.Module]:
        return self.trunk.residual_layers()


def token_codes(contract: Contract) -> Tensor:
    """E, frozen: a seeded direction of length 1 for every token. (V, D) float32 on the CPU."""
    vocabulary, _ = contract.tokens
    return target_codes(
        "unit_norm", vocabulary.size, contract.code_dim, sigma_data=contract.sigma_data, seed=contract.codes_seed
    )


def schedule(contract: Contract, steps: int) -> tuple[float, ...]:
    """Noise levels of the K steps of an answer, from sigma_max down: the upper edges of K intervals of equal mass."""
    noise = noise_of(contract)
    edges = equal_mass_edges(
        steps,
        p_mean=noise.p_mean,
        p_std=noise.p_std,
        sigma_min=contract.sigma_min,
        sigma_max=contract.sigma_max,
    )
    return edges[:-1]


def answer(network: RecurrentDenoiser, tokens: Tensor, levels: Sequence[float]) -> Tensor:
    """Logits (N, T, V) after an Euler step of the core at every level but the last, whose answer they are.

    z starts at 0, the prior's mode; the past is read once. What z alone says steers the steps but is left out of the
    answer: z was made from the past, which would count twice (with it, 8 steps cost 1 to 2.5 nats). A function of the
    tokens before each position alone, so its log-likelihood is a proper one.
    """
    past = network.trunk.read(tokens)
    z = torch.zeros(*tokens.shape, network.codes.shape[1], device=tokens.device)  # (N, T, D)
    for level, following in zip(levels, (*levels[1:], None), strict=True):
        logits, prior = network.told(past, z, torch.full(tokens.shape, level, device=tokens.device))
        if following is None:
            return logits
        guess = expected_code((logits + prior).float().flatten(0, 1).log_softmax(dim=1), network.codes).view_as(z)
        z = euler_step(z, guess, level, following)
    raise ValueError("an answer takes at least one step")


def _denoising_loss(
    network: RecurrentDenoiser,
    interval: tuple[float, float],
    noise: NoiseDistribution,
    blind_share: float,
    batch: Batch,
    generator: torch.Generator,
) -> Tensor:
    """Mean cross-entropy over tokens; every token has a noise level of its own, as no state sees another."""
    tokens = batch.inputs  # (N, T)
    sigma = sample_sigmas(tokens.numel(), interval, noise, generator=generator)
    z = noised_codes(network.codes, tokens.flatten(), sigma, generator=generator)  # (N T, D)
    blind = torch.rand(len(sigma), device=sigma.device, generator=generator) < blind_share
    sigma = sigma.masked_fill(blind, interval[1]).view(tokens.shape)
    z = z.masked_fill(blind[:, None], 0.0).view(*tokens.shape, -1)
    return _next_token_loss(network(tokens, z, sigma), tokens)


def _unrolled_loss(network: UnrolledNetwork, batch: Batch, _generator: torch.Generator) -> Tensor:
    return _next_token_loss(network(batch.inputs), batch.inputs)


def _next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return label_cross_entropy(logits.flatten(0, 1), tokens.flatten())


# The card's formulas. tests/unit/test_recurrent.py holds them against measured bytes.
RULES = (
    UNIT_CODES_RULE,
    OptionRule(
        expression="prelude + core + coda == depth",
        pointer="/depth",
        message="depth ({depth}) must be prelude + core + coda ({prelude} + {core} + {coda})",
    ),
    OptionRule(
        expression="blocks == 1",
        pointer="/blocks/count",
        message="recurrent shares one core over all noise levels: blocks.count must be 1, not {blocks}",
    ),
    OptionRule(
        expression="width % heads == 0 and (width // heads) % 2 == 0",
        pointer="/heads",
        message="heads ({heads}) must divide width ({width}) into even parts: positions rotate pairs",
    ),
    OptionRule(
        expression="heads % (kv_heads or heads) == 0",
        pointer="/kv_heads",
        message="kv_heads ({kv_heads}) must divide heads ({heads})",
    ),
)
DEFINITIONS = (
    *DECODER_DEFINITIONS,
    ("tokens", "batch * sequence_length"),
    ("runs", "(layers - prelude - coda) // core"),  # of the core, in the network whose pass runs `layers` layers
    ("time_matrices", f"{2 * FREQUENCIES} * width + width * width"),
    ("trunk_matrices", "2 * width * width + width * vocabulary"),
    ("trunk_parameters", "depth * layer_parameters + trunk_matrices + width * vocabulary + 2 * width"),
    # Saved for a token: by the prelude; of the features, which every later layer norms to make keys and values, and of
    # which the adapter has a copy under autocast; by the coda, the last norm, the head, the cross-entropy; the token.
    ("features_bytes", "4 * width + (2 * width if bytes == 2 else 0)"),
    ("remembered_bytes", "(core + coda) * (4 + bytes * (width + 2 * kv_width))"),
    ("readout_bytes", "4 * width + 4 + bytes * width + 4 * vocabulary + 8"),
    ("around_bytes", "features_bytes + remembered_bytes + readout_bytes"),
    ("past_bytes", "prelude * causal_token_bytes + coda * seeing_token_bytes + around_bytes"),
    # No copy is saved of a matrix whose input follows from no weight: in the denoiser the adapter's for the state and
    # the time embedding's first; its second makes up for the former.
    ("trunk_copies", "2 * trunk_matrices if bytes == 2 else 0"),
    ("once_bytes", "rotary_bytes + depth * layer_copies + trunk_copies + 4"),
    ("denoised_bytes", f"bytes * (3 * width + {2 * FREQUENCIES})"),
    # Of the core's runs: what its input is made of.
    ("unrolled_bytes", "tokens * (runs - 1) * bytes * width + (2 * width if bytes == 2 else 0)"),
    # Recomputed, a layer keeps its input, and the copies of what makes keys and values of the features stay, as that is
    # done outside of the layers. The most is saved anew by a layer of the prelude, which makes its own.
    ("inputs_bytes", "tokens * (prelude + coda) * 4 * width"),
    ("remembering_copies", "(core + coda) * (4 * width * kv_width if bytes == 2 else 0)"),
    ("anew_bytes", "tokens * (causal_token_bytes - 4 * width) + layer_copies"),
    (
        "recomputed_bytes",
        "inputs_bytes + tokens * around_bytes + rotary_bytes + trunk_copies + 4 + remembering_copies + anew_bytes",
    ),
)
DENOISER = Footprint(
    parameters="trunk_parameters + time_matrices + 2 * width",
    activations="tokens * (past_bytes + core * seeing_token_bytes + denoised_bytes) + once_bytes",
    checkpointed="tokens * (core * 4 * width + denoised_bytes) + recomputed_bytes",
    hidden_matrices="depth * layer_matrices",
)
BASELINE = Footprint(
    parameters="trunk_parameters + width",
    activations="tokens * (past_bytes + runs * core * seeing_token_bytes) + unrolled_bytes + once_bytes",
    checkpointed="tokens * runs * core * 4 * width + unrolled_bytes + recomputed_bytes",
    hidden_matrices="depth * layer_matrices",
)


class Recurrent:
    """Architecture "recurrent"."""

    kind = "recurrent"
    family: Family = "next_token"

    def card(self) -> ArchitectureCard:
        return ArchitectureCard(
            kind=self.kind,
            summary="Recurrent-depth decoder; one core refines a guess of the next token, trained a single run a step.",
            family=self.family,
            experimental=True,
            modality="text",
            recipe=Recipe(partition="equi_probability", overlap=0.0, lr=3e-3, ema=0.0),
            options_schema=Options.model_json_schema(),
            rules=RULES,
            definitions=DEFINITIONS,
            code_dim="width",
            code_norm="1",
            noise=NoiseDefaults(p_mean="0.0", p_std="1.2", sigma_min="0.02", sigma_max="80.0"),
            denoiser=DENOISER,
            baseline=BASELINE,
            end_to_end_layers="prelude + steps * core + coda",
        )

    def denoiser(self, contract: Contract, layers: int) -> RecurrentDenoiser:
        return RecurrentDenoiser(options_of(contract), contract)

    def denoising_loss(self, contract: Contract, network: nn.Module, interval: tuple[float, float]) -> Loss:
        share = options_of(contract).blind_share
        return partial(_denoising_loss, cast(RecurrentDenoiser, network), interval, noise_of(contract), share)

    def baseline(self, contract: Contract, layers: int) -> UnrolledNetwork:
        """The network whose pass runs `layers` layers: its core as often as they allow."""
        options = options_of(contract)
        runs = (layers - options.prelude - options.coda) // options.core
        return UnrolledNetwork(options, contract.tokens[0].size, runs)

    def baseline_loss(self, contract: Contract, network: nn.Module) -> Loss:
        return partial(_unrolled_loss, cast(UnrolledNetwork, network))


RECURRENT = Recurrent()


def options_of(contract: Contract) -> Options:
    return Options.model_validate(contract.options)

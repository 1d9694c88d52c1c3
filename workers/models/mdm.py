"""Masked diffusion of text: a bidirectional transformer that says what stands behind every mask (paper, App. D).

Shapes: N rows, T tokens of a row, D width, V vocabulary.
No time conditioning: how many masks it sees tells a network the level t. So a block and the baseline are networks of
one kind; a block learns its interval of t, the baseline the whole range.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from dbserve.contracts.card import ArchitectureCard, Family, Footprint, NoiseDefaults, OptionRule, Recipe
from dbserve.contracts.plan import Contract
from workers.data import Batch
from workers.method.chunked import chunked_cross_entropy
from workers.method.masking import loss_weights, masked_positions, stratified_levels
from workers.models.encoder import LAYER_DEFINITIONS, Layer, LayerShape
from workers.models.protocol import Loss

MASK_ROWS = 1  # of the embedding, after the vocabulary's
# Small: the first norm scales what enters, and a step of the optimizer is then large beside it. At the size of one, or
# with random positions of 0.1, a small network was slower to find out that it may look at a token's neighbours.
LOGIT_STD = 0.3  # of a fresh network; the embedding is the output matrix too, and its size follows
POSITION_STD = 1.5  # of a position's size, in that of the embedding
LONGEST = 1000.0  # wavelength of the positions, in turns of the shortest


class Options(BaseModel, frozen=True):
    """Options of kind "mdm". docs/method.md says where the defaults come from."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    depth: Annotated[int, Field(ge=1, le=100_000, description="layers of the whole network")] = 6
    width: Annotated[int, Field(ge=2, le=65_536, description="of a token; even")] = 128
    heads: Annotated[int, Field(ge=1, le=4_096, description="attention heads; divides width")] = 4
    mlp: Annotated[int | None, Field(ge=1, le=1_048_576, description="hidden width; null: 4 x width")] = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, description="after attention, activation and MLP")] = 0.0
    positions: Annotated[
        int | None, Field(ge=2, le=1_048_576, description="most tokens of a row; null: data.sequence_length")
    ] = None
    table: Annotated[
        int | None, Field(ge=1, le=10_000_000, description="rows of the embedding; null: the vocabulary's size")
    ] = None
    loss_chunk: Annotated[
        int | None,
        Field(ge=1, le=1_073_741_824, description="most tokens whose logits exist at one time; null: a whole batch's"),
    ] = None
    low_mask_reach: Annotated[
        float | None,
        Field(gt=0.0, le=1.0, description="the last block trains on t up to this at least; null: its overlap only"),
    ] = 0.6

    @property
    def shape(self) -> LayerShape:
        """Of one layer."""
        return LayerShape(self.width, self.heads, self.mlp or 4 * self.width, self.dropout)


class MaskedTransformer(nn.Module):
    """Tokens (N, T) int64, the mask among them, -> logits (N, T, V): there is no column for the mask.

    Rows 0 .. V - 1 of the embedding are the output matrix too; the row of the mask is the last one, `mask`.
    """

    def __init__(self, options: Options, contract: Contract, layers: int) -> None:
        super().__init__()
        vocabulary, length = contract.tokens
        self.vocabulary = vocabulary.size
        self.mask = options.table or vocabulary.size
        self.embedding = nn.Embedding(self.mask + MASK_ROWS, options.width)
        scale = LOGIT_STD * options.width**-0.5
        nn.init.normal_(self.embedding.weight, std=scale)
        self.positions = nn.Parameter(POSITION_STD * scale * _sinusoids(options.positions or length, options.width))
        self.layers = nn.ModuleList(Layer(options.shape, updated=None, modulated=False) for _ in range(layers))
        self.norm = nn.LayerNorm(options.width)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.features(tokens), self.table)

    def logits_at(self, tokens: Tensor, places: Tensor) -> Tensor:
        """The logits of some tokens alone: places (N, T) bool, K of them true -> (K, V)."""
        return F.linear(self.features(tokens)[places], self.table)

    def features(self, tokens: Tensor) -> Tensor:
        """(N, T) -> (N, T, D), of which the logits are the products with `table`."""
        x = self.embedding(tokens).add_(self.positions[:, : tokens.shape[1]])
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    @property
    def table(self) -> Tensor:
        """The output matrix (V, D): a view of the embedding."""
        return self.embedding.weight[: self.vocabulary]

    def residual_layers(self) -> Sequence[nn.Module]:
        return tuple(self.layers)


def _sinusoids(count: int, width: int) -> Tensor:
    """Where the learned positions start: (1, count, width), sines and cosines of wavelengths from 2 pi to 1000 times
    that, of size one. What lies next to a token is then a turn of the same angle everywhere."""
    angles = torch.arange(count)[:, None] * LONGEST ** (-torch.arange(0, width, 2) / width)  # (count, width / 2)
    return math.sqrt(2) * torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)[None]


# The card's formulas. tests/unit/test_mdm.py holds them against measured bytes.
RULES = (
    OptionRule(
        expression="sigma_data == 0.5",
        pointer="/noise/sigma_data",
        message="mdm masks tokens: its noise has no sigma_data ({sigma_data})",
    ),
    OptionRule(
        expression="width % heads == 0",
        pointer="/heads",
        message="heads ({heads}) must divide width ({width})",
    ),
    OptionRule(expression="width % 2 == 0", pointer="/width", message="width ({width}) must be even"),
    OptionRule(
        expression="sequence_length <= (positions or sequence_length)",
        pointer="/positions",
        message="windows of {sequence_length} tokens do not fit into {positions} positions",
    ),
    OptionRule(
        expression="vocabulary <= (table or vocabulary)",
        pointer="/table",
        message="a vocabulary of {vocabulary} tokens does not fit into a table of {table} rows",
    ),
)
NOISE = NoiseDefaults(
    process="masking",
    p_mean=None,
    p_std=None,
    sigma_min="1 / sequence_length",
    sigma_max="1.0",
    low_reach="low_mask_reach or 0",
)
DEFINITIONS = (
    ("hidden", "mlp or 4 * width"),
    ("tokens", "sequence_length"),
    ("modulated", "0"),
    ("rank", "0"),
    *LAYER_DEFINITIONS,
    # Of a token: its index; the final norm's input, mean and deviation (float32).
    ("stem_bytes", "batch * tokens * (8 + 4 * width + 8)"),
    # The loss at once: the features, log-probabilities (float32), target and weight of every token; the matrix's copy.
    ("whole_loss_bytes", "batch * tokens * (bytes * width + 4 * vocabulary + 12) + copied * vocabulary * width"),
    # In chunks: the gradients of the features and of the matrix (float32).
    ("chunked_loss_bytes", "batch * tokens * bytes * width + 4 * vocabulary * width"),
    ("around_bytes", "stem_bytes + (chunked_loss_bytes if loss_chunk else whole_loss_bytes)"),
    ("residual_bytes", "4 * batch * tokens * width"),  # what a recomputed layer keeps: its input
    ("kept_bytes", "layer_bytes + copied * layer_matrices"),
)
FOOTPRINT = Footprint(
    parameters="layers * (layer_parameters + norm_parameters) + 2 * width"
    f" + ((table or vocabulary) + {MASK_ROWS} + (positions or sequence_length)) * width",
    activations="layers * kept_bytes + around_bytes",
    checkpointed="(layers - 1) * residual_bytes + kept_bytes + around_bytes",
    hidden_matrices="layers * layer_matrices",
)


class Mdm:
    """Architecture "mdm"."""

    kind = "mdm"
    family: Family = "masked_text"

    def card(self) -> ArchitectureCard:
        return ArchitectureCard(
            kind=self.kind,
            summary="Masked diffusion of text: a bidirectional transformer that fills in masked tokens.",
            family=self.family,
            modality="text",
            recipe=Recipe(partition="equi_probability", overlap=0.1, lr=2e-3),
            options_schema=Options.model_json_schema(),
            rules=RULES,
            definitions=DEFINITIONS,
            code_dim="0",
            noise=NOISE,
            denoiser=FOOTPRINT,
            baseline=FOOTPRINT,
        )

    def denoiser(self, contract: Contract, layers: int) -> MaskedTransformer:
        return MaskedTransformer(Options.model_validate(contract.options), contract, layers)

    def denoising_loss(self, contract: Contract, network: nn.Module, interval: tuple[float, float]) -> Loss:
        chunk = Options.model_validate(contract.options).loss_chunk
        return partial(_masked_loss, cast(MaskedTransformer, network), interval, chunk)

    def baseline(self, contract: Contract, layers: int) -> MaskedTransformer:
        return self.denoiser(contract, layers)

    def baseline_loss(self, contract: Contract, network: nn.Module) -> Loss:
        return self.denoising_loss(contract, network, (contract.sigma_min, contract.sigma_max))


def _masked_loss(
    network: MaskedTransformer,
    interval: tuple[float, float],
    chunk: int | None,
    batch: Batch,
    generator: torch.Generator,
) -> Tensor:
    """CE of masked tokens at levels of the interval, nats a token (workers.method.masking). No other token counts."""
    tokens = batch.inputs  # (N, T)
    levels = stratified_levels(len(tokens), interval, generator=generator)  # (N,)
    masked = masked_positions(levels, tokens.shape[1], generator=generator)  # (N, T)
    features = network.features(tokens.masked_fill(masked, network.mask))  # (N, T, D)
    return chunked_cross_entropy(
        features.flatten(0, 1), network.table, tokens.flatten(), loss_weights(masked).flatten(), chunk=chunk
    )


MDM = Mdm()

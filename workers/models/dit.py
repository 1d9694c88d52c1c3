"""Diffusion transformer for class-conditional images: a denoiser in pixel space, or in that of any float32 array.

N batch, C channels, T tokens (patches), D width, K classes. A block and a baseline are the same network and differ
only in the noise levels they learn. Each has its own embeddings, time conditioning and head: blocks share nothing.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from dbserve.contracts.card import ArchitectureCard, Family, Footprint, NoiseDefaults, OptionRule, Recipe
from dbserve.contracts.plan import Contract
from workers.data import Batch, normalise
from workers.method.noise import NoiseDistribution, sample_sigmas
from workers.method.objective import edm_target, noised
from workers.method.ode import Denoiser, OdeSampler, guided
from workers.method.precondition import c_in, c_out, c_skip
from workers.models.encoder import (
    FREQUENCIES,
    LAYER_DEFINITIONS,
    Activation,
    Conditioning,
    Layer,
    LayerShape,
    TimeEmbedding,
    patches,
    unpatched,
)
from workers.models.gaussian import noise_of
from workers.models.protocol import Loss, Sampling

LONGEST_WAVE = 10_000.0  # of the positions, in patches / 2 pi


class Options(BaseModel, frozen=True):
    """Options of kind "dit"."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    depth: Annotated[int, Field(ge=1, le=100_000, description="layers of the whole network")] = 12
    width: Annotated[int, Field(ge=4, le=65_536, description="of a token; a multiple of 4")] = 128
    heads: Annotated[int, Field(ge=1, le=4_096, description="attention heads; divides width")] = 4
    patch: Annotated[int, Field(ge=1, le=4_096, description="side of a square patch in pixels; divides the image")] = 2
    mlp: Annotated[int | None, Field(ge=1, le=1_048_576, description="hidden width; null: 4 x width")] = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, description="after attention, activation and MLP")] = 0.0
    conditioning: Annotated[Conditioning, Field(description="how noise level and class reach the layers")] = "add"
    activation: Annotated[Activation, Field(description="of the MLP")] = "gelu"
    norm_eps: Annotated[float, Field(gt=0.0, le=0.1, description="of every norm")] = 1e-5
    attention_norm_eps: Annotated[
        float | None, Field(gt=0.0, le=0.1, description="of the norm before attention; null: norm_eps")
    ] = None
    label_dropout: Annotated[
        float, Field(ge=0.0, lt=1.0, description="share of training images whose class is hidden, for guidance")
    ] = 0.1
    guidance: Annotated[
        float, Field(ge=0.0, le=100.0, description="scale of classifier-free guidance in samples; 1: none")
    ] = 1.0
    sampler: Annotated[OdeSampler, Field(description="of the probability-flow ODE")] = "dpm_solver_pp_2m"

    def layer(self) -> LayerShape:
        return LayerShape(
            width=self.width,
            heads=self.heads,
            hidden=self.mlp or 4 * self.width,
            dropout=self.dropout,
            conditioning=self.conditioning,
            activation=self.activation,
            norm_eps=self.norm_eps,
            attention_norm_eps=self.attention_norm_eps,
        )


class DitNetwork(nn.Module):
    """D(z, sigma, y): z (N, C, H, W), sigma (N,), labels (N,) int64 -> (N, C, H, W) float32, preconditioned as in EDM.

    Label K (`null`) hides the class; there is none where label_dropout is 0.
    """

    positions: Tensor

    def __init__(self, options: Options, contract: Contract, layers: int) -> None:
        super().__init__()
        self.shape = contract.image
        height, width_px, channels = self.shape
        self.sigma_data = contract.sigma_data
        self.patch = options.patch
        self.modulated = options.conditioning != "add"
        self.label_dropout = options.label_dropout
        self.null = len(contract.class_names)
        self.embedding = nn.Linear(channels * options.patch**2, options.width)
        grid = (height // options.patch, width_px // options.patch)
        self.register_buffer("positions", grid_positions(*grid, options.width), persistent=False)
        self.time = TimeEmbedding(options.width)
        self.labels = nn.Embedding(self.null + (1 if options.label_dropout > 0 else 0), options.width)
        self.layers = nn.ModuleList(
            Layer(options.layer(), updated=None, modulated=self.modulated) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(options.width)
        self.head = nn.Linear(options.width, channels * options.patch**2)
        nn.init.zeros_(self.head.weight)  # a fresh network says F = 0: D = c_skip z, the best guess without a network
        nn.init.zeros_(self.head.bias)

    def forward(self, z: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        skip, out = (coefficient(sigma, self.sigma_data)[:, None, None, None] for coefficient in (c_skip, c_out))
        return skip * z + out * unpatched(self.bare(z, sigma, labels), self.patch, self.shape).float()

    def bare(self, z: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """F, before it is scaled and added: the same arguments -> patches (N, T, C side^2), in autocast's type."""
        condition = self.time(sigma) + self.labels(labels)  # (N, D)
        scaled = c_in(sigma, self.sigma_data)[:, None, None, None] * z
        # The matrix as rows: its gradient is then (patches^T g), which a CPU takes an eighth of the time for that
        # (g^T patches) takes where a patch has few pixels.
        matrix = self.embedding.weight.t().contiguous()  # (C side^2, D)
        x = patches(scaled, self.patch) @ matrix + (self.positions + self.embedding.bias)  # (N, T, D)
        if not self.modulated:
            x.add_(condition[:, None])
        for layer in self.layers:
            x = layer(x, condition if self.modulated else None)
        return self.head(self.norm(x))

    def residual_layers(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self.layers)


def grid_positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of column and row, a quarter of the width each, never trained: (1, rows x columns, width).

    Wavelengths from 2 pi to 2 pi x 10,000 patches, as in DiT (arXiv 2212.09748).
    """
    frequencies = LONGEST_WAVE ** -(torch.arange(width // 4) / (width // 4))
    down, across = (torch.arange(count)[:, None] * frequencies for count in (rows, columns))
    down = torch.cat((down.sin(), down.cos()), dim=1)[:, None].expand(rows, columns, -1)
    across = torch.cat((across.sin(), across.cos()), dim=1)[None].expand(rows, columns, -1)
    return torch.cat((across, down), dim=2).reshape(1, rows * columns, width)


def _denoising_loss(
    network: DitNetwork,
    interval: tuple[float, float],
    noise: NoiseDistribution,
    batch: Batch,
    generator: torch.Generator,
) -> Tensor:
    """The squared error of F itself, patch by patch: EDM's weighted error of D at less arithmetic."""
    targets, labels = normalise(batch.inputs), batch.targets  # (N, C, H, W), (N,)
    sigma = sample_sigmas(len(targets), interval, noise, generator=generator)
    z = noised(targets, sigma, generator=generator)
    labels = hidden(labels, network.label_dropout, network.null, generator=generator)
    wanted = patches(edm_target(targets, z, sigma, network.sigma_data), network.patch)  # (N, T, C side^2)
    return (network.bare(z, sigma, labels) - wanted).square().mean()


def hidden(labels: Tensor, share: float, null: int, *, generator: torch.Generator) -> Tensor:
    """The labels, each replaced by `null` with probability `share`: (N,) -> (N,)."""
    if share == 0.0:
        return labels
    drawn = torch.rand(len(labels), device=labels.device, generator=generator)
    return torch.where(drawn < share, null, labels)


# The card's formulas. tests/unit/test_dit.py holds them against measured bytes.
RULES = (
    OptionRule(
        expression="width % heads == 0",
        pointer="/heads",
        message="heads ({heads}) must divide width ({width})",
    ),
    OptionRule(
        expression="width % 4 == 0",
        pointer="/width",
        message="width ({width}) must be a multiple of 4: sines and cosines of row and column share it",
    ),
    OptionRule(
        expression="height % patch == 0 and width_px % patch == 0",
        pointer="/patch",
        message="patch ({patch}) must divide the image ({height} x {width_px} pixels)",
    ),
    OptionRule(
        expression="guidance == 1 or label_dropout > 0",
        pointer="/guidance",
        message="guidance ({guidance}) needs a network that has learnt without the class: label_dropout above 0",
    ),
)
NOISE = NoiseDefaults(p_mean="-1.2", p_std="1.2", sigma_min="0.002", sigma_max="80.0")
DEFINITIONS = (
    ("hidden", "mlp or 4 * width"),
    ("tokens", "(height // patch) * (width_px // patch)"),
    ("pixels", "channels * patch * patch"),  # of a patch
    ("modulated", "0 if conditioning == 'add' else 1"),
    ("rank", "max(1, width // 6) if conditioning == 'adaln_low_rank' else 0"),
    *LAYER_DEFINITIONS,
    # Patch embedding, time embedding, labels, final norm, head.
    ("stem_parameters", f"(pixels + 1) * width + {2 * FREQUENCIES + 2} * width + width * width"),
    ("label_parameters", "(classes + (1 if label_dropout > 0 else 0)) * width"),
    ("head_parameters", "2 * width + (width + 1) * pixels"),
    # Bytes: the patches, the final norm and the head; the difference that is squared. Then the conditioning: the inputs
    # of the time embedding's two layers and of its activation, and the labels.
    ("token_bytes", "batch * tokens * (bytes * pixels + 4 * width + 8 + bytes * width + 4 * pixels)"),
    ("condition_bytes", f"batch * (bytes * ({2 * FREQUENCIES} + 2 * width) + 8)"),
    # adaLN's activation keeps the whole condition too.
    (
        "around_bytes",
        "token_bytes + condition_bytes + modulated * 4 * batch * width + copied * width * (width + pixels)",
    ),
    ("residual_bytes", "4 * batch * tokens * width"),  # what a recomputed layer keeps: its input
    (
        "kept_bytes",
        "layer_bytes + modulated * modulation_bytes + copied * (layer_matrices + modulated * modulation_matrices)",
    ),
)
NETWORK = Footprint(
    parameters="layers * (layer_parameters + modulation_parameters + (1 - modulated) * norm_parameters)"
    " + stem_parameters + label_parameters + head_parameters",
    activations="layers * kept_bytes + around_bytes",
    checkpointed="(layers - 1) * residual_bytes + kept_bytes + around_bytes",
    hidden_matrices="layers * (layer_matrices + modulated * modulation_matrices)",
)


class Dit:
    """Architecture "dit"."""

    kind = "dit"
    family: Family = "generation"

    def card(self) -> ArchitectureCard:
        return ArchitectureCard(
            kind=self.kind,
            summary="Diffusion transformer; generates images of a class by denoising, one block a sampling step.",
            family=self.family,
            modality="images",
            recipe=Recipe(partition="equi_probability", overlap=0.05, lr=3e-3, ema=0.99),
            options_schema=Options.model_json_schema(),
            rules=RULES,
            definitions=DEFINITIONS,
            code_dim="height * width_px * channels",
            noise=NOISE,
            denoiser=NETWORK,
            baseline=NETWORK,
        )

    def denoiser(self, contract: Contract, layers: int) -> DitNetwork:
        return DitNetwork(_options(contract), contract, layers)

    def denoising_loss(self, contract: Contract, network: nn.Module, interval: tuple[float, float]) -> Loss:
        return partial(_denoising_loss, cast(DitNetwork, network), interval, noise_of(contract))

    def baseline(self, contract: Contract, layers: int) -> DitNetwork:
        return self.denoiser(contract, layers)

    def baseline_loss(self, contract: Contract, network: nn.Module) -> Loss:
        return self.denoising_loss(contract, network, (contract.sigma_min, contract.sigma_max))

    def sampling(self, contract: Contract) -> Sampling:
        options = _options(contract)
        return Sampling(options.sampler, options.guidance)

    def of_classes(self, network: nn.Module, labels: Tensor, guidance: float) -> Denoiser:
        dit = cast(DitNetwork, network)
        nothing = torch.full_like(labels, dit.null)
        return guided(partial(_answer, dit, labels), partial(_answer, dit, nothing), guidance)


DIT = Dit()


def _options(contract: Contract) -> Options:
    return Options.model_validate(contract.options)


def _answer(network: DitNetwork, labels: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    return network(z, sigma, labels)

"""Vision transformer for classification: a denoiser of label codes, and the plain network it is compared with.

Shapes: N batch, C channels, T tokens (patches + cls), D width, M hidden width of the MLP, d code dimensions, K classes.
Both networks are made of the same Layer. Only the cls token is read out, so the last layer of *either* computes
queries, projection and MLP for that token alone: the same function at a fraction of the memory and time.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from dbserve.contracts.card import ArchitectureCard, Family, Footprint, NoiseDefaults, OptionRule
from dbserve.contracts.plan import Contract
from dbserve.contracts.report import DecodeRule
from workers.method.codes import CodeFamily, code_norm, expected_code, log_posterior, target_codes
from workers.method.precondition import c_in
from workers.method.sampler import Bridge, ChainInit
from workers.models.classification import code_denoising_loss, label_loss
from workers.models.encoder import (
    FREQUENCIES,
    LAYER_DEFINITIONS,
    Activation,
    Conditioning,
    Layer,
    LayerShape,
    TimeEmbedding,
    patches,
)
from workers.models.protocol import Answering, Loss

POSTERIOR_SCALE = 8.0  # length of a sure posterior mean as it enters the projection
CLS = 1  # the readout's tokens
POSITION_STD = 0.5  # as large as the patches' embeddings: at 0.02 a small network finds out late where a patch is


class Options(BaseModel, frozen=True):
    """Options of kind "vit". Defaults: the recipe that worked best in isolation; docs/method.md says why."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    depth: Annotated[int, Field(ge=1, le=100_000, description="layers of the whole network")] = 12
    width: Annotated[int, Field(ge=2, le=65_536, description="of a token")] = 128
    heads: Annotated[int, Field(ge=1, le=4_096, description="attention heads; divides width")] = 4
    patch: Annotated[int, Field(ge=1, le=4_096, description="side of a square patch in pixels; divides the image")] = 4
    mlp: Annotated[int | None, Field(ge=1, le=1_048_576, description="hidden width; null: 4 x width")] = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, description="after attention, activation and MLP")] = 0.0
    conditioning: Annotated[Conditioning, Field(description="how sigma reaches the layers")] = "add"
    activation: Annotated[Activation, Field(description="of the MLP")] = "gelu"
    norm_eps: Annotated[float, Field(gt=0.0, le=0.1, description="of every norm")] = 1e-5
    codes: Annotated[CodeFamily, Field(description="frozen target codes")] = "simplex"
    readout: Annotated[Literal["bayes", "linear"], Field(description="bayes: the head only learns ln p(y|x)")] = "bayes"
    z_input: Annotated[Literal["posterior_mean", "raw"], Field(description="how z enters the cls token")] = (
        "posterior_mean"
    )
    chain_init: Annotated[ChainInit, Field(description="z at sigma_max when the chain answers")] = "zero"
    bridge: Annotated[Bridge, Field(description="what carries z on: the mean code, or that of the likeliest class")] = (
        "soft"
    )
    decode: Annotated[
        DecodeRule | None, Field(description="how the blocks answer; null: the best of them on validation rows")
    ] = None

    def layer(self) -> LayerShape:
        return LayerShape(
            width=self.width,
            heads=self.heads,
            hidden=self.mlp or 4 * self.width,
            dropout=self.dropout,
            conditioning=self.conditioning,
            activation=self.activation,
            norm_eps=self.norm_eps,
        )


class Trunk(nn.Module):
    """Patches, positions, cls token, layers and final norm: images and what is added to the tokens -> (N, D)."""

    def __init__(self, options: Options, contract: Contract, layers: int, *, modulated: bool) -> None:
        super().__init__()
        height, width_px, channels = contract.image
        self.patch = options.patch
        count = (height // options.patch) * (width_px // options.patch)
        self.embedding = nn.Linear(channels * options.patch**2, options.width)
        self.cls = nn.Parameter(0.02 * torch.randn(1, CLS, options.width))
        self.positions = nn.Parameter(POSITION_STD * torch.randn(1, count, options.width))
        self.layers = nn.ModuleList(
            Layer(options.layer(), updated=CLS if index == layers - 1 else None, modulated=modulated)
            for index in range(layers)
        )
        self.norm = nn.LayerNorm(options.width, eps=options.norm_eps)

    def forward(
        self,
        images: Tensor,
        *,
        onto_cls: Tensor | None = None,
        onto_all: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """images (N, C, H, W); onto_cls, onto_all and condition (N, D) each -> features of the cls token (N, D)."""
        cls = self.cls.expand(len(images), -1, -1)
        if onto_cls is not None:
            cls = cls + onto_cls[:, None]
        embedded = self.embedding(patches(images, self.patch)) + self.positions
        x = torch.cat((cls, embedded), dim=1)  # (N, T, D)
        if onto_all is not None:
            x = x + onto_all[:, None]
        for layer in self.layers:
            x = layer(x, condition)
        return self.norm(x[:, 0])

    def residual_layers(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self.layers)


class VitDenoiser(nn.Module):
    """A block. images (N, C, H, W), z (N, d), sigma (N,) -> logits (N, K), the readout included."""

    codes: Tensor

    def __init__(self, options: Options, contract: Contract, layers: int) -> None:
        super().__init__()
        self.z_input = options.z_input
        self.readout = options.readout
        self.sigma_data = contract.sigma_data
        self.register_buffer("codes", _codes(options, contract), persistent=False)
        self.z_scale = POSTERIOR_SCALE / code_norm(options.codes, contract.code_dim, contract.sigma_data)
        self.modulated = options.conditioning != "add"
        self.z_projection = nn.Linear(contract.code_dim, options.width, bias=False)
        nn.init.normal_(self.z_projection.weight, std=0.02)
        self.time = TimeEmbedding(options.width)
        self.trunk = Trunk(options, contract, layers, modulated=self.modulated)
        self.head = nn.Linear(options.width, len(contract.class_names))

    def forward(self, images: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        prior = log_posterior(z, self.codes, sigma)  # (N, K)
        if self.z_input == "posterior_mean":
            seen = self.z_scale * expected_code(prior, self.codes)
        else:
            seen = c_in(sigma, self.sigma_data)[:, None] * z
        time = self.time(sigma)
        features = self.trunk(
            images,
            onto_cls=self.z_projection(seen),
            onto_all=None if self.modulated else time,
            condition=time if self.modulated else None,
        )
        logits = self.head(features)
        # Bayes: p(y | x, z) ~ p(y | x) p(z | y), and the second factor is known.
        return logits + prior if self.readout == "bayes" else logits

    def residual_layers(self) -> Sequence[nn.Module]:
        return self.trunk.residual_layers()


class VitClassifier(nn.Module):
    """The baseline. images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, options: Options, contract: Contract, layers: int) -> None:
        super().__init__()
        self.trunk = Trunk(options, contract, layers, modulated=False)
        self.head = nn.Linear(options.width, len(contract.class_names))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))

    def residual_layers(self) -> Sequence[nn.Module]:
        return self.trunk.residual_layers()


def _codes(options: Options, contract: Contract) -> Tensor:
    return target_codes(
        options.codes,
        len(contract.class_names),
        contract.code_dim,
        sigma_data=contract.sigma_data,
        seed=contract.codes_seed,
    )


# The card's formulas. tests/unit/test_vit.py holds them against measured bytes.
RULES = (
    OptionRule(
        expression="width % heads == 0",
        pointer="/heads",
        message="heads ({heads}) must divide width ({width})",
    ),
    OptionRule(
        expression="height % patch == 0 and width_px % patch == 0",
        pointer="/patch",
        message="patch ({patch}) must divide the image ({height} x {width_px} pixels)",
    ),
)
NOISE = NoiseDefaults(
    p_mean="ln(1 if codes == 'unit_norm' else sigma_data * sqrt(code_dim)) + 1",
    p_std="1.2",
    sigma_min="0.002",
    sigma_max="80.0",
)
DEFINITIONS = (
    ("hidden", "mlp or 4 * width"),
    ("tokens", "(height // patch) * (width_px // patch) + 1"),
    ("modulated", "0 if conditioning == 'add' else 1"),
    ("rank", "max(1, width // 6) if conditioning == 'adaln_low_rank' else 0"),
    *LAYER_DEFINITIONS,
    ("stem_parameters", "channels * patch * patch * width + width + width + (tokens - 1) * width"),
    ("head_parameters", "2 * width + width * classes + classes"),
    ("patch_bytes", "batch * (tokens - 1) * channels * patch * patch * bytes"),
    ("readout_bytes", "batch * (4 * width + 8 + bytes * width + 4 * classes + 8)"),
    (
        "plain_bytes",
        "(layers - 1) * layer_bytes + last_layer_bytes + patch_bytes + readout_bytes"
        " + copied * (layers * layer_matrices + width * classes)",
    ),
    ("residual_bytes", "4 * batch * tokens * width"),
)
# Recomputed, every layer keeps its input alone; then what one layer saves besides, while it is computed anew.
CHECKPOINTED = (
    "(layers - 1) * residual_bytes + (layer_bytes if layers > 1 else last_layer_bytes)"
    " + patch_bytes + readout_bytes + copied * (layer_matrices + width * classes)"
)
DENOISER = Footprint(
    parameters="layers * (layer_parameters + modulation_parameters + (1 - modulated) * norm_parameters)"
    f" + stem_parameters + head_parameters + code_dim * width + {2 * FREQUENCIES + 2} * width + width * width",
    activations="plain_bytes + modulated * ((layers - 1) * modulation_bytes + last_modulation_bytes)"
    f" + batch * bytes * ({2 * FREQUENCIES} + 2 * width + code_dim)"
    " + copied * (layers * modulation_matrices + width * width)",
    checkpointed=f"{CHECKPOINTED} + modulated * (modulation_bytes if layers > 1 else last_modulation_bytes)"
    f" + batch * bytes * ({2 * FREQUENCIES} + 2 * width + code_dim)"
    " + copied * (modulated * modulation_matrices + width * width)",
    hidden_matrices="layers * (layer_matrices + modulated * modulation_matrices)",
)
BASELINE = Footprint(
    parameters="layers * (layer_parameters + norm_parameters) + stem_parameters + head_parameters",
    activations="plain_bytes",
    checkpointed=CHECKPOINTED,
    hidden_matrices="layers * layer_matrices",
)


class Vit:
    """Architecture "vit"."""

    kind = "vit"
    family: Family = "classification"

    def card(self) -> ArchitectureCard:
        return ArchitectureCard(
            kind=self.kind,
            summary="Vision transformer; classifies images as denoising of a label code.",
            family=self.family,
            modality="images",
            options_schema=Options.model_json_schema(),
            rules=RULES,
            definitions=DEFINITIONS,
            code_dim="classes - 1 if codes == 'simplex' else classes if codes == 'orthonormal' else width",
            code_norm="1 if codes == 'unit_norm' else sigma_data * sqrt(classes)",
            noise=NOISE,
            denoiser=DENOISER,
            baseline=BASELINE,
        )

    def codes(self, contract: Contract) -> Tensor:
        return _codes(_options(contract), contract)

    def answering(self, contract: Contract) -> Answering:
        options = _options(contract)
        return Answering(options.chain_init, options.bridge, options.decode)

    def denoiser(self, contract: Contract, layers: int) -> VitDenoiser:
        return VitDenoiser(_options(contract), contract, layers)

    def denoising_loss(self, contract: Contract, network: nn.Module, interval: tuple[float, float]) -> Loss:
        codes = cast(VitDenoiser, network).codes
        return code_denoising_loss(contract, network, codes, interval)

    def baseline(self, contract: Contract, layers: int) -> VitClassifier:
        return VitClassifier(_options(contract), contract, layers)

    def baseline_loss(self, contract: Contract, network: nn.Module) -> Loss:
        return label_loss(network)


VIT = Vit()


def _options(contract: Contract) -> Options:
    return Options.model_validate(contract.options)

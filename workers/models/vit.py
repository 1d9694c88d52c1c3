"""Vision transformer for classification: a denoiser of label codes, and the plain network it is compared with.

Shapes: N batch, C channels, T tokens (patches + cls), D width, M hidden width of the MLP, d code dimensions, K classes.
Both networks are made of the same Layer. Only the cls token is read out, so the last layer of *either* computes
queries, projection and MLP for that token alone: the same function at a fraction of the memory and time.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from dbserve.contracts.card import ArchitectureCard, Footprint, NoiseDefaults, OptionRule
from dbserve.contracts.plan import Contract
from workers.method.codes import CodeFamily, code_norm, expected_code, log_posterior, target_codes
from workers.method.precondition import c_in, c_noise
from workers.method.sampler import ChainInit
from workers.models.dropout import Dropout

FREQUENCIES = 32  # of the time embedding, from 0.25 to 32 in geometric steps
ADALN_DIVISOR = 6  # hidden width of the low-rank adaLN = width / 6, as published
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
    conditioning: Annotated[
        Literal["add", "adaln_low_rank", "adaln"], Field(description="how sigma reaches the layers")
    ] = "add"
    codes: Annotated[CodeFamily, Field(description="frozen target codes")] = "simplex"
    readout: Annotated[Literal["bayes", "linear"], Field(description="bayes: the head only learns ln p(y|x)")] = "bayes"
    z_input: Annotated[Literal["posterior_mean", "raw"], Field(description="how z enters the cls token")] = (
        "posterior_mean"
    )
    chain_init: Annotated[ChainInit, Field(description="z at sigma_max when the chain answers")] = "zero"

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP."""
        return self.mlp or 4 * self.width

    @property
    def adaln_rank(self) -> int:
        """Hidden width of the low-rank adaLN."""
        return max(1, self.width // ADALN_DIVISOR)


class Layer(nn.Module):
    """A pre-norm transformer layer that updates the first `updated` tokens (None: all) from all of them.

    (N, T, D) -> (N, updated or T, D). `condition` (N, D) modulates it where conditioning is adaLN.
    """

    def __init__(self, options: Options, *, updated: int | None, modulated: bool) -> None:
        super().__init__()
        width = options.width
        self.updated = updated
        self.heads = options.heads
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=not modulated)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=not modulated)
        self.expand = nn.Linear(width, options.hidden)
        self.contract = nn.Linear(options.hidden, width)
        self.dropout = Dropout(options.dropout)
        self.modulation = _modulation(options) if modulated else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if self.modulation is None:
            x = x[:, : self.updated] + self._attention(self.attention_norm(x))
            return x + self._mlp(self.mlp_norm(x))
        assert condition is not None
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition)[:, None].chunk(6, dim=2)
        x = x[:, : self.updated] + gate * self._attention(self.attention_norm(x) * (1 + scale) + shift)
        return x + mlp_gate * self._mlp(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift)

    def _attention(self, x: Tensor) -> Tensor:
        if self.updated is None:
            queries, keys, values = self.qkv(x).chunk(3, dim=2)
        else:
            width, weight, bias = x.shape[2], self.qkv.weight, self.qkv.bias
            queries = F.linear(x[:, : self.updated], weight[:width], bias[:width])
            keys, values = F.linear(x, weight[width:], bias[width:]).chunk(2, dim=2)
        mixed = F.scaled_dot_product_attention(self._split(queries), self._split(keys), self._split(values))
        return self.dropout(self.projection(mixed.transpose(1, 2).flatten(2)))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.dropout(self.contract(self.dropout(F.gelu(self.expand(x)))))

    def _split(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, heads, T, D / heads)."""
        rows, tokens, width = x.shape
        return x.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)


def _modulation(options: Options) -> nn.Sequential:
    """(N, D) -> (N, 6 D), zero at the start, so that a fresh layer passes its input on (adaLN-zero, DiT)."""
    width = options.width
    up = nn.Linear(width if options.conditioning == "adaln" else options.adaln_rank, 6 * width)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    if options.conditioning == "adaln":
        return nn.Sequential(nn.SiLU(), up)
    return nn.Sequential(nn.SiLU(), nn.Linear(width, options.adaln_rank), up)


class Trunk(nn.Module):
    """Patches, positions, cls token, layers and final norm: images and what is added to the tokens -> (N, D)."""

    def __init__(self, options: Options, contract: Contract, layers: int, *, modulated: bool) -> None:
        super().__init__()
        height, width_px, channels = contract.image_shape
        self.patch = options.patch
        patches = (height // options.patch) * (width_px // options.patch)
        self.embedding = nn.Linear(channels * options.patch**2, options.width)
        self.cls = nn.Parameter(0.02 * torch.randn(1, CLS, options.width))
        self.positions = nn.Parameter(POSITION_STD * torch.randn(1, patches, options.width))
        self.layers = nn.ModuleList(
            Layer(options, updated=CLS if index == layers - 1 else None, modulated=modulated) for index in range(layers)
        )
        self.norm = nn.LayerNorm(options.width)

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
        patches = self.embedding(self._patches(images)) + self.positions
        x = torch.cat((cls, patches), dim=1)  # (N, T, D)
        if onto_all is not None:
            x = x + onto_all[:, None]
        for layer in self.layers:
            x = layer(x, condition)
        return self.norm(x[:, 0])

    def _patches(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, patches, C * patch^2)."""
        rows, channels, height, width = images.shape
        side = self.patch
        cut = images.reshape(rows, channels, height // side, side, width // side, side)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * side**2)


class TimeEmbedding(nn.Module):
    """sigma (N,) -> (N, D): sines and cosines of ln(sigma)/4, then two linear layers."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer(
            "frequencies", torch.logspace(math.log2(0.25), math.log2(32), FREQUENCIES, base=2), persistent=False
        )
        self.layers = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Tensor) -> Tensor:
        angles = c_noise(sigma)[:, None] * self.frequencies  # (N, FREQUENCIES)
        return self.layers(torch.cat((angles.sin(), angles.cos()), dim=1))


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


class VitClassifier(nn.Module):
    """The baseline. images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, options: Options, contract: Contract, layers: int) -> None:
        super().__init__()
        self.trunk = Trunk(options, contract, layers, modulated=False)
        self.head = nn.Linear(options.width, len(contract.class_names))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))


def _codes(options: Options, contract: Contract) -> Tensor:
    return target_codes(
        options.codes,
        len(contract.class_names),
        contract.code_dim,
        sigma_data=contract.sigma_data,
        seed=contract.codes_seed,
    )


# The card's formulas. tests/unit/test_vit_footprint.py holds them against measured bytes.
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
    # Weights of one layer: what every layer has, and what adaLN adds to it (its norms have no weights of their own).
    ("layer_matrices", "4 * width * width + 2 * width * hidden"),
    ("layer_parameters", "layer_matrices + 5 * width + hidden"),
    ("modulation_matrices", "modulated * 6 * width * (rank or width) + width * rank"),
    ("modulation_parameters", "modulated * (modulation_matrices + 6 * width + rank)"),
    ("norm_parameters", "4 * width"),
    ("stem_parameters", "channels * patch * patch * width + width + width + (tokens - 1) * width"),
    ("head_parameters", "2 * width + width * classes + classes"),
    # Bytes saved by a layer that updates `tokens` tokens, and by the last one, which updates the cls token alone:
    # both norms' inputs, means and deviations (float32); their outputs, keys, values, queries, mixed values,
    # log-sum-exp; the MLP around its activation; dropout's masks.
    ("masked", "1 if dropout > 0 else 0"),
    (
        "layer_bytes",
        "batch * tokens * (8 * width + 16 + 6 * bytes * width + 4 * heads + 2 * bytes * hidden"
        " + masked * (2 * width + hidden))",
    ),
    (
        "last_layer_bytes",
        "batch * tokens * (4 * width + 8 + 3 * bytes * width)"
        " + batch * (4 * width + 8 + 3 * bytes * width + 4 * heads + 2 * bytes * hidden"
        " + masked * (2 * width + hidden))",
    ),
    # adaLN: both norms' outputs before it and both branches before their gates; shifts, scales and gates themselves.
    ("modulation_vectors", "batch * bytes * (9 * width + rank)"),
    ("modulation_bytes", "batch * tokens * width * (8 + 2 * bytes) + modulation_vectors"),
    ("last_modulation_bytes", "batch * tokens * width * 4 + batch * width * (4 + 2 * bytes) + modulation_vectors"),
    ("patch_bytes", "batch * (tokens - 1) * channels * patch * patch * bytes"),
    ("readout_bytes", "batch * (4 * width + 8 + bytes * width + 4 * classes + 8)"),
    # Under autocast the weights' bfloat16 copies are saved as well.
    ("copied", "2 if bytes == 2 else 0"),
    (
        "plain_bytes",
        "(layers - 1) * layer_bytes + last_layer_bytes + patch_bytes + readout_bytes"
        " + copied * (layers * layer_matrices + width * classes)",
    ),
)
DENOISER = Footprint(
    parameters="layers * (layer_parameters + modulation_parameters + (1 - modulated) * norm_parameters)"
    f" + stem_parameters + head_parameters + code_dim * width + {2 * FREQUENCIES + 2} * width + width * width",
    activations="plain_bytes + modulated * ((layers - 1) * modulation_bytes + last_modulation_bytes)"
    f" + batch * bytes * ({2 * FREQUENCIES} + 2 * width + code_dim)"
    " + copied * (layers * modulation_matrices + width * width)",
)
BASELINE = Footprint(
    parameters="layers * (layer_parameters + norm_parameters) + stem_parameters + head_parameters",
    activations="plain_bytes",
)


class Vit:
    """Architecture "vit"."""

    kind = "vit"

    def card(self) -> ArchitectureCard:
        return ArchitectureCard(
            kind=self.kind,
            summary="Vision transformer; classifies images as denoising of a label code.",
            options_schema=Options.model_json_schema(),
            rules=RULES,
            definitions=DEFINITIONS,
            code_dim="classes - 1 if codes == 'simplex' else classes if codes == 'orthonormal' else width",
            noise=NOISE,
            denoiser=DENOISER,
            baseline=BASELINE,
        )

    def codes(self, contract: Contract) -> Tensor:
        return _codes(_options(contract), contract)

    def chain_init(self, contract: Contract) -> ChainInit:
        return _options(contract).chain_init

    def denoiser(self, contract: Contract, layers: int) -> VitDenoiser:
        return VitDenoiser(_options(contract), contract, layers)

    def baseline(self, contract: Contract, layers: int) -> VitClassifier:
        return VitClassifier(_options(contract), contract, layers)


VIT = Vit()


def _options(contract: Contract) -> Options:
    return Options.model_validate(contract.options)

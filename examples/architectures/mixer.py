"""MLP-Mixer (arXiv 2105.01601) as denoising blocks: all that a new architecture takes, in one file.

docs/architectures.md walks through it; tests/unit/test_worked_example.py plans, trains, assembles and examines it.
Shapes: N batch, T patches, D width, d code dimensions, K classes.
"""

from collections.abc import Sequence
from typing import Annotated, cast

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from dbserve.contracts.card import ArchitectureCard, Family, Footprint, NoiseDefaults, OptionRule, Recipe
from dbserve.contracts.plan import Contract
from workers.method.codes import code_norm, expected_code, log_posterior, target_codes
from workers.models.classification import code_denoising_loss, label_loss
from workers.models.encoder import FREQUENCIES, TimeEmbedding, patches
from workers.models.protocol import Answering, Loss


# 1. Options: strict, every one described. `depth` is what gets cut into blocks.
class Options(BaseModel, frozen=True):
    """Options of kind "mixer"."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    depth: Annotated[int, Field(ge=1, le=10_000, description="layers of the whole network")] = 8
    width: Annotated[int, Field(ge=2, le=65_536, description="of a patch")] = 64
    patch: Annotated[int, Field(ge=1, le=4_096, description="side of a square patch in pixels")] = 4
    mixing: Annotated[int, Field(ge=1, le=65_536, description="hidden width of the mixing across patches")] = 32
    hidden: Annotated[int, Field(ge=1, le=1_048_576, description="hidden width of the mixing across channels")] = 128


# 2. The residual layer, whose parameters and saved bytes the card's formulas state.
class MixerLayer(nn.Module):
    """x + mix patches, then x + mix channels: (N, T, D) -> (N, T, D)."""

    def __init__(self, options: Options, tokens: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(options.width)
        self.across = nn.Sequential(nn.Linear(tokens, options.mixing), nn.GELU(), nn.Linear(options.mixing, tokens))
        self.channel_norm = nn.LayerNorm(options.width)
        self.within = nn.Sequential(
            nn.Linear(options.width, options.hidden), nn.GELU(), nn.Linear(options.hidden, options.width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.channel_norm(x))


# 3. The two networks: the denoiser (a block) and the baseline, made of the same layers.
class MixerTrunk(nn.Module):
    """images (N, C, H, W) and what is added to every patch (N, D) -> features (N, D)."""

    def __init__(self, options: Options, contract: Contract, layers: int) -> None:
        super().__init__()
        height, width, channels = contract.image
        tokens = (height // options.patch) * (width // options.patch)
        self.patch = options.patch
        self.embedding = nn.Linear(channels * options.patch**2, options.width)
        self.layers = nn.ModuleList(MixerLayer(options, tokens) for _ in range(layers))
        self.norm = nn.LayerNorm(options.width)

    def forward(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        x = self.embedding(patches(images, self.patch))
        if added is not None:
            x = x + added[:, None]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x.mean(dim=1))

    def residual_layers(self) -> Sequence[nn.Module]:
        return cast(Sequence[nn.Module], self.layers)


class MixerDenoiser(nn.Module):
    """A block: images (N, C, H, W), z (N, d), sigma (N,) -> logits (N, K)."""

    codes: Tensor

    def __init__(self, options: Options, contract: Contract, layers: int) -> None:
        super().__init__()
        self.register_buffer("codes", _codes(contract), persistent=False)  # common, so not in the state_dict
        self.scale = 8.0 / code_norm("simplex", contract.code_dim, contract.sigma_data)
        self.z_projection = nn.Linear(contract.code_dim, options.width, bias=False)
        self.time = TimeEmbedding(options.width)
        self.trunk = MixerTrunk(options, contract, layers)
        self.head = nn.Linear(options.width, len(contract.class_names))

    def forward(self, images: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        prior = log_posterior(z, self.codes, sigma)  # (N, K): what z alone tells
        seen = self.z_projection(self.scale * expected_code(prior, self.codes))
        return self.head(self.trunk(images, seen + self.time(sigma))) + prior

    def residual_layers(self) -> Sequence[nn.Module]:
        return self.trunk.residual_layers()


class MixerClassifier(nn.Module):
    """The baseline: images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, options: Options, contract: Contract, layers: int) -> None:
        super().__init__()
        self.trunk = MixerTrunk(options, contract, layers)
        self.head = nn.Linear(options.width, len(contract.class_names))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))

    def residual_layers(self) -> Sequence[nn.Module]:
        return self.trunk.residual_layers()


def _codes(contract: Contract) -> Tensor:
    return target_codes(
        "simplex",
        len(contract.class_names),
        contract.code_dim,
        sigma_data=contract.sigma_data,
        seed=contract.codes_seed,
    )


# 4. The card: what the control plane knows without torch. Formulas are held against measured bytes by the test.
RULES = (
    OptionRule(
        expression="height % patch == 0 and width_px % patch == 0",
        pointer="/patch",
        message="patch ({patch}) must divide the image ({height} x {width_px} pixels)",
    ),
)
DEFINITIONS = (
    ("tokens", "(height // patch) * (width_px // patch)"),
    ("pixels", "channels * patch * patch"),
    ("layer_matrices", "2 * tokens * mixing + 2 * width * hidden"),
    ("layer_parameters", "layer_matrices + mixing + tokens + hidden + width + 4 * width"),
    ("stem_parameters", "pixels * width + width + 2 * width + width * classes + classes"),
    # Saved by a layer: both norms' inputs, outputs and statistics (float32); both hidden layers around the GELU.
    (
        "layer_bytes",
        "batch * tokens * (4 * bytes * width + 16) + 2 * bytes * batch * (width * mixing + tokens * hidden)",
    ),
    ("ends_bytes", "batch * (bytes * tokens * pixels + 2 * bytes * width + 8)"),
    ("copied", "2 if bytes == 2 else 0"),  # autocast saves bfloat16 copies of the weights
    ("plain_bytes", "layers * (layer_bytes + copied * layer_matrices) + ends_bytes + copied * width * classes"),
)
DENOISER = Footprint(
    parameters="layers * layer_parameters + stem_parameters + code_dim * width"
    f" + {2 * FREQUENCIES} * width + width + width * width + width",
    activations="plain_bytes + batch * (4 * classes + 4 + 4 * classes)"
    f" + batch * bytes * ({2 * FREQUENCIES} + 2 * width + code_dim) + copied * width * width",
    hidden_matrices="layers * layer_matrices",
)
BASELINE = Footprint(
    parameters="layers * layer_parameters + stem_parameters",
    activations="plain_bytes + batch * (4 * classes + 4)",
    hidden_matrices="layers * layer_matrices",
)


# 5. The architecture. A Classifier also says its codes and how its blocks answer.
class Mixer:
    """Architecture "mixer"."""

    kind = "mixer"
    family: Family = "classification"

    def card(self) -> ArchitectureCard:
        return ArchitectureCard(
            kind=self.kind,
            summary="MLP-Mixer; classifies images as denoising of a label code.",
            family=self.family,
            modality="images",
            recipe=Recipe(lr=2e-3),
            options_schema=Options.model_json_schema(),
            rules=RULES,
            definitions=DEFINITIONS,
            code_dim="classes - 1",
            noise=NoiseDefaults(
                p_mean="ln(sigma_data * sqrt(code_dim)) + 1", p_std="1.2", sigma_min="0.002", sigma_max="80.0"
            ),
            denoiser=DENOISER,
            baseline=BASELINE,
        )

    def codes(self, contract: Contract) -> Tensor:
        return _codes(contract)

    def answering(self, contract: Contract) -> Answering:
        return Answering()

    def denoiser(self, contract: Contract, layers: int) -> MixerDenoiser:
        return MixerDenoiser(_options(contract), contract, layers)

    def denoising_loss(self, contract: Contract, network: nn.Module, interval: tuple[float, float]) -> Loss:
        return code_denoising_loss(contract, network, cast(MixerDenoiser, network).codes, interval)

    def baseline(self, contract: Contract, layers: int) -> MixerClassifier:
        return MixerClassifier(_options(contract), contract, layers)

    def baseline_loss(self, contract: Contract, network: nn.Module) -> Loss:
        return label_loss(network)


MIXER = Mixer()


def _options(contract: Contract) -> Options:
    return Options.model_validate(contract.options)

"""The transformer layer that the image and masked-text networks are made of, and what they share around it.

Shapes: N batch, T tokens, D width, M hidden width of the MLP.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.method.precondition import c_noise
from workers.models.dropout import Dropout

FREQUENCIES = 32  # of the time embedding, from 0.25 to 32 in geometric steps
ADALN_DIVISOR = 6  # hidden width of the low-rank adaLN = width / 6, as published

Conditioning = Literal["add", "adaln_low_rank", "adaln"]
Activation = Literal["gelu", "gelu_tanh"]  # gelu_tanh: its approximation by tanh


@dataclass(frozen=True)
class LayerShape:
    """What a layer's size follows from. `conditioning` says how a modulated layer is."""

    width: int
    heads: int
    hidden: int  # of the MLP
    dropout: float = 0.0
    conditioning: Conditioning = "add"
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    attention_norm_eps: float | None = None  # None: norm_eps

    @property
    def adaln_rank(self) -> int:
        """Hidden width of the low-rank adaLN."""
        return max(1, self.width // ADALN_DIVISOR)


class Layer(nn.Module):
    """A pre-norm transformer layer that updates the first `updated` tokens (None: all) from all of them.

    (N, T, D) -> (N, updated or T, D). `condition` (N, D) modulates it where conditioning is adaLN.
    """

    def __init__(self, shape: LayerShape, *, updated: int | None, modulated: bool) -> None:
        super().__init__()
        width = shape.width
        self.updated = updated
        self.heads = shape.heads
        self.approximate = "tanh" if shape.activation == "gelu_tanh" else "none"
        attention_eps = shape.norm_eps if shape.attention_norm_eps is None else shape.attention_norm_eps
        self.attention_norm = nn.LayerNorm(width, eps=attention_eps, elementwise_affine=not modulated)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=shape.norm_eps, elementwise_affine=not modulated)
        self.expand = nn.Linear(width, shape.hidden)
        self.contract = nn.Linear(shape.hidden, width)
        self.dropout = Dropout(shape.dropout)
        self.modulation = modulation(shape) if modulated else None

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
        return self.dropout(self.contract(self.dropout(F.gelu(self.expand(x), approximate=self.approximate))))

    def _split(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, heads, T, D / heads)."""
        rows, tokens, width = x.shape
        return x.view(rows, tokens, self.heads, width // self.heads).transpose(1, 2)


def modulation(shape: LayerShape) -> nn.Sequential:
    """(N, D) -> (N, 6 D), zero at the start, so that a fresh layer passes its input on (adaLN-zero, DiT)."""
    width = shape.width
    up = nn.Linear(width if shape.conditioning == "adaln" else shape.adaln_rank, 6 * width)
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    if shape.conditioning == "adaln":
        return nn.Sequential(nn.SiLU(), up)
    return nn.Sequential(nn.SiLU(), nn.Linear(width, shape.adaln_rank), up)


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


def patches(images: Tensor, side: int) -> Tensor:
    """Squares of side x side pixels, row by row: (N, C, H, W) -> (N, H W / side^2, C side^2)."""
    rows, channels, height, width = images.shape
    cut = images.reshape(rows, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * side**2)


def unpatched(tokens: Tensor, side: int, shape: tuple[int, int, int]) -> Tensor:
    """patches() turned back: (N, H W / side^2, C side^2) -> (N, C, H, W); `shape` is (H, W, C)."""
    height, width, channels = shape
    grid = tokens.reshape(len(tokens), height // side, width // side, channels, side, side)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), channels, height, width)


# Card formulas of a layer, over width, heads, hidden, tokens, batch, bytes, and what the architecture defines before:
# modulated (0 or 1), rank (0 where the modulation is not of low rank), dropout. Tests hold them against measured bytes.
LAYER_DEFINITIONS = (
    # Weights of one layer: what every layer has, and what adaLN adds to it (its norms have no weights of their own).
    ("layer_matrices", "4 * width * width + 2 * width * hidden"),
    ("layer_parameters", "layer_matrices + 5 * width + hidden"),
    ("modulation_matrices", "modulated * 6 * width * (rank or width) + width * rank"),
    ("modulation_parameters", "modulated * (modulation_matrices + 6 * width + rank)"),
    ("norm_parameters", "4 * width"),
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
    # Under autocast the weights' bfloat16 copies are saved as well.
    ("copied", "2 if bytes == 2 else 0"),
)

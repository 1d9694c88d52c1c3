"""A causal decoder's layer as Llama has it: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases.

Shapes: N rows, T tokens, P tokens seen before them, D width, H heads, G key/value heads, h = D / H of one head.
Names and conventions agree with Hugging Face's Llama (half-split rotation, float32 norms), so that its weights fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dbserve.contracts.card import OptionRule

MULTIPLE = 8  # the default hidden width of the MLP is a multiple of it


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer."""

    width: int
    heads: int  # divides width; width / heads is even (rotation turns pairs)
    kv_heads: int  # divides heads
    hidden: int  # of the MLP
    norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    @property
    def head_width(self) -> int:
        return self.width // self.heads


def default_hidden(width: int) -> int:
    """Hidden width of a SwiGLU MLP with about as many weights as a plain one of 4 x width: 8/3 width, rounded up."""
    return MULTIPLE * -(-width // 3)


@dataclass(frozen=True)
class KeysValues:
    """What a layer remembers of the tokens it has seen: (N, G, P, h) each, the keys already rotated."""

    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return self.keys.shape[2]

    def extended(self, newer: KeysValues) -> KeysValues:
        """These tokens, then the newer ones."""
        return KeysValues(
            torch.cat((self.keys, newer.keys), dim=2),
            torch.cat((self.values, newer.values), dim=2),
        )


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32 (Zhang & Sennrich, arXiv 1910.07467).

    Saves its input and one number a token for the backward pass. Under autocast it answers in autocast's dtype: one
    rounding for all the projections that read it, where each would round and save a copy of its own.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return cast(Tensor, _RootMeanSquare.apply(x, self.weight, self.eps, dtype))  # pyright: ignore[reportUnknownMemberType]


class _RootMeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        whole = x.float()
        inverse = (whole.square().mean(dim=-1, keepdim=True) + eps).rsqrt()  # (..., 1)
        ctx.save_for_backward(x, weight, inverse)
        return (whole * inverse * weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        grad, normed = grad_outputs[0].float(), x.float() * inverse
        scaled = grad * weight
        inner = inverse * (scaled - normed * (scaled * normed).mean(dim=-1, keepdim=True))
        return inner.to(x.dtype), (grad * normed).flatten(0, -2).sum(dim=0).to(weight.dtype), None, None


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines of T consecutive positions, (T, h) float32 each; a half holds each angle once."""

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Turns (N, heads, T, h) by the angles of its positions; component i is paired with i + h/2."""
        first, second = x.chunk(2, dim=-1)
        return (x * self.cos + torch.cat((-second, first), dim=-1) * self.sin).to(x.dtype)


def rotary(shape: Shape, start: int, stop: int, device: torch.device) -> Rotary:
    """Positions [start, stop): angle = position * theta^(-2i/h), i < h/2 (Su et al., arXiv 2104.09864, Eq. 15)."""
    pair = torch.arange(0, shape.head_width, 2, device=device, dtype=torch.float32)
    frequencies = shape.rope_theta ** (-pair / shape.head_width)  # (h/2,)
    angles = torch.arange(start, stop, device=device, dtype=torch.float32)[:, None] * frequencies
    return Rotary(torch.cat((angles.cos(), angles.cos()), dim=1), torch.cat((angles.sin(), angles.sin()), dim=1))


class DecoderLayer(nn.Module):
    """A pre-norm layer. (N, T, D) -> (N, T, D) and the keys and values that its tokens could see."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, kv_width = shape.width, shape.kv_heads * shape.head_width
        self.head_width = shape.head_width
        self.attention_norm = RMSNorm(width, shape.norm_eps)
        self.queries = nn.Linear(width, width, bias=False)
        self.keys = nn.Linear(width, kv_width, bias=False)
        self.values = nn.Linear(width, kv_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp_norm = RMSNorm(width, shape.norm_eps)
        self.gate = nn.Linear(width, shape.hidden, bias=False)
        self.up = nn.Linear(width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, width, bias=False)

    def forward(
        self, x: Tensor, rotation: Rotary, past: KeysValues | None = None, seen: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """x (N, T, D) at the T positions of `rotation`; gives (N, T, D), and what to hand on as `past`.

        Causal: a token sees `past` (P tokens before x), the tokens of x before it, and itself. With `seen` (P >= T
        tokens, of which the last T stand at x's positions) x makes no keys of its own and reads those instead: token
        t sees the first P - T + t + 1 of them.
        """
        normed = self.attention_norm(x)
        queries = rotation(self._split(self.queries(normed)))
        if seen is None:
            seen = KeysValues(rotation(self._split(self.keys(normed))), self._split(self.values(normed)))
            seen = past.extended(seen) if past else seen
        mixed = _causal_attention(queries, seen)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        normed = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed)), seen

    def _split(self, x: Tensor) -> Tensor:
        """(N, T, heads * h) -> (N, heads, T, h)."""
        return x.view(*x.shape[:2], -1, self.head_width).transpose(1, 2)


def _causal_attention(queries: Tensor, seen: KeysValues) -> Tensor:
    """queries (N, H, T, h), the last T of the P tokens of `seen` -> (N, H, T, h)."""
    tokens = queries.shape[2]
    grouped = queries.shape[1] != seen.keys.shape[1]
    if tokens == len(seen):
        return F.scaled_dot_product_attention(queries, seen.keys, seen.values, is_causal=True, enable_gqa=grouped)
    mask = None  # one token sees everything
    if tokens > 1:
        mask = torch.ones(tokens, len(seen), dtype=torch.bool, device=queries.device).tril(len(seen) - tokens)
    return F.scaled_dot_product_attention(queries, seen.keys, seen.values, attn_mask=mask, enable_gqa=grouped)


# The card's formulas of a layer, over the options width, heads, kv_heads (null: heads) and mlp (null: default_hidden).
# `causal_token_bytes` are saved by a layer for one token, `seeing_token_bytes` for one that makes no keys of its own:
# both norms' inputs and inverse roots (float32), their outputs, queries, what attention gave and its log-sum-exp, and
# the MLP's gate, its activation, up and their product; keys and values. Once a layer: `layer_copies`, the weights'
# bfloat16 copies under autocast. Once a forward pass: `rotary_bytes`, of a whole window's positions.
UNIT_CODES_RULE = OptionRule(
    expression="sigma_data == 0.5",
    pointer="/noise/sigma_data",
    message="the codes of tokens have length 1 whatever sigma_data ({sigma_data}) is: leave it out",
)
DECODER_DEFINITIONS = (
    ("hidden", f"mlp or {MULTIPLE} * ceil(width / 3)"),
    ("kv_width", "(kv_heads or heads) * (width // heads)"),
    ("layer_matrices", "2 * width * width + 2 * width * kv_width + 3 * width * hidden"),
    ("layer_parameters", "layer_matrices + 2 * width"),
    ("seeing_token_bytes", "8 * width + 8 + bytes * (4 * width + 4 * hidden) + 4 * heads"),
    ("causal_token_bytes", "seeing_token_bytes + 2 * bytes * kv_width"),
    ("layer_copies", "2 * layer_matrices if bytes == 2 else 0"),
    ("rotary_bytes", "8 * sequence_length * (width // heads)"),
)

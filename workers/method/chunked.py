"""Cross-entropy over a large vocabulary without the logits of every token at once. M tokens, D width, V vocabulary."""

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor


def chunked_cross_entropy(
    hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor, *, chunk: int | None
) -> Tensor:
    """sum_m weights[m] * -ln softmax(hidden[m] table^T)[targets[m]]: a scalar in nats, computed in float32.

    hidden (M, D), table (V, D), targets (M,) int64 below V, weights (M,) float32 without gradient.
    chunk None: the log-probabilities (M, V) are kept for the backward pass. Otherwise at most `chunk` tokens have
    logits at one time: each chunk's gradients are taken in the forward pass, while its logits are there, so nothing is
    computed twice, and only d/d hidden (M, D) and d/d table (V, D) are kept. Tokens of weight 0 are then left out,
    which costs one wait for a device that runs ahead. Both ways agree to float rounding.
    Raises ValueError where shapes do not belong together, or chunk is below 1.
    """
    _check(hidden, table, targets, weights, chunk)
    if chunk is None:
        losses = F.cross_entropy(F.linear(hidden, table).float(), targets, reduction="none")  # (M,)
        return (weights * losses).sum()
    if not torch.is_grad_enabled():
        return _summed(hidden, table, targets, weights, chunk)
    return cast(
        Tensor,
        _ChunkedCrossEntropy.apply(hidden, table, targets, weights, chunk),  # pyright: ignore[reportUnknownMemberType]
    )


def _check(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor, chunk: int | None) -> None:
    if hidden.ndim != 2 or table.ndim != 2 or hidden.shape[1] != table.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and table {tuple(table.shape)} do not belong together")
    if targets.shape != hidden.shape[:1] or weights.shape != targets.shape:
        raise ValueError(
            f"targets {tuple(targets.shape)} and weights {tuple(weights.shape)} must both be ({len(hidden)},): "
            "other shapes would broadcast"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"a chunk has at least one token, not {chunk}")


def _chunks(weights: Tensor, chunk: int) -> Iterator[Tensor]:
    """Indices of the tokens that weigh something, chunk by chunk."""
    yield from cast(tuple[Tensor, ...], weights.nonzero()[:, 0].split(chunk))  # pyright: ignore[reportUnknownMemberType]


def _summed(hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor, chunk: int) -> Tensor:
    total = torch.zeros((), device=hidden.device)
    for some in _chunks(weights, chunk):
        losses = F.cross_entropy(F.linear(hidden[some], table).float(), targets[some], reduction="none")
        total = total + (weights[some] * losses).sum()
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, weights: Tensor, chunk: int
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        onto_hidden: Tensor | None = None
        onto_table = torch.zeros_like(table)
        for some in _chunks(weights, chunk):
            seen = hidden[some]  # (m, D)
            log_p = F.linear(seen, table).float().log_softmax(dim=1)  # (m, V)
            place, weight = targets[some][:, None], weights[some][:, None]
            total -= (weight * log_p.gather(1, place)).sum()
            onto_logits = log_p.exp_()  # softmax less the one-hot target, times the weight
            onto_logits.scatter_add_(1, place, torch.full_like(weight, -1.0)).mul_(weight)
            onto_seen = onto_logits @ table  # (m, D), in autocast's type where it is on
            if onto_hidden is None:
                onto_hidden = onto_seen.new_zeros(hidden.shape)
            onto_hidden[some] = onto_seen
            onto_table += onto_logits.T @ seen
        ctx.save_for_backward(hidden.new_zeros(hidden.shape) if onto_hidden is None else onto_hidden, onto_table)
        ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        onto_hidden, onto_table = ctx.saved_tensors
        return (onto_hidden * gradient).to(ctx.hidden_dtype), onto_table * gradient, None, None, None

"""Dropout at a quarter of the random numbers and bytes that F.dropout takes on a CPU."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LANES = 4  # int16 lanes in one int64 draw
_LANE_VALUES = 1 << 16


class Dropout(nn.Module):
    """Zeroes each element with probability p while training and scales the others by 1 / (1 - p). Any shape.

    On the CPU F.dropout draws one random number and keeps a mask of the input's own type for each element, which
    dominates the step of a wide MLP. Here one 64-bit draw serves four elements (so p is rounded to 1/65536) and the
    mask is kept as booleans, as CUDA's own kernel keeps it.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return cast(Tensor, _LaneDropout.apply(x, self.p))  # pyright: ignore[reportUnknownMemberType]


class _LaneDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        threshold = min(round(p * _LANE_VALUES), _LANE_VALUES - 1)  # p just below 1 keeps something to scale
        draws = torch.empty(-(-x.numel() // _LANES), dtype=torch.int64).random_(-(2**63), None)
        lanes = draws.view(torch.int16)[: x.numel()].view(x.shape)
        kept = lanes >= threshold - _LANE_VALUES // 2
        ctx.save_for_backward(kept)
        ctx.scale = _LANE_VALUES / (_LANE_VALUES - threshold)
        return torch.where(kept, x * ctx.scale, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (kept,) = ctx.saved_tensors
        return torch.where(kept, gradient * ctx.scale, 0.0), None

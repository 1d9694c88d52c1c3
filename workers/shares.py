"""Tensors of which each worker may hold a share (torch's DTensor), and what they are together."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn


def is_shared_out(tensor: Tensor) -> bool:
    """Whether it is a DTensor, whose module takes a second to import and is known where there is one."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This worker's share, in the same memory; of a tensor that is not shared out, itself."""
    return cast(Any, tensor).to_local() if is_shared_out(tensor) else tensor


def like(share: Tensor, tensor: Tensor) -> Tensor:
    """A share of what is shared out as `tensor` is; where that is whole, the share is."""
    if not is_shared_out(tensor):
        return share
    from torch.distributed.tensor import DTensor

    of: Any = tensor
    return DTensor.from_local(share, of.device_mesh, of.placements, shape=tensor.shape, stride=tensor.stride())


def share_of(tensor: Tensor, of: Tensor) -> Tensor:
    """A copy of this worker's share of a whole tensor, in type, place and cut as `of`."""
    if not is_shared_out(of):
        return tensor.to(of, copy=True)
    from torch.distributed.tensor import distribute_tensor

    cut: Any = of
    moved = tensor.to(local(of), copy=True)
    return distribute_tensor(moved, cut.device_mesh, cut.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Copies on the CPU, whole. Where tensors are shared out, all workers call it at once, and those that do not `keep`
    them get none."""
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = cast(Any, tensor).full_tensor() if is_shared_out(tensor) else tensor
        if keep:
            copies[name] = whole.detach().to("cpu", copy=True)
    return copies


def take_over(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """network.load_state_dict(), also where its parameters are shared out."""
    own = network.state_dict()
    if not any(is_shared_out(tensor) for tensor in own.values()):
        network.load_state_dict(dict(weights))
        return
    if own.keys() != weights.keys():
        raise KeyError(f"weights of another network: {sorted(own.keys() ^ weights.keys())}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(share_of(weights[name], tensor))

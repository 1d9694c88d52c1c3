"""Bytes of one network in training, counted rather than estimated."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dbserve.contracts.status import MemoryBytes


class SavedBytes:
    """The bytes autograd has saved for the backward pass: each storage once, parameters and buffers left out."""

    def __init__(self, network: nn.Module) -> None:
        self._own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
        self._storages: dict[int, int] = {}

    @property
    def total(self) -> int:
        return sum(self._storages.values())

    def saw(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor


@contextmanager
def counting_saved_bytes(network: nn.Module) -> Generator[SavedBytes, None, None]:
    """Counts what the forward pass inside it saves. The graph keeps every counted storage alive until its backward
    pass, so no address is counted for two."""
    saved = SavedBytes(network)
    with torch.autograd.graph.saved_tensors_hooks(saved.saw, _unchanged):
        yield saved


def measured_memory(network: nn.Module, optimizer: torch.optim.Optimizer, saved: SavedBytes) -> MemoryBytes:
    """Bytes by kind after a whole step (gradients not yet dropped); on CUDA also what the allocator says."""
    parameters = list(network.parameters())
    state: Iterable[dict[str, Any]] = optimizer.state.values()
    kinds = {
        "parameters": _bytes(parameters),
        "gradients": _bytes(parameter.grad for parameter in parameters if parameter.grad is not None),
        "optimizer": _bytes(value for entry in state for value in entry.values() if isinstance(value, Tensor)),
        "activations": saved.total,
    }
    device = parameters[0].device
    if device.type != "cuda":
        return MemoryBytes(**kinds, peak=sum(kinds.values()), host=resident_bytes())
    return MemoryBytes(
        **kinds,
        allocated=torch.cuda.memory_allocated(device),
        reserved=torch.cuda.memory_reserved(device),
        peak=torch.cuda.max_memory_allocated(device),
        host=resident_bytes(),
    )


def resident_bytes() -> int | None:
    """Bytes of this process in physical memory; None where the system does not tell (no /proc)."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor

"""Bytes of one network in training, counted rather than estimated."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from dbserve.contracts.status import MemoryBytes
from workers.shares import local


class SavedBytes:
    """The bytes kept for the backward pass: each storage once, parameters and buffers left out; besides, the most that
    one recomputed layer saves at a time."""

    def __init__(self, ours: frozenset[int]) -> None:
        self._ours = ours  # addresses that are not counted
        self._passing: list[frozenset[int]] = []  # the same, for now
        self._storages: dict[int, int] = {}
        self._at_a_time = 0

    @classmethod
    def of(cls, network: nn.Module) -> "SavedBytes":
        return cls(_addresses((*network.parameters(), *network.buffers())))

    @property
    def total(self) -> int:
        return sum(self._storages.values()) + self._at_a_time

    def saw(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not any(storage.data_ptr() in ours for ours in (self._ours, *self._passing)):
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def pass_over(self, tensors: Iterable[Tensor]) -> None:
        """From now on these are not counted either, until their addresses may be others'."""
        self._passing.append(_addresses(tensors))

    def pass_over_no_more(self) -> None:
        """What was passed over last."""
        self._passing.pop()

    def apart(self) -> "SavedBytes":
        """A count of its own, which leaves out what is counted here already."""
        return SavedBytes(self._ours.union(self._storages, *self._passing))

    def at_a_time(self, size: int) -> None:
        """A layer that is computed anew saves so many bytes, and only one is at a time."""
        self._at_a_time = max(self._at_a_time, size)


@contextmanager
def watching(saved: SavedBytes) -> Generator[None, None, None]:
    """Counts what the forward pass inside it saves. The graph keeps every counted storage alive until its backward
    pass, so no address is counted for two."""
    with torch.autograd.graph.saved_tensors_hooks(saved.saw, _unchanged):
        yield


@contextmanager
def counting_saved_bytes(network: nn.Module) -> Generator[SavedBytes, None, None]:
    """What the forward pass of the network inside it saves."""
    saved = SavedBytes.of(network)
    with watching(saved):
        yield saved


def measured_memory(network: nn.Module, *, kept: int, saved: SavedBytes) -> MemoryBytes:
    """Bytes by kind after a whole step (gradients not yet dropped); on CUDA also what the allocator says.

    `kept` for the optimizer from step to step: its state, and the averaged weights.
    """
    parameters = list(network.parameters())
    kinds = {
        "parameters": _bytes(parameters),
        "gradients": _bytes(parameter.grad for parameter in parameters if parameter.grad is not None),
        "optimizer": kept,
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
        device=torch.cuda.mem_get_info(device)[1],
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


def _addresses(tensors: Iterable[Tensor]) -> frozenset[int]:
    return frozenset(local(tensor).untyped_storage().data_ptr() for tensor in tensors)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor

"""The workers of one task: one alone, or several that sum up their gradients at every step."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

LOOPBACK = "127.0.0.1"
START = timedelta(minutes=10)  # in which all workers must have started


class Workers(Protocol):
    """Who takes the parts of a step. Rank 0 is the trainer of record."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def sum_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all workers, the same bits for each of them."""
        ...


@dataclass(frozen=True)
class Alone:
    """The whole task on one worker."""

    rank: int = 0
    size: int = 1

    def sum_up(self, tensors: Sequence[Tensor]) -> None:
        """They are the sum."""


@dataclass(frozen=True)
class Together:
    """One of several; `processes` is torch's process group."""

    rank: int
    size: int
    processes: Any

    def sum_up(self, tensors: Sequence[Tensor]) -> None:
        works = [self.processes.allreduce([tensor]) for tensor in tensors]  # one by one: no copy of all gradients
        for work in works:
            work.wait()


def process_group(store: Any, rank: int, size: int, device: torch.device) -> Any:
    """gloo on the loopback interface, or NCCL where every worker has a GPU of its own. Waits for all of them."""
    distributed = _distributed()
    if device.type == "cuda":
        return distributed.ProcessGroupNCCL(store, rank, size)
    options = distributed.ProcessGroupGloo._Options()
    options._devices = [distributed.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    return distributed.ProcessGroupGloo(store, rank, size, options)


def leading_store(size: int) -> tuple[int, Any]:
    """A key-value store of `size` workers, and the free port of the loopback interface that it listens on."""
    listening = socket.socket()
    listening.bind((LOOPBACK, 0))
    listening.listen()
    port = int(listening.getsockname()[1])
    waiting = {"wait_for_workers": False, "master_listen_fd": listening.detach()}
    return port, _distributed().TCPStore(LOOPBACK, port, size, True, START, **waiting)


def joined_store(port: int, size: int) -> Any:
    """The store that listens there."""
    return _distributed().TCPStore(LOOPBACK, port, size, False, START, wait_for_workers=False)


def _distributed() -> Any:
    import torch.distributed  # late: only data-parallel trainings need it

    return torch.distributed

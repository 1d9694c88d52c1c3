"""The workers of one task: one alone, or several that sum up their gradients at every step."""

import contextlib
import json
import socket
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch import Tensor

LOOPBACK = "127.0.0.1"
START = timedelta(minutes=10)  # in which all of them must have found each other, once they are there
# In which a call must end. Long, as the others wait in one while the leader saves, and tries again; its line tells who
# is lost.
CALL = timedelta(hours=6)
_LEADER = 0
_BACKEND = "gloo_at_host"  # torch's own asks the resolver for this machine's address, which may say loopback


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
    """One of several; `processes` is torch's process group, `device` where each of them trains."""

    rank: int
    size: int
    processes: Any
    device: torch.device

    def sum_up(self, tensors: Sequence[Tensor]) -> None:
        works = [self.processes.allreduce([tensor]) for tensor in tensors]  # one by one: no copy of all gradients
        for work in works:
            work.wait()

    def agree(self, number: int) -> int:
        """Rank 0's number, whatever the others say."""
        said = torch.tensor([number], device=self.device)
        self.processes.broadcast(said, _LEADER).wait()
        return int(said)

    def spread(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's tensors by name, on the CPU, bit for bit; what the others give is not looked at."""
        header = json.dumps([[name, str(tensor.dtype), [*tensor.shape]] for name, tensor in tensors.items()]).encode()
        size = self.agree(len(header))
        text = torch.zeros(size, dtype=torch.uint8, device=self.device)
        if self.rank == _LEADER:
            text.copy_(torch.frombuffer(bytearray(header), dtype=torch.uint8))
        self.processes.broadcast(text, _LEADER).wait()
        spread: dict[str, Tensor] = {}
        for name, kind, shape in json.loads(text.cpu().numpy().tobytes()):
            if self.rank == _LEADER:
                tensor = tensors[name].detach().to(self.device, memory_format=torch.contiguous_format)
            else:
                tensor = torch.empty(shape, dtype=getattr(torch, kind.removeprefix("torch.")), device=self.device)
            tensor = tensor.contiguous()
            self.processes.broadcast(tensor, _LEADER).wait()
            spread[name] = tensors[name] if self.rank == _LEADER else tensor.cpu()
        return spread


def share_of(parts: int, rank: int, size: int) -> range:
    """Which of a step's parts a worker takes: neighbours, and as many as any other, give or take one."""
    return range(parts * rank // size, parts * (rank + 1) // size)


@contextlib.contextmanager
def together(
    store: Any, rank: int, size: int, device: torch.device, *, host: str = LOOPBACK, registered: bool = False
) -> Generator[Together, None, None]:
    """One of `size` workers that meet at the store, once all of them have come.

    They speak gloo at this machine's address `host`, or NCCL where every one has a GPU of its own. `registered`: as
    torch.distributed's default group, of which a process has but one, and which sharding asks for.
    """
    distributed = _distributed()

    def gloo(store: Any, rank: int, size: int, _timeout: timedelta) -> Any:
        options = distributed.ProcessGroupGloo._Options()
        options._devices = [distributed.ProcessGroupGloo.create_device(hostname=host)]
        options._timeout = START
        processes = distributed.ProcessGroupGloo(store, rank, size, options)
        processes._set_default_timeout(CALL)
        return processes

    def nccl() -> Any:
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = CALL
        return distributed.ProcessGroupNCCL(store, rank, size, options)

    if not registered:
        processes = nccl() if device.type == "cuda" else gloo(store, rank, size, CALL)
        yield Together(rank, size, processes, device)
        return
    if device.type == "cuda":
        backend = "nccl"
    else:
        backend = _BACKEND
        distributed.Backend.register_backend(backend, gloo, devices=["cpu"])
    distributed.init_process_group(f"{device.type}:{backend}", store=store, rank=rank, world_size=size, timeout=CALL)
    try:
        yield Together(rank, size, distributed.group.WORLD, device)
    finally:
        distributed.destroy_process_group()


def leading_store(size: int, secret: str, host: str = LOOPBACK) -> tuple[int, Any]:
    """A key-value store of `size` workers, and the free port of this machine's address that it listens on.

    Its keys begin with `secret`, so that no other group's can be taken for ours.
    """
    listening = socket.socket()
    listening.bind((host, 0))
    listening.listen()
    port = int(listening.getsockname()[1])
    waiting = {"wait_for_workers": False, "master_listen_fd": listening.detach()}
    return port, _under(secret, _distributed().TCPStore(host, port, size, True, START, **waiting))


def joined_store(host: str, port: int, size: int, secret: str) -> Any:
    """The store that listens there."""
    return _under(secret, _distributed().TCPStore(host, port, size, False, START, wait_for_workers=False))


def _under(secret: str, store: Any) -> Any:
    return _distributed().PrefixStore(secret, store)


def _distributed() -> Any:
    import torch.distributed  # late: only trainings of several workers need it

    return torch.distributed

"""What this process sends to other processes of a training: counted where it is handed over, not declared.

Every collective and every send of torch.distributed's process groups is counted by the tensors that it is given,
whoever calls it: ours, which call a group's backend, and torch.distributed's own functions, which call the group. Not
seen is what C++ calls by itself, as DistributedDataParallel's reducer does; nothing here uses it.
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, cast

from torch import Tensor

# Calls of a process group, and which of their arguments holds what is sent; the other one is where it arrives.
_FIRST, _SECOND = 0, 1
_SENDING = {
    **dict.fromkeys(("allreduce", "allreduce_coalesced", "broadcast", "reduce", "send"), _FIRST),
    **dict.fromkeys(
        (
            "_allgather_base",
            "_reduce_scatter_base",
            "all_gather_single",
            "all_gather_single_coalesced",
            "all_to_all_single",
            "allgather",
            "allgather_coalesced",
            "allgather_into_tensor_coalesced",
            "alltoall",
            "alltoall_base",
            "gather",
            "reduce_scatter",
            "reduce_scatter_single",
            "reduce_scatter_single_coalesced",
            "reduce_scatter_tensor_coalesced",
            "scatter",
        ),
        _SECOND,
    ),
}


class SentBytes:
    """Bytes of tensors handed over. What an algorithm makes of them on the wire may be up to twice as many.

    `own` is the process group of the task's own workers; all others' traffic leaves the task.
    """

    def __init__(self, own: object = None) -> None:
        self._own = own
        self._within = self._abroad = 0

    def saw(self, group: object, given: Iterable[Any]) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(given))
        if self._own is not None and group is self._own:
            self._within += size
        else:
            self._abroad += size

    def take(self) -> tuple[int, int]:
        """Those that were not taken before: to the task's own workers, and to anybody else."""
        taken = self._within, self._abroad
        self._within = self._abroad = 0
        return taken


@contextlib.contextmanager
def counting_sent_bytes(own: object = None) -> Generator[SentBytes, None, None]:
    """Counts what the process sends inside it. Contexts may be nested, and each counts."""
    sent = SentBytes(own)
    with contextlib.ExitStack() as undo:
        for kind in _kinds_of_group():
            for name, place in _SENDING.items():
                call: Callable[..., Any] | None = vars(kind).get(name)
                if call is not None:
                    setattr(kind, name, _counted(call, place, sent))
                    undo.callback(setattr, kind, name, call)
        yield sent


def _kinds_of_group() -> Iterator[type[Any]]:
    """The group, and what all its backends inherit their calls from; neither, where torch was built without them."""
    import torch.distributed as distributed

    if distributed.is_available():
        from torch._C import _distributed_c10d as native  # pyright: ignore[reportMissingModuleSource]

        yield native.ProcessGroup
        yield native.Backend  # not distributed.Backend, which is a name of one


def _counted(call: Callable[..., Any], place: int, sent: SentBytes) -> Callable[..., Any]:
    @functools.wraps(call)
    def counted(group: Any, *given: Any, **named: Any) -> Any:
        arguments = [*given, *named.values()]
        sent.saw(group, arguments[place : place + 1])
        return call(group, *given, **named)

    return counted


def _tensors(given: Iterable[Any]) -> Iterator[Tensor]:
    for value in given:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(cast("list[Any]", value))

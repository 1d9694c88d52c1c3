"""Networks that take turns in memory: what is asked for is there, and what was asked for longest ago makes room.

So an evaluation needs no more memory than a training did, however many blocks a model has. Whoever keeps a network it
was given keeps it in memory: ask again instead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, overload

from torch import nn

K_contra = TypeVar("K_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False)
class Stored:
    """A network that lies in a file."""

    size: int  # bytes of its weights
    load: Callable[[], nn.Module]  # to its device, in evaluation mode


class Room:
    """Memory for so many bytes of weights; a single network that is larger is there alone."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._here: OrderedDict[Stored, nn.Module] = OrderedDict()  # the one that was asked for last comes last

    def network(self, wanted: Stored) -> nn.Module:
        if wanted not in self._here:
            while self._here and self.taken + wanted.size > self._size:
                self._here.popitem(last=False)
            self._here[wanted] = wanted.load()
        self._here.move_to_end(wanted)
        return self._here[wanted]

    @property
    def taken(self) -> int:
        """Bytes of the weights that are there now."""
        return sum(stored.size for stored in self._here)


class InTurn(Mapping[str, nn.Module]):
    """Stored networks by name, which share a room with others."""

    def __init__(self, room: Room, stored: Mapping[str, Stored]) -> None:
        self._room = room
        self._stored = stored

    def __getitem__(self, name: str) -> nn.Module:
        return self._room.network(self._stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class _Lookup(Protocol[K_contra, T_co]):
    def __getitem__(self, key: K_contra, /) -> T_co: ...


class Chosen(Sequence[T_co]):
    """Some out of many, in an order of their own; each is looked up when it is asked for, every time."""

    def __init__(self, among: _Lookup[K_contra, T_co], keys: Sequence[K_contra]) -> None:
        self._look_up: Callable[[int], T_co] = lambda place: among[keys[place]]
        self._rest: Callable[[slice], Chosen[T_co]] = lambda places: Chosen(among, keys[places])
        self._count = len(keys)

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> Chosen[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | Chosen[T_co]:
        return self._rest(index) if isinstance(index, slice) else self._look_up(index)

    def __len__(self) -> int:
        return self._count

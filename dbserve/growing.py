"""What an autoscaler is asked for, given what it made of the last request. Pure.

Ray's second autoscaler takes a request as a whole: where any part of it is beyond what it may add, it adds nothing at
all. So what was refused is asked for by half, down to one replica at a time, and what is refused even so is left out
for a while, lest it keep nodes from those behind it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from dbserve.contracts.cluster import Demand

MORE_SECONDS = 30.0  # after which twice as much is asked for, where nothing was refused
LEFT_OUT_SECONDS = 120.0  # after which what was refused alone is asked for again


class Asking:
    """Remembers what was refused. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._most: int | None = None  # replicas of what waits that are asked for at once; None: any number
        self._changed_at = 0.0
        self._left_out: dict[Demand, float] = {}  # kinds, by when they were refused
        self._asked: tuple[Demand, ...] = ()  # of what waits, in the last request

    @property
    def left_out(self) -> frozenset[Demand]:
        """Kinds (of one replica) for which no node is to be had at present."""
        return frozenset(self._left_out)

    def request(self, in_use: Sequence[Demand], waiting: Sequence[Demand], now: float) -> tuple[Demand, ...]:
        """What to ask for: room for what is in use, as far as it is to be kept or counted, and for what waits."""
        self._left_out = {kind: at for kind, at in self._left_out.items() if now - at < LEFT_OUT_SECONDS}
        wanted = [demand for demand in waiting if kind_of(demand) not in self._left_out]
        total = sum(demand.count for demand in wanted)
        if self._most is not None and now - self._changed_at >= MORE_SECONDS:
            self._limit(2 * self._most, now)
        if self._most is not None and self._most >= total:
            self._most = None
        self._asked = tuple(_first(wanted, total if self._most is None else self._most))
        return (*in_use, *self._asked)

    def refused(self, now: float) -> None:
        """The last request was."""
        count = sum(demand.count for demand in self._asked)
        if count > 1:
            self._limit(count // 2, now)
        elif count == 1:
            self._left_out[kind_of(self._asked[0])] = now

    def _limit(self, most: int, now: float) -> None:
        self._most, self._changed_at = most, now


def kind_of(demand: Demand) -> Demand:
    return replace(demand, count=1)


def _first(demands: Iterable[Demand], most: int) -> Iterator[Demand]:
    for demand in demands:
        if most <= 0:
            return
        yield replace(demand, count=min(demand.count, most))
        most -= demand.count

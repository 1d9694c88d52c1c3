"""What an autoscaler is asked for, given what it made of the last request. Pure.

Ray's second autoscaler takes a request as a whole: where any part of it is beyond what it may add, it adds nothing at
all. So what was refused is asked for by half, down to one replica at a time, and what is refused even so is left out
for a while, lest it keep nodes from those behind it.

It packs what it is asked for into empty nodes, busy ones included, by what they have in all.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from dbserve.contracts.cluster import Demand, Node
from dbserve.contracts.status import Task
from dbserve.placement import Ask

MOST_WAITING = 1000  # tasks that wait, and of which an autoscaler is told
VERDICT_SECONDS = 6.0  # between two looks at what the autoscaler makes of a request; it works every five
MORE_SECONDS = 30.0  # after which twice as much is asked for, where nothing was refused
LEFT_OUT_SECONDS = 120.0  # after which what was refused alone is asked for again; later where there is much of it


def admitted(
    waiting: Sequence[Task], begun: AbstractSet[str], *, more_jobs: int | None, more_tasks: int | None
) -> list[Task]:
    """Those that could start if there were nodes, as far as an autoscaler is told of them: limits leave so many more
    tasks (None: any number), of the jobs that have `begun` and of so many others."""
    told, others = list[Task](), set[str]()
    for task in waiting:
        if len(told) == MOST_WAITING or (more_tasks is not None and len(told) >= more_tasks):
            break
        job_id = task.run.job_id
        if job_id not in begun and job_id not in others:
            if more_jobs is not None and len(others) >= more_jobs:
                continue
            others.add(job_id)
        told.append(task)
    return told


def demands(asks: Mapping[Ask, int]) -> tuple[Demand, ...]:
    """For so many replicas of each."""
    return tuple(Demand(ask.resources, ask.labels, ask.gpu_type, count) for ask, count in asks.items() if count)


def whole_nodes(nodes: Iterable[Node], wanted: Iterable[Ask]) -> tuple[Demand, ...]:
    """For nodes that have no room for what is wanted: each as all it has, or the autoscaler would find room where what
    is left is in pieces. With those of their labels that somebody asks for, lest it take one that will not do for one
    that would."""
    asks = set(wanted)
    labels, types = {label for ask in asks for label in ask.labels}, {ask.gpu_type for ask in asks}
    kinds = Counter(
        Demand(
            node.resources,
            tuple(sorted(labels.intersection(node.labels.items()))),
            node.gpu_type if node.gpu_type in types else None,
        )
        for node in nodes
    )
    return tuple(replace(kind, count=count) for kind, count in kinds.items())


class Asking:
    """Remembers what was refused. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._most: int | None = None  # replicas of what waits that are asked for at once; None: any number
        self._changed_at = 0.0
        self._searching = False  # something was left out: how much may be had beside it is to be found out soon
        self._left_out: dict[Demand, float] = {}  # kinds, by when they were refused
        self._asked: tuple[Demand, ...] = ()  # of what waits, in the last request

    @property
    def left_out(self) -> frozenset[Demand]:
        """Kinds (of one replica) for which no node is to be had at present."""
        return frozenset(self._left_out)

    def request(self, in_use: Sequence[Demand], waiting: Sequence[Demand], now: float) -> tuple[Demand, ...]:
        """What to ask for: room for what is in use, as far as it is to be kept or counted, and for what waits."""
        # long enough that every kind can be tried, and others be asked for between: each takes a verdict, and a second
        patience = max(LEFT_OUT_SECONDS, 3 * VERDICT_SECONDS * len(self._left_out))
        self._left_out = {kind: at for kind, at in self._left_out.items() if now - at < patience}
        wanted = [demand for demand in waiting if kind_of(demand) not in self._left_out]
        total = sum(demand.count for demand in wanted)
        pause = VERDICT_SECONDS if self._searching else MORE_SECONDS
        if self._most is not None and now - self._changed_at >= pause:
            self._limit(2 * self._most, now)
        if self._most is not None and self._most >= total:
            self._most, self._searching = None, False
        self._asked = tuple(_first(wanted, total if self._most is None else self._most))
        return (*in_use, *self._asked)

    def refused(self, now: float) -> None:
        """The last request was."""
        count = sum(demand.count for demand in self._asked)
        if count > 1:
            self._searching = False
            self._limit(count // 2, now)
        elif count == 1:
            self._left_out[kind_of(self._asked[0])] = now
            self._searching = True
            self._limit(1, now)

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

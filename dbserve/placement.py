"""Where a task may go: the books of every node, and what is missing where nothing fits. Pure.

The books hold what dbserve itself has given away. Ray is told the node of every worker and decides nothing more than
which of the node's GPUs it gets; which one that was, a worker says when it begins.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush, heapreplace
from math import ceil
from typing import Literal, NamedTuple

from dbserve.contracts.cluster import Capacity, Node, Resources
from dbserve.contracts.status import Task

_EPS = 1e-9


class Ask(NamedTuple):
    """What a task needs of nodes: tasks that need the same are the same to them."""

    resources: Resources  # of each replica
    replicas: int = 1
    fewest: int = 1
    placement: Literal["pack", "spread"] = "pack"
    gpu_type: str | None = None
    labels: tuple[tuple[str, str], ...] = ()

    def admits(self, node: Node) -> bool:
        """Whether a node is of the right kind, however much of it is free."""
        return not node.draining and self.finds_gpu(node) and self.finds_labels(node)

    def finds_gpu(self, node: Node) -> bool:
        return self.gpu_type is None or node.gpu_type == self.gpu_type

    def finds_labels(self, node: Node) -> bool:
        return all(node.labels.get(key) == value for key, value in self.labels)


def ask_of(task: Task) -> Ask:
    """Blocks never talk to each other, so together they lose nothing, decode their shards once, and leave whole nodes
    free for who needs one: they are packed, unless the job says otherwise."""
    return Ask(
        resources_of(task),
        task.replicas,
        task.min_replicas,
        task.placement or "pack",
        task.gpu_type,
        tuple(sorted(task.node_labels.items())) if task.node_labels else (),
    )


class _Page:
    """One node's books."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.cpus = node.resources.cpus
        self.gpus = [1.0] * int(node.resources.gpus + _EPS)  # free of each
        self.workers = Counter[str]()  # of each job
        self._known: dict[str, int] = {}  # places of the GPUs whose names were heard
        self._kept_cpus = 0.0  # of what is taken: kept for who waits
        self._kept_gpus = [0.0] * len(self.gpus)

    def room(self, held: Resources) -> int:
        """How many replicas it has room for."""
        by_cpu = int((self.cpus + _EPS) / held.cpus)
        if by_cpu <= 0 or held.gpus <= 0.0:
            return max(0, by_cpu)
        if held.gpus < 1.0:
            by_gpu = sum(int((free + _EPS) / held.gpus) for free in self.gpus if free > 0.0)
        else:
            by_gpu = sum(free >= 1.0 - _EPS for free in self.gpus) // _whole(held.gpus)
        return min(by_cpu, by_gpu)

    def take(self, held: Resources, job_id: str, names: Sequence[str] = ()) -> None:
        """Gives a replica its part: the GPUs of those names, else those that Ray would choose. What is overdrawn goes
        below zero."""
        self.cpus -= held.cpus
        self.workers[job_id] += 1
        share = held.gpus if held.gpus < 1.0 else 1.0
        for place in self._places(held.gpus, names):
            self.gpus[place] -= share

    def keep(self, held: Resources, job_id: str) -> None:
        """Takes it for one that waits."""
        before = list(self.gpus)
        self.take(held, job_id)
        self._kept_cpus += held.cpus
        self._kept_gpus = [kept + had - has for kept, had, has in zip(self._kept_gpus, before, self.gpus, strict=True)]

    def in_use(self) -> "_Page":
        """The same without what is kept."""
        page = _Page(self.node)
        page.cpus = self.cpus + self._kept_cpus
        page.gpus = [free + kept for free, kept in zip(self.gpus, self._kept_gpus, strict=True)]
        return page

    def _places(self, count: float, names: Sequence[str]) -> list[int]:
        if count <= 0.0 or not self.gpus:
            return []
        if names and len({*self._known, *names}) <= len(self.gpus):
            return [self._known.setdefault(name, len(self._known)) for name in names]
        if count < 1.0:  # Ray's choice: where it fits most tightly
            fits = [place for place, free in enumerate(self.gpus) if free >= count - _EPS]
            if fits:
                return [min(fits, key=self.gpus.__getitem__)]
        return sorted(range(len(self.gpus)), key=self.gpus.__getitem__, reverse=True)[: _whole(count)]

    @property
    def free_gpus(self) -> float:
        return sum(self.gpus)

    @property
    def open(self) -> bool:
        """Something may still be put there."""
        return self.cpus > _EPS and not self.node.draining and not self.node.silent


class Books:
    """What every node has left. What is placed, or kept for a task that waits, is taken at once."""

    def __init__(self, capacity: Capacity) -> None:
        self._pages = {node.id: _Page(node) for node in capacity.nodes}
        self._open = {page for page in self._pages.values() if page.open}
        self._kinds: dict[tuple[object, ...], list[_Page]] = {}  # pages that a kind of task may go to
        # For tasks of one replica, what is free only shrinks: each list is made once, and left behind as it is used up.
        self._packing: dict[Ask, deque[_Page]] = {}
        self._spreading: dict[Ask, list[tuple[tuple[object, ...], _Page]]] = {}
        self._exhausted: set[Ask] = set()

    def charge(self, tasks: Iterable[Task]) -> None:
        """Workers that are there: first those whose GPUs are known, for the others take what these leave."""
        later: list[tuple[str, Task]] = []
        for task in tasks:
            for rank, node_id in enumerate(nodes_of(task) or ("",)):
                names = task.gpu.split(",") if task.gpu and rank == 0 else ()
                if names and node_id in self._pages:
                    self._take(self._pages[node_id], resources_of(task), task.run.job_id, names)
                else:
                    later.append((node_id, task))
        for node_id, task in later:
            held = resources_of(task)
            page = self._pages.get(node_id)
            if not node_id:  # of a version that left it to Ray
                page = next((one for one in self._pages.values() if one.room(held)), None)
            if page is not None:
                self._take(page, held, task.run.job_id)

    def place(self, ask: Ask, job_id: str) -> tuple[str, ...]:
        """A node for each replica that has room now, the leading one's first; () where fewer than the fewest have."""
        if ask in self._exhausted:
            return ()
        spread = ask.placement == "spread"
        if ask.replicas == 1:
            page = self._emptiest(ask, job_id) if spread else self._fullest(ask)
            taken = [] if page is None else [page]
        else:
            pages = [page for page in self._of_kind(ask) if page.room(ask.resources)]
            taken = list(_spread(ask, pages, job_id) if spread else _packed(ask, pages))
        if len(taken) < ask.fewest:
            self._exhausted.add(ask)
            return ()
        for page in taken:
            self._take(page, ask.resources, job_id)
        return tuple(page.node.id for page in taken)

    def keep(self, ask: Ask, job_id: str) -> None:
        """Keeps room for a task that waits, on the nodes that are nearest to having it: what comes later must not
        overtake it for ever."""
        able = [page for page in self._of_kind(ask) if page.open and _Page(page.node).room(ask.resources)]
        for _ in range(ask.fewest):
            if not able:
                return
            page = max(able, key=lambda page: (page.free_gpus if ask.resources.gpus else 0.0, page.cpus))
            page.keep(ask.resources, job_id)
            if not page.open:
                self._open.discard(page)
                able.remove(page)

    def full_nodes(self, asks: Collection[Ask]) -> Iterator[Node]:
        """Nodes that stay, are in use, and have no room for any of these tasks, whatever is kept for whom; and those
        that do not answer."""
        for page in self._pages.values():
            node, now = page.node, page.in_use()
            used = now.cpus < node.resources.cpus - _EPS
            if not node.draining and (
                node.silent or (used and not any(ask.admits(node) and now.room(ask.resources) for ask in asks))
            ):
                yield node

    def free(self, node_id: str) -> Resources:
        """Of a node; below zero where more is held than it has."""
        page = self._pages[node_id]
        return Resources(page.cpus, page.free_gpus)

    @property
    def full(self) -> bool:
        """No node has any CPU left, and every task needs some."""
        return not self._open

    def _take(self, page: _Page, held: Resources, job_id: str, names: Sequence[str] = ()) -> None:
        page.take(held, job_id, names)
        if not page.open:
            self._open.discard(page)

    def _of_kind(self, ask: Ask) -> list[_Page]:
        kind = (ask.gpu_type, ask.labels)
        if kind not in self._kinds:
            self._kinds[kind] = [page for page in self._open if ask.admits(page.node)]
        return self._kinds[kind]

    def _fullest(self, ask: Ask) -> _Page | None:
        """The node to fill next: it stays the fullest until it has no room."""
        if ask not in self._packing:
            pages = [page for page in self._of_kind(ask) if page.room(ask.resources)]
            self._packing[ask] = deque(sorted(pages, key=lambda page: _fullness(ask, page)))
        line = self._packing[ask]
        while line and not line[0].room(ask.resources):
            line.popleft()
        return line[0] if line else None

    def _emptiest(self, ask: Ask, job_id: str) -> _Page | None:
        """The node with the fewest workers of the job; among equals, where most is free."""
        if ask not in self._spreading:
            pages = [page for page in self._of_kind(ask) if page.room(ask.resources)]
            self._spreading[ask] = [(_freedom(ask, page), page) for page in pages]
            heapify(self._spreading[ask])
        heap, passed = self._spreading[ask], list[tuple[tuple[object, ...], _Page]]()
        found = None
        while heap and found is None:
            said, page = heap[0]
            if not page.room(ask.resources):
                heappop(heap)
            elif (now := _freedom(ask, page)) != said:
                heapreplace(heap, (now, page))  # it was used since
            elif page.workers[job_id]:
                passed.append(heappop(heap))
            else:
                found = page
        for one in passed:
            heappush(heap, one)
        if found is None and passed:  # the job is on every node that has room
            return min((page for _, page in passed), key=lambda page: (page.workers[job_id], _freedom(ask, page)))
        return found


def resources_of(task: Task) -> Resources:
    """Of each of its replicas."""
    return Resources(task.cpus, task.gpus)


def nodes_of(task: Task) -> tuple[str, ...]:
    """Of each of its workers, as far as is known, the leading one's first."""
    return task.nodes or ((task.node_id,) if task.node_id else ())


def _packed(ask: Ask, pages: Sequence[_Page]) -> Iterator[_Page]:
    """All replicas on the fullest node that has room for them, else on as few nodes as possible."""
    rooms = [(page.room(ask.resources), page) for page in pages]
    whole = [page for room, page in rooms if room >= ask.replicas]
    if whole:
        yield from [min(whole, key=lambda page: _fullness(ask, page))] * ask.replicas
        return
    missing = ask.replicas
    for room, page in sorted(rooms, key=lambda one: -one[0]):
        yield from [page] * min(room, missing)
        missing -= min(room, missing)


def _fullness(ask: Ask, page: _Page) -> tuple[object, ...]:
    """Of the fullest node it is the least. What needs no GPU goes to nodes without one while it can."""
    gpus = page.free_gpus if ask.resources.gpus else page.node.resources.gpus
    return gpus, page.cpus, page.node.name, page.node.id


def _spread(ask: Ask, pages: Sequence[_Page], job_id: str) -> Iterator[_Page]:
    """Each replica where the job has the fewest workers; among equals, where most is free."""
    rooms = {page: page.room(ask.resources) for page in pages}
    mine = Counter({page: page.workers[job_id] for page in pages})
    for _ in range(ask.replicas):
        if not rooms:
            return
        page = min(rooms, key=lambda page: (mine[page], _freedom(ask, page)))
        yield page
        mine[page] += 1
        rooms[page] -= 1
        if not rooms[page]:
            del rooms[page]


def _freedom(ask: Ask, page: _Page) -> tuple[object, ...]:
    """Least first is where most is free."""
    gpus = -page.free_gpus if ask.resources.gpus else page.node.resources.gpus
    return gpus, -page.cpus, page.node.name, page.node.id


def shortfall(ask: Ask, nodes: Sequence[Node]) -> str | None:
    """What is missing for the task to fit on these nodes while they are empty, in words; None: it fits.

    No nodes at all say nothing: the cluster is just starting.
    """
    if not nodes or _together(ask, [node for node in nodes if ask.admits(node)]) >= ask.fewest:
        return None
    if any(node.draining for node in nodes):
        staying = [node for node in nodes if not node.draining]
        if shortfall(ask, [replace(node, draining=False) for node in nodes]) is None:
            return "every node that could hold it is draining"
        if staying:
            nodes = staying
    needs = f"needs {ask.resources.cpus:g} CPUs and {ask.resources.gpus:g} GPUs on one node"
    rest = [node for node in nodes if ask.finds_labels(node)]
    if not rest:
        return f"no node is labelled {_listed(f'{key}={value}' for key, value in ask.labels)}; {_labels(ask, nodes)}"
    typed = [node for node in rest if ask.finds_gpu(node)]
    if not typed:
        types = _listed({node.gpu_type for node in rest if node.gpu_type is not None}) or "none that is known"
        return f"no node has GPU type {ask.gpu_type}; nodes have {types}"
    if not (found := _together(ask, typed)):
        best = max((node.resources for node in typed), key=lambda held: (held.gpus, held.cpus))
        largest = "the largest node" if len(typed) == len(nodes) else "the largest of its kind"
        return f"{needs}; {largest} has {best.cpus:g} CPUs and {best.gpus:g} GPUs"
    return f"needs {ask.fewest} replicas; each {needs}; the nodes together hold {found}"


def _together(ask: Ask, nodes: Iterable[Node]) -> int:
    """Replicas that these nodes hold while they are empty, as far as they are asked for."""
    count = 0
    for node in nodes:
        count += _Page(node).room(ask.resources)
        if count >= ask.fewest:
            break
    return count


def _labels(ask: Ask, nodes: Sequence[Node]) -> str:
    keys = [key for key, _ in ask.labels]
    found = {f"{key}={node.labels[key]}" for node in nodes for key in keys if key in node.labels}
    return f"nodes have {_listed(found)}" if found else "none has such a label"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


def _whole(gpus: float) -> int:
    return max(1, ceil(gpus - _EPS))

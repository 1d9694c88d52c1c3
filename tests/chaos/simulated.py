"""A cluster in memory, with the ways in which a real one misbehaves: nodes cut off, processes that do not die, books
that forget. Time is told to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from dbserve.contracts.cluster import Capacity, Demand, Node, Presence, Resources
from dbserve.contracts.plan import TRAINED
from dbserve.contracts.status import Reason, Run, Task

SILENCE_SECONDS = 7.0  # beyond which a worker that is cut off has fenced itself


class Clock:
    """Monotonic seconds that pass when they are told to."""

    def __init__(self) -> None:
        self._now = 1000.0

    def monotonic(self) -> float:
        return self._now

    def pass_by(self, seconds: float) -> None:
        self._now += seconds


@dataclass(eq=False)
class Process:
    """A worker's process, and what it knows."""

    run: Run
    pid: int
    node: str
    heard_at: float  # when the store last took a word of it
    alive: bool = True  # it exists
    listed: bool = True  # in the cluster's books
    cut_off: bool = False  # its node is lost to the cluster; it may live, and reach the store
    stubborn: int = 0  # kills that it survives, as one in an uninterruptible call does for a while
    begun: bool = False  # Started was taken
    ended: bool = False  # it has said its last word
    restored: bool = False
    step: int = 0
    beats: int = 0  # that it sent
    task: Task | None = field(default=None, repr=False)  # as it stood when it began

    @property
    def trains(self) -> bool:
        """It has steps left to take, from where it went on."""
        return self.restored and self.task is not None and self.task.kind in TRAINED and self.step < self.task.steps


class SimulatedCluster:
    """dbserve.reconciler.Cluster."""

    def __init__(self, clock: Clock, *, cpus: float) -> None:
        self.identity = "cluster-1"
        self.processes: list[Process] = []
        self.launches: list[Run] = []
        self.mistakes: list[str] = []  # launches beside a worker that may live
        self.nodes = {"node-1": False}  # whether each is about to go
        self._clock = clock
        self._cpus = cpus
        self._pids = count(100)

    def capacity(self) -> Capacity:
        held = Resources(self._cpus, 0.0)
        return Capacity(tuple(Node(name, name, held, draining=going) for name, going in self.nodes.items()))

    def alive(self) -> set[Run]:
        return {one.run for one in self.processes if self._seen(one)}

    def launch(self, run: Run, resources: Resources, nodes: Sequence[str]) -> None:
        if run in self.alive():
            return
        self.launches.append(run)
        for one in self.processes:
            if (one.run.job_id, one.run.task) == (run.job_id, run.task) and self._may_work(one):
                self.mistakes.append(f"{run} is launched while the process {one.pid} of {one.run} may still work")
        [node] = nodes
        if self.nodes[node]:
            self.mistakes.append(f"{run} is launched on {node}, which is about to go")
        self.processes.append(Process(run, next(self._pids), node, self._clock.monotonic()))

    def stop(self, run: Run, *, task: Task | None) -> None:
        self._kill(lambda one: one.run == run and self._seen(one))
        if task is not None and task.pid is not None:
            self._kill(lambda one: one.pid == task.pid and not one.cut_off)

    def presence(self, task: Task) -> Presence:
        if task.pid is None:
            return Presence.PRESENT if task.run in self.alive() else Presence.GONE
        found = next((one for one in self.processes if one.pid == task.pid), None)
        if found is None:
            return Presence.GONE
        if found.cut_off:
            return Presence.UNKNOWN
        return Presence.PRESENT if found.alive else Presence.GONE

    def cause_of_death(self, run: Run) -> tuple[Reason, str] | None:
        return None

    def grow(self, in_use: Sequence[Demand], waiting: Sequence[Demand]) -> None:
        raise AssertionError("nobody said that it could grow")

    def drain(self) -> None:
        """All nodes are about to go, and another has come."""
        self.nodes = {**dict.fromkeys(self.nodes, True), f"node-{len(self.nodes) + 1}": False}

    def restart(self) -> None:
        """Another cluster, which knows nothing of the workers of the old one."""
        self.identity = f"cluster-{int(self.identity.removeprefix('cluster-')) + 1}"
        for one in self.processes:
            one.listed = False

    def _seen(self, one: Process) -> bool:
        return one.alive and one.listed and not one.cut_off

    def _may_work(self, one: Process) -> bool:
        """Nobody has seen it gone, it has not said its last word, and its lease is not over."""
        fenced = one.cut_off and self._clock.monotonic() - one.heard_at > SILENCE_SECONDS
        return one.alive and one.begun and not one.ended and not fenced

    def _kill(self, which: Callable[[Process], bool]) -> None:
        for one in [one for one in self.processes if which(one)]:
            one.listed = False
            if one.stubborn > 0:
                one.stubborn -= 1
            else:
                one.alive = False

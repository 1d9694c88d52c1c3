"""The real reconciler on a cluster that only pretends: python -m benchmarks.scaling.cluster --redis-url ...

Its nodes are numbers, and its processes live in benchmarks.scaling.workers, which a socket leads to. It answers at
once, so what is measured of a tick is the reconciler's own work and the store's: what Ray takes comes on top.
"""

import argparse
import asyncio
import json
import logging
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.scaling.lines import answer
from dbserve.artefacts import open_artefacts
from dbserve.contracts.cluster import Capacity, Demand, Node, Presence, Resources
from dbserve.contracts.status import Reason, Run, Task
from dbserve.garbage import collect_less_often
from dbserve.reconciler import Reconciler, limits_of
from dbserve.settings import read_settings
from dbserve.store import JobStore
from dbserve.webhooks.deliverer import Deliverer
from dbserve.webhooks.posting import Poster

AWAY_SECONDS = 10.0  # until another node comes for one that was lost


class SimulatedCluster:
    """dbserve.reconciler.Cluster."""

    identity = "simulated"

    def __init__(self, address: Path, *, nodes: int, slots: int) -> None:
        self.lost = 0  # workers whose node was lost
        self._slots = slots
        self._books = threading.Lock()  # guards the three below
        self._nodes = {f"node-{number}" for number in range(nodes)}
        self._homes: dict[Run, str] = {}  # workers that the cluster knows of
        self._gone: set[Run] = set()  # workers of lost nodes
        self._returning: list[tuple[float, str]] = []  # (monotonic seconds, node)
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(str(address))
        threading.Thread(target=self._listen, daemon=True).start()

    def capacity(self) -> Capacity:
        with self._books:
            while self._returning and self._returning[0][0] < time.monotonic():
                self._nodes.add(self._returning.pop(0)[1])
            each = Resources(float(self._slots), 0.0)
            return Capacity(tuple(Node(name, name, each) for name in sorted(self._nodes)))

    def alive(self) -> set[Run]:
        with self._books:
            return set(self._homes)

    def launch(self, run: Run, resources: Resources, nodes: Sequence[str]) -> None:
        with self._books:
            if run in self._homes:
                return
            node = nodes[0] if nodes else self._emptiest()
            self._homes[run] = node
        self._say({"do": "launch", "run": run.model_dump(), "node": node})

    def stop(self, run: Run, *, task: Task | None) -> None:
        with self._books:
            known = self._homes.pop(run, None) is not None
        if known:
            self._say({"do": "stop", "run": run.model_dump()})

    def presence(self, task: Task) -> Presence:
        with self._books:
            if task.run in self._gone:
                return Presence.UNKNOWN
            return Presence.PRESENT if task.run in self._homes else Presence.GONE

    def cause_of_death(self, run: Run) -> tuple[Reason, str] | None:
        return None

    def grow(self, in_use: Sequence[Demand], waiting: Sequence[Demand]) -> None:
        """It cannot."""

    def lose(self, count: int) -> list[str]:
        """So many nodes vanish, with all that runs on them; they are back after a while."""
        with self._books:
            lost = sorted(self._nodes)[:count]
            self._nodes -= set(lost)
            victims = [run for run, node in self._homes.items() if node in lost]
            self._gone.update(victims)
            for run in victims:
                del self._homes[run]
            self._returning += [(time.monotonic() + AWAY_SECONDS, node) for node in lost]
        self.lost += len(victims)
        for run in victims:
            self._say({"do": "stop", "run": run.model_dump()})
        return lost

    def _emptiest(self) -> str:
        loads = dict.fromkeys(sorted(self._nodes), 0)
        for node in self._homes.values():
            if node in loads:
                loads[node] += 1
        return min(loads, key=loads.__getitem__)

    def _say(self, document: dict[str, object]) -> None:
        self._line.sendall(json.dumps(document).encode() + b"\n")

    def _listen(self) -> None:
        """Notes who has ended."""
        with self._line.makefile("rb") as lines:
            for line in lines:
                run = Run.model_validate_json(line)
                with self._books:
                    self._homes.pop(run, None)


class Timed(Reconciler):
    """Remembers how long each tick took, by the reconciler's own clock."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)  # pyright: ignore[reportArgumentType]
        self.ticks: list[tuple[float, float]] = []  # (monotonic seconds at its end, seconds)

    async def tick(self) -> None:
        began = time.monotonic()
        try:
            await super().tick()
        finally:
            ended = time.monotonic()
            self.ticks.append((ended, ended - began))


async def reconcile(redis_url: str, address: Path, *, nodes: int, slots: int, loses: int) -> None:
    """Until the standard input is closed. `loses`: nodes that vanish when it is told so."""
    store = JobStore.from_url(redis_url)
    await store.ping()
    collect_less_often()
    cluster = SimulatedCluster(address, nodes=nodes, slots=slots)
    limits = limits_of(read_settings())
    with tempfile.TemporaryDirectory(prefix="dbs-bench-") as artefacts:
        deliverer = Deliverer(store, Poster(private_hosts=False))
        reconciler = Timed(store, cluster, open_artefacts(artefacts), limits=limits, deliverer=deliverer)
        stopping = asyncio.Event()
        running = asyncio.create_task(reconciler.run(stopping))
        asking = asyncio.create_task(
            answer(
                {
                    "ticks": lambda: {"ticks": reconciler.ticks, "workers of lost nodes": cluster.lost},
                    "lose": lambda: cluster.lose(loses),
                }
            )
        )
        await asyncio.wait({running, asking}, return_when=asyncio.FIRST_COMPLETED)
        stopping.set()
        await running
    await store.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="workers that a node holds")
    parser.add_argument("--loses", type=int, default=1, help="nodes that vanish at once")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(reconcile(chosen.redis_url, chosen.socket, nodes=chosen.nodes, slots=chosen.slots, loses=chosen.loses))


if __name__ == "__main__":
    main()

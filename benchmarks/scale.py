"""What the control plane bears: python -m benchmarks.scale

A real redis-server, one API, the real reconciler, and 10, 100 and 1,000 workers that only pretend to train
(benchmarks.scaling), each beside what the model on paper says of it. Failures are part of it: workers crash and die,
and one node in twenty vanishes. Ray is left out: what it takes to list and to start actors comes on top.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.figures import short
from benchmarks.scaling import model
from benchmarks.scaling.simulation import Measured, Scale, simulate

TICK_MILLISECONDS = 1000.0  # that no tick may take longer than
REQUEST_MILLISECONDS = 100.0  # the same, of the API's requests, one in a hundred left out
CROWDED = 0.5  # cores that others took, above which times say more of the machine than of the service
KEPT_UP = 0.9  # of the heartbeats that workers should send: below, the load was less than it is called


@dataclass(frozen=True)
class Row:
    """A figure at each size; `said` is the model's, where it has one."""

    what: str
    measured: tuple[float, ...]
    said: tuple[float, ...] | None = None
    most: float | None = None

    def cells(self) -> list[str]:
        """One a size."""
        said = self.said or (None,) * len(self.measured)
        return [self._cell(found, paper) for found, paper in zip(self.measured, said, strict=True)]

    def missed(self) -> list[str]:
        """What was more than it may be, in words."""
        most = self.most if self.most is not None else float("inf")
        return [f"{self.what}: {short(found)}, at most {short(most)}" for found in self.measured if found > most]

    def _cell(self, found: float, paper: float | None) -> str:
        missed = " (missed)" if self.most is not None and found > self.most else ""
        beside = "" if not paper else f" ({found / paper:.2f} of {short(paper)})"
        return f"{short(found)}{missed}{beside}"


def rows_of(scales: Sequence[Scale], found: Sequence[Measured]) -> list[Row]:
    """Everything worth a line."""
    fleets = [
        model.simulated(
            scale.workers,
            scale.pace,
            waiting_jobs=scale.waiting,
            requests_per_second=scale.requests_per_second,
            slots=scale.slots,
        )
        for scale in scales
    ]

    def row(what: str, of: Sequence[float], said: Sequence[float] | None = None, most: float | None = None) -> Row:
        return Row(what, tuple(of), None if said is None else tuple(said), most)

    def did(name: str) -> list[float]:
        return [each.did.get(name, 0.0) for each in found]

    def cores(name: str) -> list[float]:
        return [each.cores[name] for each in found]

    sums = [sum(model.bytes_of(dict(each.held.counts)).values()) for each in found]
    keys = [sum(each.held.by_kind.get(kind, 0) for kind in model.BYTES) for each in found]
    lines = [model.CONNECTION_BYTES * each.held.connections for each in found]
    return [
        row("workers at work at the end", [each.at_work for each in found]),
        row("until all work, s", [each.ramp_seconds for each in found]),
        row("a tick, median, ms", [each.ticks["p50"] for each in found], [1e3 * model.tick_seconds(f) for f in fleets]),
        row("a tick, p99, ms", [each.ticks["p99"] for each in found]),
        row("the longest tick, ms", [each.ticks["max"] for each in found], most=TICK_MILLISECONDS),
        row(
            "the longest tick while all start, ms",
            [each.longest_tick_of_ramp for each in found],
            most=TICK_MILLISECONDS,
        ),
        row("a request, median, ms", [each.requests["p50"] for each in found]),
        row("a request, p99, ms", [each.requests["p99"] for each in found], most=REQUEST_MILLISECONDS),
        row("a scrape of /metrics, ms", [each.scrape for each in found]),
        row("requests refused", [len(each.refused) for each in found], most=0),
        row("heartbeats /s", did("beats"), [model.heartbeats(fleet) for fleet in fleets]),
        row("checkpoints /s", did("checkpoints"), [model.checkpoints(fleet) for fleet in fleets]),
        row("workers started /s", did("starts")),
        row("crashes and deaths /s", [a + b for a, b in zip(did("crashes"), did("deaths"), strict=True)]),
        row("workers of lost nodes", [each.workers_of_lost_nodes for each in found]),
        row("commands of Redis /s", [each.commands for each in found], [model.commands(fleet) for fleet in fleets]),
        row("into Redis, kB/s", [each.redis_received / 1e3 for each in found]),
        row("out of Redis, kB/s", [each.redis_sent / 1e3 for each in found]),
        row("keys of jobs, MB", [each / 1e6 for each in keys], [each / 1e6 for each in sums]),
        row("connections", [each.held.connections for each in found]),
        row("of them, MB", [each.held.by_kind["connections"] / 1e6 for each in found], [each / 1e6 for each in lines]),
        row("Redis in all, MB", [each.held.used / 1e6 for each in found]),
        row("Redis, cores", cores("redis"), [model.redis_cores(fleet) for fleet in fleets]),
        row("reconciler, cores", cores("reconciler"), [model.reconciler_cores(fleet) for fleet in fleets]),
        row("API, cores", cores("api")),
        row("simulated workers, cores", cores("workers")),
        row("simulated users, cores", cores("users")),
        row("others on the machine, cores", cores("others")),
    ]


def cautions(found: Sequence[Measured]) -> list[str]:
    """What makes figures doubtful."""
    said: list[str] = []
    for each in found:
        if (others := each.cores["others"]) > CROWDED:
            said.append(
                f"At {each.workers:,} workers others took {others:.2f} cores: its times are no property of dbserve."
            )
        beats, taken = each.did.get("beats", 0.0), each.cores["workers"]
        if beats < KEPT_UP * each.at_work:
            said.append(
                f"At {each.workers:,} workers the simulated ones, in {taken:.2f} cores, could not keep up: "
                f"{beats:,.0f} heartbeats a second."
            )
        said += (
            [f"At {each.workers:,} workers {len(each.refused)} refused, as {each.refused[0]}"] if each.refused else []
        )
    return said


def markdown(scales: Sequence[Scale], rows: Sequence[Row], found: Sequence[Measured], facts: Mapping[str, str]) -> str:
    head = ["simulated workers", *(f"{scale.workers:,}" for scale in scales)]
    lines = [head, ["---", *("--:" for _ in scales)], *([row.what, *row.cells()] for row in rows)]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    said = [f"- {caution}" for caution in cautions(found)]
    where = ", ".join(f"{name} {value}" for name, value in facts.items())
    beside = "In brackets: the ratio to what the model says, and that."
    return "\n".join(["# Simulated workers", "", *table, "", beside, "", *said, "", where, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, action="append", help="a size; may be given several times")
    parser.add_argument("--seconds", type=float, default=30.0, help="that each is measured for")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    chosen = parser.parse_args()
    scales = [Scale(workers=size, seconds=chosen.seconds) for size in chosen.workers or (10, 100, 1000)]
    found: list[Measured] = []
    for scale in scales:
        found.append(simulate(scale))
        print(f"{scale.workers} workers: done", flush=True)
    names = ("redis", "fastapi", "uvicorn", "pydantic")
    facts = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version()}
    facts |= {name: version(name) for name in names}
    rows = rows_of(scales, found)
    page = markdown(scales, rows, found, facts)
    chosen.output.mkdir(parents=True, exist_ok=True)
    document = {"measured": [each.document() for each in found], **facts}
    (chosen.output / "scale.json").write_text(json.dumps(document, indent=1) + "\n")
    (chosen.output / "scale.md").write_text(page)
    print(page)
    if missed := [said for row in rows for said in row.missed()]:
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()

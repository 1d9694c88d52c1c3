"""One size of the simulation, from an empty store to its figures: real Redis, real API, real reconciler."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import api
from benchmarks.scaling.gauges import Held, Look, cores, held, look, per_second, spread
from benchmarks.scaling.lines import Asked
from benchmarks.scaling.pace import BLOCKS, SLOTS, Pace, job
from benchmarks.scaling.users import SCRAPE

FAILURES = "failures of the simulation"
PATIENCE_SECONDS = 120.0  # until all workers work
SETTLING_SECONDS = 3.0
WAITING = 0.1  # jobs in the queue behind those that run


@dataclass(frozen=True)
class Scale:
    """How many workers, and what is asked of the API meanwhile."""

    workers: int
    seconds: float = 40.0  # of the measurement
    requests_per_second: float = 25.0
    followers: int = 50
    scrape_seconds: float = 15.0
    pace: Pace = field(default_factory=Pace)

    @property
    def jobs(self) -> int:
        return -(-self.workers // BLOCKS)

    @property
    def waiting(self) -> int:
        return max(1, round(self.jobs * WAITING))

    @property
    def slots(self) -> int:
        """Workers that a node holds: of few workers, one node is not to be all."""
        return min(SLOTS, max(1, self.workers // 5))

    @property
    def nodes(self) -> int:
        return -(-self.workers // self.slots)

    @property
    def lost_nodes(self) -> int:
        """That vanish at once."""
        return max(1, self.nodes // 20)


@dataclass(frozen=True)
class Measured:
    """Milliseconds, cores, bytes and rates a second; `ticks` and `api` as gauges.spread()."""

    workers: int
    seconds: float
    ramp_seconds: float  # from the first launch until all work
    at_work: int  # workers with a pulse at the end
    ticks: Mapping[str, float]
    longest_tick_of_ramp: float
    jobs_at_start: int
    requests: Mapping[str, float]  # of all but scrapes
    by_request: Mapping[str, Mapping[str, float]]
    scrape: float  # the longest
    refused: tuple[str, ...]
    received_by_followers: int
    did: Mapping[str, float]  # a second
    did_in_all: Mapping[str, int]
    workers_of_lost_nodes: int
    commands: float
    redis_received: float
    redis_sent: float
    held: Held
    cores: Mapping[str, float]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def simulate(scale: Scale) -> Measured:
    """Raises RuntimeError when the workers do not come to work, or a process ends."""
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(api.service())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dbs-scale-")))
        body = directory / "job.json"
        body.write_text(job(scale.pace).model_dump_json(exclude_defaults=True))
        _submit(here, body, scale.jobs)
        address = directory / "workers.sock"
        told = ["--redis-url", here.redis_url, "--socket", str(address)]
        workers = stack.enter_context(_asked("workers", *told, "--pace", json.dumps(asdict(scale.pace))))
        _wait(lambda: address.exists() or workers.process.poll() is not None, "the simulated workers")
        sizes = ["--nodes", scale.nodes, "--slots", scale.slots, "--loses", scale.lost_nodes]
        reconciler = stack.enter_context(_asked("cluster", *told, *map(str, sizes)))
        began = time.monotonic()
        _wait(lambda: _counts(workers)["at work"] >= 0.98 * scale.workers, "the workers' work")
        ramp = time.monotonic() - began
        _submit(here, body, scale.waiting)
        time.sleep(SETTLING_SECONDS)
        return _measure(scale, here, workers, reconciler, body, ramp)


def _measure(scale: Scale, here: api.Service, workers: Asked, reconciler: Asked, body: Path, ramp: float) -> Measured:
    pids = {
        "redis": here.redis_pid,
        "api": here.api_pid,
        "reconciler": reconciler.pid,
        "workers": workers.pid,
    }
    asked = ["--port", here.port, "--body", body, "--seconds", scale.seconds, "--per-second"]
    asked += [scale.requests_per_second, "--followers", scale.followers, "--scrape", scale.scrape_seconds]
    with _asked("users", *map(str, asked)) as users:
        users.hear()
        pids["users"] = users.pid

        def looked() -> Look:
            return look(here.redis_url, pids, _counts(workers))

        before, began = looked(), time.monotonic()
        reconciler.ask("lose")
        time.sleep(max(0.0, began + scale.seconds - time.monotonic()))
        after, ended = looked(), time.monotonic()
        told = users.hear()
    found = reconciler.ask("ticks")
    ticks: list[tuple[float, float]] = found["ticks"]
    within = [1000 * seconds for at, seconds in ticks if began < at <= ended]
    earlier = [1000 * seconds for at, seconds in ticks if at <= began]
    times: dict[str, list[float]] = told["times"]
    scrapes = times.pop(SCRAPE, [0.0])
    seconds = ended - began
    return Measured(
        workers=scale.workers,
        seconds=seconds,
        ramp_seconds=ramp,
        at_work=after.did["at work"],
        ticks=spread(within),
        longest_tick_of_ramp=max(earlier),
        jobs_at_start=scale.jobs + scale.waiting,
        requests=spread([each for every in times.values() for each in every]),
        by_request={kind: spread(every) for kind, every in times.items() if len(every) > 1},
        scrape=max(scrapes),
        refused=tuple(told["refused"]),
        received_by_followers=told["pieces"],
        did=per_second(before, after, seconds),
        did_in_all=after.did,
        workers_of_lost_nodes=found["workers of lost nodes"],
        commands=(after.commands - before.commands) / seconds,
        redis_received=(after.received - before.received) / seconds,
        redis_sent=(after.sent - before.sent) / seconds,
        held=held(here.redis_url),
        cores=cores(before, after, seconds),
    )


def _counts(workers: Asked) -> dict[str, int]:
    did = workers.ask("counts")
    if did.get(FAILURES):
        raise RuntimeError("a simulated worker failed: see above")
    return did


def _submit(here: api.Service, body: Path, count: int) -> None:
    command = [sys.executable, "-m", "benchmarks.load", "submit", "--port", str(here.port)]
    command += ["--body", str(body), "--count", str(max(2, count)), "--connections", "4"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def _asked(what: str, *arguments: str) -> Generator[Asked]:
    """A process of benchmarks.scaling, which ends when its standard input is closed."""
    command = [sys.executable, "-m", f"benchmarks.scaling.{what}", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Asked(process)
        finally:
            process.terminate()


def _wait(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come within {PATIENCE_SECONDS:g} s")
        time.sleep(0.1)

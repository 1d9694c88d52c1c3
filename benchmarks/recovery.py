"""How long the service needs to go on after something broke: python -m benchmarks.recovery --repeats 3

One `dbserve up`, one job of two blocks that train; each fault is injected `repeats` times, and the clock runs from the
fault until REST shows what should come back. Workers tell of themselves once a second, so a step is seen up to a second
after it was taken.
"""

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import machine
from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import JobStatus, TaskState
from dbserve.contracts.views import BlockView
from dbserve.errors import DbserveError
from dbserve.store import JobStore
from tests.acceptance.conftest import Service
from tests.acceptance.jobs import digits_job
from tests.chaos.faults import Kind, kill, process_of, redis_socket

LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 180.0
STORED_JOBS = 1000
RETRY = {"max_attempts": 100, "max_backoff_seconds": 1.0}  # the default's first wait, at every repeat


def job(name: str, *, train: list[int] | None = None, cpus: float = 0.5, **changes: Any) -> JobSpec:
    """Blocks that train for longer than anybody measures; a checkpoint every few seconds."""
    return digits_job(
        name=name,
        blocks={"count": 2, "train": train or "all"},
        training={"steps": 1_000_000, "batch_size": 64},
        checkpoint={"every_steps": 500},
        resources={"cpus_per_block": cpus},
        retry=RETRY,
        **changes,
    )


@dataclass(frozen=True)
class Recovery:
    """One fault, injected several times."""

    fault: str
    until: str
    target: float | None  # seconds
    seconds: tuple[float, ...]
    stages: Mapping[str, float] = field(default_factory=dict[str, float])  # medians, seconds after the fault
    steps_lost: tuple[int, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def worst(self) -> float:
        return max(self.seconds)


@dataclass(frozen=True)
class Once:
    """One injection."""

    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict[str, float])
    steps_lost: int = 0


class Bench:
    """A running service, and the job whose block 0 suffers."""

    def __init__(self, service: Service, client: Client, job_id: str) -> None:
        self.service = service
        self.client = client
        self.job_id = job_id

    # --- the faults

    def trainer_lost(self, number: signal.Signals) -> Once:
        """A signal to the trainer of block 0, until its replacement has taken a step."""
        before = self.training()
        assert before.pid is not None
        began = time.time()
        os.kill(before.pid, number)
        seconds = self.until(began, partial(self.steps_in_another, before.attempt))
        return Once(seconds, self.stages(began, before.attempt), self.lost_steps(before.attempt))

    def raylet_lost(self) -> Once:
        before = self.training()
        began = time.time()
        assert kill(process_of(Kind.RAYLET_KILLED, self.service).pid)
        seconds = self.until(began, partial(self.steps_in_another, before.attempt))
        return Once(seconds, self.stages(began, before.attempt))

    def api_lost(self) -> Once:
        self.training()
        began = time.time()
        assert kill(process_of(Kind.API_KILLED, self.service).pid)
        return Once(self.until(began, self.ready))

    def reconciler_lost(self) -> Once:
        """Until the new one has looked at every job and acted: it alone can tell that a cancelled worker is gone."""
        before = self.client.submit(job("cancelled", train=[0], queue={"priority": 100}))
        self.until(time.time(), lambda: self.client.blocks(before.id)[0].step > 0)
        began = time.time()
        assert kill(process_of(Kind.RECONCILER_KILLED, self.service).pid)
        self.client.cancel(before.id)
        return Once(self.until(began, lambda: self.client.job(before.id).status is JobStatus.CANCELLED))

    def redis_lost(self) -> Once:
        """Until a job is accepted; the stage is when the trainer has been heard of again."""
        self.training()
        began = time.time()
        assert kill(process_of(Kind.REDIS_KILLED, self.service).pid)
        accepted = self.until(began, self.accepts)
        heard = self.until(began, lambda: self.heartbeat() > began + accepted)
        return Once(max(accepted, heard), {"a job is accepted": accepted, "a heartbeat after it": heard})

    # --- what is looked for

    def until(self, began: float, condition: Callable[[], bool]) -> float:
        """Seconds from `began` (unix) until the condition holds; not being answered is not holding."""
        while time.time() < began + PATIENCE_SECONDS:
            try:
                if condition():
                    return time.time() - began
            except DbserveError:
                pass
            time.sleep(LOOK_SECONDS)
        raise RuntimeError(f"not within {PATIENCE_SECONDS:g} s:\n{self.service.said()[-2000:]}")

    def block(self) -> BlockView:
        return self.client.blocks(self.job_id)[0]

    def training(self) -> BlockView:
        """Block 0, once every block has gone on for a few heartbeats and has a checkpoint."""
        steps: list[int] = []

        def settled() -> bool:
            blocks = self.client.blocks(self.job_id)
            if any(block.status is not TaskState.RUNNING or block.last_checkpoint is None for block in blocks):
                return False
            if not steps or blocks[0].step > steps[-1]:
                steps.append(blocks[0].step)
            return len(steps) > 3

        self.until(time.time(), settled)
        return self.block()

    def steps_in_another(self, attempt: int) -> bool:
        now = self.block()
        return now.attempt > attempt and now.last_step_at is not None

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.service.url}/readyz", timeout=1.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def accepts(self) -> bool:
        job = self.client.submit(digits_job(name="accepted"))
        self.client.cancel(job.id)
        return True

    def heartbeat(self) -> float:
        told = self.block().heartbeat_at
        return told.timestamp() if told else 0.0

    # --- what the history tells

    def stages(self, began: float, attempt: int) -> dict[str, float]:
        """When, in seconds after the fault, each event of the lost attempt and the next one was stored."""
        named: dict[tuple[str, int | None], str] = {
            ("crashed", attempt): "given up",
            ("launched", attempt + 1): "launched",
            ("started", attempt + 1): "worker up",
            ("restored", attempt + 1): "checkpoint read",
        }
        found: dict[str, float] = {}
        for kind, number, at, _ in self.history():
            if (stage := named.get((kind, number))) is not None:
                found[stage] = at - began
        return found

    def lost_steps(self, attempt: int) -> int:
        """Steps between the one a SIGTERMed trainer told of at its end and where the next attempt went on."""
        events = self.history()
        ended = next(
            (str(data["message"]) for kind, number, _, data in events if (kind, number) == ("crashed", attempt)), ""
        )
        told = re.search(r"a last checkpoint at step (\d+)", ended)
        restored = next(data["step"] for kind, number, _, data in events if (kind, number) == ("restored", attempt + 1))
        return int(told[1]) - int(str(restored)) if told else 0

    def history(self) -> list[tuple[str, int | None, float, Mapping[str, object]]]:
        """(kind, attempt, unix seconds, data) of what happened to block 0."""
        asked = {"limit": 500}
        found: list[tuple[str, int | None, float, Mapping[str, object]]] = []
        with httpx.Client(base_url=self.service.url, trust_env=False) as http:
            while True:
                page = http.get(f"/v1/jobs/{self.job_id}/events", params=asked).raise_for_status().json()
                for event in page["data"]:
                    if event["task"] == "block-0":
                        at = datetime.fromisoformat(event["at"]).timestamp()
                        found.append((event["kind"], event["attempt"], at, event["data"]))
                if not page["has_more"]:
                    return found
                asked = {"limit": 500, "after": page["next"]}


def repeated(
    fault: str,
    until: str,
    target: float | None,
    inject: Callable[[], Once],
    *,
    repeats: int,
    counts_steps: bool = False,
) -> Recovery:
    each: list[Once] = []
    for _ in range(repeats):
        each.append(inject())
        print(f"{fault}: {each[-1].seconds:.1f} s  {_told(each[-1].stages)}", flush=True)
    names = dict.fromkeys(name for once in each for name in once.stages)
    stages = {name: statistics.median(once.stages[name] for once in each if name in once.stages) for name in names}
    lost = tuple(once.steps_lost for once in each) if counts_steps else ()
    return Recovery(fault, until, target, tuple(once.seconds for once in each), stages, lost)


async def store_jobs(socket: Path, like: str, count: int) -> None:
    """As many more unfinished jobs, planned as the job `like` is."""
    store = JobStore.from_url(f"unix://{socket}")
    try:
        spec, plan = await store.spec(like), await store.plan(like)
        for number in range(count):
            await store.create_job(spec, plan, idempotency_key=None, request_digest=str(number))
    finally:
        await store.aclose()


def measure(repeats: int, stored_jobs: int) -> list[Recovery]:
    """Everything, on one service."""
    with tempfile.TemporaryDirectory(prefix="dbserve-bench-") as directory:
        service = Service(Path(directory) / "data")
        try:
            with service.client() as client:
                return _measured(
                    Bench(service, client, client.submit(job("suffers")).id),
                    repeats,
                    stored_jobs,
                )
        finally:
            service.stop()


def _measured(bench: Bench, repeats: int, stored_jobs: int) -> list[Recovery]:
    step = "a training step of its replacement"
    again = partial(repeated, repeats=repeats)
    found = [
        again("trainer: kill -9", step, 10.0, partial(bench.trainer_lost, signal.SIGKILL)),
        again("trainer: SIGTERM", step, None, partial(bench.trainer_lost, signal.SIGTERM), counts_steps=True),
        again("trainer hangs (SIGSTOP)", step, 30.0, partial(bench.trainer_lost, signal.SIGSTOP)),
        again("API: kill -9", "/readyz answers", 5.0, bench.api_lost),
        again("Redis: kill -9", "a job is accepted and a heartbeat taken", None, bench.redis_lost),
        again("raylet: kill -9", step, None, bench.raylet_lost),
    ]
    waiting = bench.client.submit(job("waits", cpus=float(os.cpu_count() or 1)))  # for the whole machine
    asyncio.run(store_jobs(redis_socket(bench.service), waiting.id, stored_jobs))
    what = f"reconciler: kill -9, {stored_jobs:,} jobs stored"
    return [*found, again(what, "it has acted on a look at all of them", 10.0, bench.reconciler_lost)]


def markdown(found: Sequence[Recovery], facts: Mapping[str, str], date: str) -> str:
    lines = [
        "# Recovery",
        "",
        f"`make bench-recovery`, {date}; {', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "",
        "| fault | until | target | median | worst | stages, seconds after the fault |",
        "|---|---|---:|---:|---:|---|",
    ]
    for one in found:
        target = "" if one.target is None else f"{one.target:g} s"
        stages = _told(one.stages)
        if one.steps_lost:
            stages += f"; steps lost: {max(one.steps_lost)} (target 0)"
        lines.append(f"| {one.fault} | {one.until} | {target} | {one.median:.1f} s | {one.worst:.1f} s | {stages} |")
    return "\n".join([*lines, ""])


def _told(stages: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=STORED_JOBS, help="stored while the reconciler restarts")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    found = measure(arguments.repeats, arguments.jobs)
    facts = machine("cpu") | {"load before": f"{load_before:.1f}"} | {name: version(name) for name in ("ray", "redis")}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    arguments.output.mkdir(parents=True, exist_ok=True)
    told = [asdict(one) | {"median": one.median, "worst": one.worst} for one in found]
    (arguments.output / "recovery.json").write_text(
        json.dumps({"date": date, "machine": facts, "recoveries": told}, indent=1)
    )
    (arguments.output / "recovery.md").write_text(table := markdown(found, facts, date))
    print(table)


if __name__ == "__main__":
    main()

"""What one API process and one Redis bear: python -m benchmarks.api

A real redis-server as `dbserve up` starts it (every write on disk before it is answered) and one `dbserve api`, on the
loopback interface; each part begins on an empty store, and is bounded in count and time. HTTP load comes from processes
of their own (benchmarks.load); what workers and the reconciler write, this process writes through the store.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import redis

from benchmarks.load import percentiles
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.status import Held, Launched, Progress, Reason, Run, Started
from dbserve.datasets import inspect
from dbserve.embedded import redis_server_binary
from dbserve.planner import load_card, plan_job
from dbserve.store import JobStore

READY_SECONDS = 30.0
WRITERS = 64  # coroutines that write progress, each for a worker of its own


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    jobs: int = 10_000  # stored, of 16 blocks each
    pages: int = 300
    submissions: int = 2_000  # unpaced
    paced_seconds: float = 10.0
    clients: int = 200
    stream_seconds: float = 15.0
    progress_seconds: float = 5.0
    submissions_per_second: float = 200.0
    events_per_second: float = 20.0


@dataclass(frozen=True)
class Figure:
    """One measured number beside what it has to be."""

    what: str
    value: float
    unit: str
    target: float
    at_least: bool = False  # else at most

    @property
    def holds(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target

    def row(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "" if self.holds else " (missed)"
        return f"| {self.what} | {self.value:,.1f} {self.unit}{verdict} | {sign} {self.target:,.0f} |"


@dataclass(frozen=True)
class Service:
    redis_url: str
    port: int
    redis_pid: int
    api_pid: int


@contextlib.contextmanager
def service() -> Generator[Service]:
    """Redis and the API, both on an empty directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="dbs-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        log = stack.enter_context((directory / "log").open("ab"))
        socket = directory / "redis.sock"
        command = [
            str(redis_server_binary()),
            *("--port", "0", "--unixsocket", str(socket), "--dir", name),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"),
        ]
        server = _child(stack, command, stdout=log)
        url = f"unix://{socket}"
        _wait(lambda: _ping(socket), "redis-server")
        environment = {
            **os.environ,
            "DBSERVE_REDIS_URL": url,
            "DBSERVE_ARTIFACTS": str(directory / "artifacts"),
            "DBSERVE_CACHE_DIR": str(directory / "cache"),
        }
        command = [sys.executable, "-m", "dbserve", "api", "--host", "127.0.0.1", "--port", "0"]
        said = directory / "api.log"
        with said.open("wb") as out:
            serving = _child(stack, command, stdout=out, stderr=log, env=environment)
        _wait(lambda: b"\n" in said.read_bytes(), "the API")
        yield Service(url, int(said.read_text().splitlines()[0].rpartition(":")[2]), server.pid, serving.pid)


def job(blocks: int) -> JobSpec:
    """A small network on the digits that come with the service, cut into so many blocks of a layer each."""
    return JobSpec.model_validate(
        {
            "name": "load",
            "labels": {"made-by": "benchmark"},
            "architecture": {"kind": "vit", "options": {"depth": blocks, "width": 16, "heads": 2, "patch": 4}},
            "data": {"uri": "builtin:digits"},
            "blocks": {"count": blocks},
            "training": {"steps": 1000, "batch_size": 32},
            "evaluation": {"baselines": []},
        }
    )


def planned(spec: JobSpec) -> JobPlan:
    with tempfile.TemporaryDirectory(prefix="dbs-bench-") as cache:
        card = load_card(spec.architecture.kind)
        return plan_job(spec, card, inspect(spec.data, modality=card.modality, cache_dir=Path(cache)))


def submissions(sizes: Sizes) -> list[Figure]:
    """Small jobs over 16 connections, each with an idempotency key of its own."""
    with service() as here, tempfile.TemporaryDirectory(prefix="dbs-bench-") as directory:
        body = Path(directory) / "job.json"
        body.write_text(job(3).model_dump_json(exclude_defaults=True))

        def load(count: int, *paced: str) -> dict[str, Any]:
            return _load(here, "submit", "--body", str(body), "--count", str(count), *paced)

        load(20)  # the digits are written, the code is warm
        free = load(sizes.submissions)
        pace = sizes.submissions_per_second
        paced = load(int(sizes.paced_seconds * pace), "--per-second", str(pace))
    return [
        Figure("submissions", free["per_second"], "/s", 300, at_least=True),
        Figure(f"a submission at {pace:g}/s, p50", paced["p50"], "ms", 100),
        Figure(f"a submission at {pace:g}/s, p99", paced["p99"], "ms", 100),
    ]


def listing(sizes: Sizes) -> list[Figure]:
    """Memory that jobs of 16 blocks take in Redis, and a page of 100 of them wherever the cursor stands."""
    with service() as here:
        before = _used_memory(here)
        asyncio.run(_store_jobs(here, sizes.jobs))
        used = _used_memory(here) - before
        found = _load(here, "pages", "--count", str(sizes.pages))
    return [
        Figure(f"{sizes.jobs:,} jobs of 16 blocks in Redis", used / 2**20, "MiB", 160),
        Figure("a page of 100 jobs, p50", found["p50"], "ms", 50),
        Figure("a page of 100 jobs, p99", found["p99"], "ms", 50),
    ]


def streams(sizes: Sizes) -> list[Figure]:
    """From just before an event is written to its receipt by each of many clients."""
    count = int(sizes.stream_seconds * sizes.events_per_second)
    with service() as here:
        sent, received = asyncio.run(_write_while_followed(here, sizes, count))
    late = [when - sent[number] for mine in received for number, when in mine]
    lost = sum(count - len({number for number, _ in mine}) for mine in received)
    wrong = sum([number for number, _ in mine] != sorted({number for number, _ in mine}) for mine in received)
    what = f"{sizes.clients} streams x {sizes.events_per_second:g} events/s"
    return [
        Figure(f"{what}, p50", percentiles(late)["p50"], "ms", 500),
        Figure(f"{what}, p99", percentiles(late)["p99"], "ms", 500),
        Figure(f"{what}: lost", lost, "events", 0),
        Figure(f"{what}: repeated or out of order", wrong, "streams", 0),
    ]


def progress(sizes: Sizes) -> list[Figure]:
    """Fenced progress writes of many workers, from one process."""
    with service() as here:
        return [Figure("progress writes", asyncio.run(_write_progress(here, sizes)), "/s", 2000, at_least=True)]


PARTS: dict[str, Callable[[Sizes], list[Figure]]] = {
    "submissions": submissions,
    "listing": listing,
    "streams": streams,
    "progress": progress,
}


def markdown(figures: Sequence[Figure], facts: dict[str, str]) -> str:
    table = ["| what | measured | target |", "|---|---|---|", *(figure.row() for figure in figures)]
    return "\n".join(["# Load on one API process", "", *table, "", ", ".join(f"{k} {v}" for k, v in facts.items()), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=Sizes.jobs, help="stored for the listing")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="only this; may be given several times")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    chosen = parser.parse_args()
    figures: list[Figure] = []
    for part in chosen.part or PARTS:
        for figure in PARTS[part](Sizes(jobs=chosen.jobs)):
            figures.append(figure)
            print(figure.row(), flush=True)
    facts = _facts()
    chosen.output.mkdir(parents=True, exist_ok=True)
    document = {"figures": [{**asdict(figure), "holds": figure.holds} for figure in figures], **facts}
    (chosen.output / "api.json").write_text(json.dumps(document, indent=1))
    (chosen.output / "api.md").write_text(markdown(figures, facts))


async def _store_jobs(here: Service, count: int) -> None:
    spec = job(16)
    plan = planned(spec)
    store = JobStore.from_url(here.redis_url)
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await store.create_job(spec, plan, idempotency_key=None, request_digest=str(number))

    await asyncio.gather(*(work() for _ in range(16)))
    await store.aclose()


async def _write_while_followed(
    here: Service, sizes: Sizes, count: int
) -> tuple[list[float], list[list[tuple[int, float]]]]:
    """When each event was about to be written, and what each client received when."""
    spec = job(3)
    store = JobStore.from_url(here.redis_url)
    made, _ = await store.create_job(spec, planned(spec), idempotency_key=None, request_digest="")
    run = Run(job_id=made.record.id, task="block-0", attempt=1)
    sent: list[float] = []
    asked = ("--job", made.record.id, "--connections", str(sizes.clients), "--count", str(count))
    with _loading(here, "follow", *asked) as out:
        assert await asyncio.to_thread(out.readline) == b"following\n"
        began = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / sizes.events_per_second - time.monotonic()))
            sent.append(time.monotonic())
            await store.apply(Held(run=run, at=time.time(), reason=Reason.UNSCHEDULABLE, message=str(number)))
        received = json.loads(await asyncio.to_thread(out.read))["received"]
    await store.aclose()
    return sent, received


async def _write_progress(here: Service, sizes: Sizes) -> float:
    """Writes a second."""
    spec = job(16)
    plan = planned(spec)
    store = JobStore.from_url(here.redis_url)
    runs: list[Run] = []
    while len(runs) < WRITERS:
        made, _ = await store.create_job(spec, plan, idempotency_key=None, request_digest="")
        for block in range(16):
            run = Run(job_id=made.record.id, task=f"block-{block}", attempt=1)
            await store.apply(Launched(run=run, at=time.time(), cluster="c"))
            await store.apply(Started(run=run, at=time.time(), node="n", pid=1))
            runs.append(run)
    began = time.monotonic()

    async def work(run: Run) -> int:
        step = 0
        while time.monotonic() < began + sizes.progress_seconds:
            step += 1
            now = time.time()
            said = Progress(
                run=run, step=step, total=1000, heartbeat_at=now, last_step_at=now, loss=1.0, samples_total=step
            )
            await store.record_progress(said)
        return step

    written = sum(await asyncio.gather(*map(work, runs)))
    seconds = time.monotonic() - began
    await store.aclose()
    return written / seconds


@contextlib.contextmanager
def _loading(here: Service, what: str, *arguments: str) -> Generator[IO[bytes]]:
    """What a process of benchmarks.load prints; it must end well."""
    command = [sys.executable, "-m", "benchmarks.load", what, "--port", str(here.port), *arguments]
    with contextlib.ExitStack() as stack:
        process = _child(stack, command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        yield process.stdout
        if process.wait(READY_SECONDS):
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")


def _load(here: Service, what: str, *arguments: str) -> dict[str, Any]:
    with _loading(here, what, *arguments) as out:
        said = out.read()
    return json.loads(said)


def _child(
    stack: contextlib.ExitStack,
    command: list[str],
    *,
    stdout: Any,
    stderr: Any = None,
    env: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """A process that is ended with the stack."""
    process = stack.enter_context(subprocess.Popen(command, stdout=stdout, stderr=stderr, env=env))
    stack.callback(process.terminate)
    return process


def _ping(socket: Path) -> bool:
    with contextlib.closing(redis.Redis(unix_socket_path=str(socket))) as client, contextlib.suppress(redis.RedisError):
        return bool(client.ping())  # pyright: ignore[reportUnknownMemberType]
    return False


def _used_memory(here: Service) -> int:
    with contextlib.closing(redis.Redis.from_url(here.redis_url)) as client:  # pyright: ignore[reportUnknownMemberType]
        return client.info("memory")["used_memory"]  # pyright: ignore


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not start")
        time.sleep(0.02)


def _facts() -> dict[str, str]:
    names = ("redis", "fastapi", "uvicorn", "pydantic")
    facts = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "python": platform.python_version()}
    said = subprocess.run([str(redis_server_binary()), "--version"], check=True, capture_output=True, text=True).stdout
    server = next((word[2:] for word in said.split() if word.startswith("v=")), "?")
    return facts | {"redis-server": server} | {name: version(name) for name in names}


if __name__ == "__main__":
    main()

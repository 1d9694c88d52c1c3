"""What it costs to look: python -m benchmarks.watching

The exposition of 50 active blocks: its series, and how long /metrics takes. And a training that is watched live by 100
viewers of its page's stream, against the same training unwatched, alternately in one run. The viewers are one process
of their own on the same machine, and take no heed of what they read. One torch thread trains; on two cores that leaves
one to all the rest.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import httpx

from benchmarks import api, orchestration
from benchmarks.load import Connection
from benchmarks.serving import service
from dbserve.client import Client
from dbserve.contracts.status import Launched, MemoryBytes, Progress, Run, Started, TaskState
from dbserve.contracts.work import SAVE_BOUNDS, STEP_BOUNDS, BandLoss, CheckpointStage, Durations, Work
from dbserve.store import JobStore

JOBS, BLOCKS = 10, 5  # active ones
WARM_UP_SECONDS = 2.0


@dataclass(frozen=True)
class Exposition:
    """What one scrape of JOBS x BLOCKS active blocks is."""

    series: int
    bytes: int
    median_ms: float
    worst_ms: float


@dataclass(frozen=True)
class Watched:
    """Samples per second; each `watched` stands between two of `alone`, by whose mean it is divided, so that a machine
    that grows slower or faster meanwhile favours neither. `ratio` is the mean of these, with its standard error."""

    viewers: int
    alone: tuple[float, ...]  # one more
    watched: tuple[float, ...]
    ratio: float
    error: float


def exposition(scrapes: int) -> Exposition:
    """A real API and a real Redis, in which every block has told all that a worker can tell."""
    with api.service() as here, httpx.Client(base_url=f"http://127.0.0.1:{here.port}") as http:
        asyncio.run(_train_on_paper(here.redis_url))
        for path in ("/v1/jobs", "/v1/models", "/v1/nothing", "/healthz", "/readyz"):  # some routes have been asked for
            http.get(path)
        times: list[float] = []
        text = ""
        for _ in range(scrapes):
            began = time.perf_counter()
            text = http.get("/metrics").text
            times.append(1000 * (time.perf_counter() - began))
    if len(re.findall(r"^dbserve_block_steps_total", text, re.MULTILINE)) != JOBS * BLOCKS:
        raise RuntimeError("not every block was told")
    series = [line for line in text.splitlines() if line and not line.startswith("#")]
    return Exposition(len(series), len(text), statistics.median(times), max(times))


async def _train_on_paper(redis_url: str) -> None:
    """Jobs that run as far as the store can tell."""
    spec = api.job(BLOCKS)
    plan = api.planned(spec)
    store = JobStore.from_url(redis_url)
    work = Work(
        steps=900, samples=28_800, step_seconds=Durations().observed(0.02, STEP_BOUNDS, 900), data_wait_seconds=1.0,
        read_bytes=10**9, save_seconds=Durations().observed(0.3, SAVE_BOUNDS, 3),
        failed_checkpoints={CheckpointStage.SAVE: 1},
    )  # fmt: skip
    memory = MemoryBytes(
        parameters=1, gradients=1, optimizer=1, activations=1, allocated=1, reserved=1, peak=1, host=1, device=1
    )
    bands = tuple(BandLoss(low=low, high=2 * low, loss=1.0) for low in (0.1, 0.2, 0.4))
    for _ in range(JOBS):
        made, _ = await store.create_job(spec, plan, idempotency_key=None, request_digest="")
        for block in range(BLOCKS):
            run = Run(job_id=made.record.id, task=f"block-{block}", attempt=1)
            await store.apply(Launched(run=run, cluster="c"))
            await store.apply(Started(run=run, node="node-1", pid=1, gpu="GPU-1"))
            now = time.time()
            told = Progress(
                run=run, step=900, total=1000, heartbeat_at=now, last_step_at=now, loss=1.0, grad_norm=1.0,
                learning_rate=1e-3, samples_total=28_800, samples_per_second=1600.0, eval_loss=bands, work=work,
                memory=memory,
            )  # fmt: skip
            await store.record_progress(told)
    await store.aclose()


def watched(viewers: int, repeats: int, seconds: float) -> Watched:
    """Alternates the two, so that what else the machine does falls on both."""
    alone: list[float] = []
    looked_at: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="dbserve-bench-") as directory,
        service(Path(directory)) as (client, _),
    ):
        job = client.submit(orchestration.job())
        while (block := client.blocks(job.id)[0]).status is not TaskState.RUNNING or block.step == 0:
            time.sleep(0.1)
        alone.append(_samples_per_second(client, job.id, seconds))
        for _ in range(repeats):
            with _viewers(client, job.id, viewers):
                looked_at.append(_samples_per_second(client, job.id, seconds))
            alone.append(_samples_per_second(client, job.id, seconds))
            print(f"with {viewers} viewers {looked_at[-1]:8.0f} samples/s   alone {alone[-1]:8.0f}", flush=True)
        client.cancel(job.id)
        client.wait(job.id, timeout=60)
    ratios = [2 * seen / (before + after) for seen, before, after in zip(looked_at, alone[:-1], alone[1:], strict=True)]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios))
    return Watched(viewers, tuple(alone), tuple(looked_at), statistics.fmean(ratios), error)


def _samples_per_second(client: Client, job_id: str, seconds: float) -> float:
    """By the worker's own clock."""
    time.sleep(WARM_UP_SECONDS)
    first = client.blocks(job_id)[0]
    time.sleep(seconds)
    last = client.blocks(job_id)[0]
    if first.last_step_at is None or last.last_step_at is None:
        raise RuntimeError("the block told no step")
    return (last.samples_total - first.samples_total) / (last.last_step_at - first.last_step_at).total_seconds()


@contextlib.contextmanager
def _viewers(client: Client, job_id: str, count: int) -> Generator[None]:
    """So many open streams, in a process of their own, all of which have had a view."""
    port = httpx.URL(client.base_url).port
    command = [sys.executable, "-m", "benchmarks.watching", "--view", f"/v1/jobs/{job_id}/live"]
    with subprocess.Popen(
        [*command, "--port", str(port), "--viewers", str(count)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "watching":
            raise RuntimeError("the viewers did not get to see anything")
        try:
            yield
            if process.poll() is not None:
                raise RuntimeError("the viewers left")
        finally:
            process.terminate()


async def view(port: int, path: str, count: int) -> None:
    """Reads so many streams until killed; says when each has brought something."""
    streams = [await Connection.open(port) for _ in range(count)]
    for stream in streams:
        await stream.begin(path)
        await stream.chunk()
    print("watching", flush=True)

    async def read(stream: Connection) -> None:
        while await stream.chunk():
            pass

    await asyncio.gather(*map(read, streams))
    raise RuntimeError("the streams ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--viewers", type=int, default=100)
    parser.add_argument("--scrapes", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    parser.add_argument("--view", metavar="PATH", help="only the viewers, of this path")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if given.view is not None:
        asyncio.run(view(given.port, given.view, given.viewers))
        return
    scrape = exposition(given.scrapes)
    line = (
        f"/metrics of {JOBS * BLOCKS} active blocks: {scrape.series} series (at most 5000), "
        f"{scrape.bytes / 1024:.0f} KiB, {scrape.median_ms:.0f} ms (median; worst {scrape.worst_ms:.0f}; at most 100)"
    )
    print(line, flush=True)
    seen = watched(given.viewers, given.repeats, given.seconds)
    other = (
        f"samples per second watched by {seen.viewers} / unwatched: {seen.ratio:.3f} ± {seen.error:.3f} "
        f"(mean of {given.repeats} and its standard error; target 0.98)"
    )
    print(other)
    facts = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "ray", "redis", "prometheus-client")},
    }
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / "watching.json").write_text(
        json.dumps({"exposition": asdict(scrape), "watched": asdict(seen), **facts}, indent=1)
    )
    (given.output / "watching.md").write_text(f"# Watching\n\n{line}\n\n{other}\n\n{facts['machine']}\n")


if __name__ == "__main__":
    main()

"""What the service costs a training: python -m benchmarks.orchestration

The same block is trained by the bare train_block() loop in a process of its own, and through REST, Ray and Redis with
checkpoints every 200 steps; samples per second once running, taken alternately in one run, one torch thread each.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.serving import service
from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import TaskState
from dbserve.datasets import inspect
from dbserve.planner import load_card, plan_job
from workers.allocation import keep_freed_memory

WARM_UP_SECONDS = 4.0
BLOCK = "block-0"


def job() -> JobSpec:
    """The demo's network and batch; one block of it, for longer than anybody measures."""
    return JobSpec.model_validate(
        {
            "name": "orchestration",
            "architecture": {
                "kind": "vit",
                "options": {"depth": 6, "width": 64, "heads": 4, "patch": 2, "mlp": 128},
            },
            "data": {"uri": "builtin:digits", "augment": {"crop_padding": 1}},
            "blocks": {"count": 3, "train": [0]},
            "training": {"steps": 10_000_000, "batch_size": 64},
            "checkpoint": {"every_steps": 200},
            "evaluation": {"baselines": []},
        }
    )


@dataclass(frozen=True)
class Result:
    """Samples per second of each repeat, and the median of the ratios within a repeat."""

    bare: tuple[float, ...]
    orchestrated: tuple[float, ...]
    ratio: float
    machine: str
    versions: dict[str, str]


def bare_samples_per_second(seconds: float, cache_dir: Path) -> float:
    """The loop and nothing else, in this process."""
    keep_freed_memory()  # as workers do
    import torch

    from workers.data import open_dataset
    from workers.trainer import train_block

    torch.set_num_threads(1)
    spec = job()
    facts = inspect(spec.data, modality="images", cache_dir=cache_dir)
    plan = plan_job(spec, load_card("vit"), facts)
    steps = train_block(spec, plan, plan.task(BLOCK), open_dataset(facts, spec.data, cache_dir=cache_dir))
    with contextlib.closing(steps):
        warm = time.monotonic() + WARM_UP_SECONDS
        first = next(report for report in steps if time.monotonic() > warm)
        began = time.monotonic()
        last = next(report for report in steps if time.monotonic() > began + seconds)
        return (last.samples - first.samples) / (time.monotonic() - began)


def orchestrated_samples_per_second(client: Client, seconds: float) -> float:
    """The same through the service, read off the worker's own clock."""
    submitted = client.submit(job())
    try:
        while (block := client.blocks(submitted.id)[0]).status is not TaskState.RUNNING or block.step == 0:
            time.sleep(0.1)
        time.sleep(WARM_UP_SECONDS)
        first = client.blocks(submitted.id)[0]
        time.sleep(seconds)
        last = client.blocks(submitted.id)[0]
    finally:
        client.cancel(submitted.id)
        client.wait(submitted.id, timeout=60)
    if first.last_step_at is None or last.last_step_at is None:
        raise RuntimeError("the block told no step")
    return (last.samples_total - first.samples_total) / (last.last_step_at - first.last_step_at).total_seconds()


def measure(repeats: int, seconds: float) -> Result:
    """Alternates the two, so that what else the machine does falls on both."""
    bare: list[float] = []
    orchestrated: list[float] = []
    with tempfile.TemporaryDirectory(prefix="dbserve-bench-") as directory, service(Path(directory)) as (client, _):
        command = [sys.executable, "-m", "benchmarks.orchestration", "--bare", str(Path(directory) / "cache")]
        for _ in range(repeats):
            said = subprocess.run([*command, "--seconds", str(seconds)], check=True, capture_output=True, text=True)
            bare.append(float(said.stdout))
            orchestrated.append(orchestrated_samples_per_second(client, seconds))
            print(f"bare {bare[-1]:8.0f} samples/s   orchestrated {orchestrated[-1]:8.0f}", flush=True)
    return Result(
        bare=tuple(bare),
        orchestrated=tuple(orchestrated),
        ratio=statistics.median(through / alone for through, alone in zip(orchestrated, bare, strict=True)),
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        versions={name: version(name) for name in ("torch", "ray", "redis")},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    parser.add_argument("--bare", type=Path, metavar="CACHE_DIR", help="only the bare loop; prints samples per second")
    arguments = parser.parse_args()
    if arguments.bare is not None:
        print(bare_samples_per_second(arguments.seconds, arguments.bare))
        return
    result = measure(arguments.repeats, arguments.seconds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "orchestration.json").write_text(json.dumps(asdict(result), indent=1))
    line = f"orchestrated / bare samples per second: {result.ratio:.3f} (median of {arguments.repeats}; target 0.95)"
    (arguments.output / "orchestration.md").write_text(f"# Orchestration\n\n{line}\n\n{result.machine}\n")
    print(line)


if __name__ == "__main__":
    main()

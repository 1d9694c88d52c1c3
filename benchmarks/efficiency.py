"""What four isolated blocks at once make of a machine: python -m benchmarks.efficiency

Four Ray nodes of one CPU each, one block on each, trained through the service; beside them, in the same run and of the
same machine, the same four training loops without the service, and four processes that only multiply matrices: no four
processes can get more out of a machine than these. Every figure is a speed-up: what all do together over what one does
alone, one torch thread each.
"""

import argparse
import contextlib
import json
import math
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.scaling.lines import Asked, say
from benchmarks.serving import service
from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import TaskState
from dbserve.contracts.views import BlockView

BLOCKS = 4
WARM_UP_SECONDS = 2.0
PATIENCE_SECONDS = 180.0  # until all blocks train
TOKEN = "ray-token"
SIDE = 128  # of the matrices: they stay in a core's own cache


def job(blocks: int) -> JobSpec:
    """The demo's width and batch, two layers a block; the first so many of its four blocks, for longer than needed."""
    return JobSpec.model_validate(
        {
            "name": "efficiency",
            "architecture": {"kind": "vit", "options": {"depth": 8, "width": 64, "heads": 4, "patch": 2, "mlp": 128}},
            "data": {"uri": "builtin:digits", "augment": {"crop_padding": 1}},
            "blocks": {"count": BLOCKS, "train": list(range(blocks))},
            "training": {"steps": 10_000_000, "batch_size": 64},
            "checkpoint": {"every_steps": 200},
            "evaluation": {"baselines": []},
        }
    )


@dataclass(frozen=True)
class SpeedUps:
    """What `together` processes did over what one did alone, in each repeat."""

    what: str
    together: int
    of: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.of)

    @property
    def error(self) -> float:
        """Standard error of the mean; not known of one repeat."""
        return statistics.stdev(self.of) / math.sqrt(len(self.of)) if len(self.of) > 1 else math.nan

    def over(self, other: "SpeedUps") -> "SpeedUps":
        """The quotient of the two, repeat by repeat: what the machine did meanwhile falls on both."""
        quotients = tuple(ours / theirs for ours, theirs in zip(self.of, other.of, strict=True))
        return SpeedUps(f"{self.what} / {other.what}", self.together, quotients)

    def row(self) -> str:
        each = ", ".join(f"{one:.3f}" for one in self.of)
        return f"| {self.what} | {self.together} | **{self.mean:.3f} ± {self.error:.3f}** | {each} |"


COMPUTE, LOOP, THROUGH = "matrix products", "training loops, bare", "blocks through the service"


def measure(repeats: int, seconds: float) -> list[SpeedUps]:
    """Takes turns, so that what else the machine does falls on all."""
    found: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="dbserve-bench-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        address = stack.enter_context(nodes(directory))
        where = ("--ray-address", address)
        token = {"DBSERVE_RAY_AUTH_TOKEN_PATH": str(directory / TOKEN)}
        client, _ = stack.enter_context(service(directory / "data", *where, **token))
        for _ in range(repeats):
            alone = {
                THROUGH: through_the_service(client, 1, seconds),
                LOOP: at_once("loop", 1, seconds, directory),
                COMPUTE: at_once("compute", 1, seconds, directory),
            }
            together = {
                (THROUGH, BLOCKS): through_the_service(client, BLOCKS, seconds),
                (LOOP, BLOCKS): at_once("loop", BLOCKS, seconds, directory),
                (COMPUTE, BLOCKS): at_once("compute", BLOCKS, seconds, directory),
                (COMPUTE, 2): at_once("compute", 2, seconds, directory),
            }
            for (what, count), rate in together.items():
                found.setdefault((what, count), []).append(rate / alone[what])
                print(f"{what}, {count} at once: {found[what, count][-1]:.3f} of one alone", flush=True)
    speed_ups = {key: SpeedUps(*key, tuple(of)) for key, of in found.items()}
    through, loops, most = (speed_ups[what, BLOCKS] for what in (THROUGH, LOOP, COMPUTE))
    return [*speed_ups.values(), through.over(loops), through.over(most)]


def through_the_service(client: Client, blocks: int, seconds: float) -> float:
    """Samples a second of so many blocks at once, by their workers' own clocks."""
    submitted = client.submit(job(blocks))
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not all(_trains(block) for block in _trained(client, submitted.id, blocks)):
            if time.monotonic() > deadline:
                raise RuntimeError("the blocks did not all train")
            time.sleep(0.1)
        time.sleep(WARM_UP_SECONDS)
        first = _trained(client, submitted.id, blocks)
        time.sleep(seconds)
        last = _trained(client, submitted.id, blocks)
    finally:
        client.cancel(submitted.id)
        client.wait(submitted.id, timeout=60)
    return sum(_rate(before, after) for before, after in zip(first, last, strict=True))


def _trained(client: Client, job_id: str, blocks: int) -> Sequence[BlockView]:
    return client.blocks(job_id)[:blocks]


def _trains(block: BlockView) -> bool:
    return block.status is TaskState.RUNNING and block.step > 0


def _rate(before: BlockView, after: BlockView) -> float:
    if before.last_step_at is None or after.last_step_at is None:
        raise RuntimeError(f"{after.name} told no step")
    return (after.samples_total - before.samples_total) / (after.last_step_at - before.last_step_at).total_seconds()


def at_once(what: str, count: int, seconds: float, directory: Path) -> float:
    """What so many processes do a second, all of them in the same seconds."""
    command = [sys.executable, "-m", "benchmarks.efficiency", f"--{what}"]
    with contextlib.ExitStack() as stack:
        processes = [
            Asked(
                stack.enter_context(
                    subprocess.Popen(
                        [*command, str(number), "--cache", str(directory / "cache"), "--seconds", str(seconds)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                    )
                )
            )
            for number in range(count)
        ]
        for process in processes:
            process.hear()
        for process in processes:
            process.tell("go")
        return sum(process.hear() for process in processes)


def loop(block: int, cache: Path, seconds: float) -> None:
    """The training loop of a block and nothing else; says its samples a second when it is told to go."""
    from workers.allocation import keep_freed_memory

    keep_freed_memory()  # as workers do
    import torch

    from dbserve.datasets import inspect
    from dbserve.planner import load_card, plan_job
    from workers.data import open_dataset
    from workers.trainer import train_block

    torch.set_num_threads(1)
    spec = job(BLOCKS)
    facts = inspect(spec.data, modality="images", cache_dir=cache)
    plan = plan_job(spec, load_card("vit"), facts)
    steps = train_block(spec, plan, plan.task(f"block-{block}"), open_dataset(facts, spec.data, cache_dir=cache))
    with contextlib.closing(steps):
        warm = time.monotonic() + WARM_UP_SECONDS
        next(report for report in steps if time.monotonic() > warm)
        _wait_for_go()
        first = next(steps)
        began = time.monotonic()
        last = next(report for report in steps if time.monotonic() > began + seconds)
        say((last.samples - first.samples) / (time.monotonic() - began))


def compute(seconds: float) -> None:
    """Matrix products a second, when it is told to go."""
    import torch

    torch.set_num_threads(1)
    matrix = torch.randn(SIDE, SIDE)
    for _ in range(1000):
        torch.mm(matrix, matrix)
    _wait_for_go()
    done, began = 0, time.monotonic()
    while time.monotonic() < began + seconds:
        for _ in range(100):
            torch.mm(matrix, matrix)
        done += 100
    say(done / (time.monotonic() - began))


def _wait_for_go() -> None:
    say("ready")
    sys.stdin.readline()


@contextlib.contextmanager
def nodes(directory: Path) -> Generator[str]:
    """The address of a Ray cluster: a head that holds no work, and BLOCKS nodes of one CPU each.

    Who talks to it must have the token in `directory`.
    """
    token = directory / TOKEN
    token.write_text(secrets.token_hex(32))
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with contextlib.ExitStack() as stack:
        head = ["--head", "--port", "0", "--num-cpus", "0", "--include-dashboard", "false"]
        said = _started(stack, environment, directory / "head.log", *head, "--temp-dir", str(directory / "ray"))
        address = said.partition("--address='")[2].partition("'")[0]
        for number in range(BLOCKS):  # one after another: together they overwhelm a small machine
            _started(stack, environment, directory / f"node-{number}.log", "--address", address, "--num-cpus", "1")
        yield address


def _started(stack: contextlib.ExitStack, environment: Mapping[str, str], log: Path, *options: str) -> str:
    """A node of Ray, which ends with the stack; what it said until it ran."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", *options]
    with log.open("wb") as out:
        node = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    stack.callback(node.wait, 60)
    stack.callback(node.terminate)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "subprocesses are monitored" not in (said := log.read_text(errors="replace")):
        if node.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a node of Ray did not start: {said[-1000:]}")
        time.sleep(0.1)
    return log.read_text(errors="replace")


def markdown(found: Sequence[SpeedUps], facts: Mapping[str, str]) -> str:
    table = ["| what | at once | speed-up over one alone | of each repeat |", "|---|--:|--:|---|"]
    where = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n".join(["# Four isolated blocks at once", "", *table, *(each.row() for each in found), "", where, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each stretch that is measured")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    parser.add_argument("--loop", type=int, metavar="BLOCK", help="only the bare loop of this block")
    parser.add_argument("--compute", type=int, metavar="NUMBER", help="only matrix products")
    parser.add_argument("--cache", type=Path, default=Path("bench-output/cache"))
    chosen = parser.parse_args()
    if chosen.loop is not None:
        loop(chosen.loop, chosen.cache, chosen.seconds)
        return
    if chosen.compute is not None:
        compute(chosen.seconds)
        return
    before = os.getloadavg()[0]
    found = measure(chosen.repeats, chosen.seconds)
    facts = {**machine("cpu"), "load before": f"{before:.1f}"}
    page = markdown(found, facts)
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "efficiency.json").write_text(
        json.dumps({"speed_ups": [asdict(each) for each in found], **facts}, indent=1) + "\n"
    )
    (chosen.output / "efficiency.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()

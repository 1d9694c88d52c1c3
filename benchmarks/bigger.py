"""A network whose end-to-end training a worker cannot hold, trained as blocks by it: python -m benchmarks.bigger

The same job twice through REST, Ray and Redis, on one slot. First without a limit: what end-to-end training and the
training of a block take. Then with as much memory for each worker process as lies between the two (RLIMIT_DATA, which
bounds what a process may write to): end-to-end training must fail as host_oom, and everything else must succeed.
Fails unless that is what happens.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.serving import service
from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.report import Report
from dbserve.contracts.status import TERMINAL_JOB, Reason, TaskState

MIB = 2**20
LIMIT_MIB = 1024  # for a worker process, of which Python, torch and Ray take about 300
LOOK_SECONDS = 0.05
WORKER = "ray::BlockActor"
PATIENCE_SECONDS = 3600.0


def job(*, depth: int, width: int, blocks: int, steps: int, **changes: object) -> JobSpec:
    """A vision transformer for digits. The odd batch cannot be halved, so that running out of memory is final."""
    return JobSpec.model_validate(
        {
            "name": "bigger",
            "architecture": {"kind": "vit", "options": {"depth": depth, "width": width, "heads": 4, "patch": 2}},
            "data": {"uri": "builtin:digits"},
            "blocks": {"count": blocks},
            "training": {"steps": steps, "batch_size": 63},
            "checkpoint": {"every_steps": max(steps, 1)},
            "retry": {"backoff_seconds": 0.0},
            "evaluation": {"baselines": ["end_to_end"]},
            **changes,
        }
    )


@dataclass(frozen=True)
class Peak:
    """The most that a process held, bytes: in physical memory, and of that what is no file's."""

    resident: int
    anonymous: int


@dataclass(frozen=True)
class Outcome:
    """What became of one task. None: its process was never seen."""

    task: str
    state: TaskState
    reason: Reason | None
    message: str | None
    peak: Peak | None

    def line(self, predicted: int | None) -> str:
        seen = ("-", "-") if self.peak is None else (_mb(self.peak.resident), _mb(self.peak.anonymous))
        planned = "-" if predicted is None else _mb(predicted)
        ended = self.state.value if self.reason is None else f"**{self.reason.value}**"
        return f"| {self.task} | {planned} | {seen[0]} | {seen[1]} | {ended} |"


@dataclass(frozen=True)
class Run:
    """One job under one limit (bytes; None: none)."""

    limit: int | None
    plan: JobPlan
    outcomes: tuple[Outcome, ...]
    report: Report | None

    def outcome(self, task: str) -> Outcome:
        return next(one for one in self.outcomes if one.task == task)


class Peaks:
    """Watches the processes of a service's workers."""

    def __init__(self, service: int) -> None:
        self._service = psutil.Process(service)
        self._of: dict[int, Peak] = {}  # by pid
        self._over = threading.Event()

    def of(self, pid: int) -> Peak | None:
        return self._of.get(pid)

    @contextlib.contextmanager
    def watching(self) -> Generator[None]:
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for process in workers_of(self._service.pid):
                if (now := _held(process.pid)) is not None:
                    before = self._of.get(process.pid, Peak(0, 0))
                    most = (max(now.resident, before.resident), max(now.anonymous, before.anonymous))
                    self._of[process.pid] = Peak(*most)


def workers_of(service: int) -> list[psutil.Process]:
    """The processes of blocks, and of other tasks, under that `dbserve up`."""
    found: list[psutil.Process] = []
    for process in psutil.Process(service).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith(WORKER):
                found.append(process)
    return found


def limit_workers(service: int, limit: int) -> None:
    """No worker of that `dbserve up` may hold more than `limit` bytes from now on. Ray's raylet starts them, and they
    inherit what it may."""
    processes = psutil.Process(service).children(recursive=True)
    raylets = [process for process in processes if process.name() == "raylet"]
    if not raylets:
        raise RuntimeError("no raylet runs under this service")
    for raylet in raylets:
        for process in (raylet, *raylet.children(recursive=True)):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (limit, limit))


def measure(spec: JobSpec, limit: int | None) -> Run:
    """The job, from its submission to its end, on a service with one slot."""
    with (
        tempfile.TemporaryDirectory(prefix="dbserve-bench-") as directory,
        service(Path(directory), "--num-cpus", "1") as (client, pid),
    ):
        if limit is not None:
            limit_workers(pid, limit)
        return run(client, pid, spec, limit)


def run(client: Client, service: int, spec: JobSpec, limit: int | None) -> Run:
    """The job on a running service, whose workers have been limited."""
    plan, peaks = client.plan(spec), Peaks(service)
    with peaks.watching():
        submitted = client.submit(spec)
        pids: dict[str, int] = {}
        for event in client.events(submitted.id):
            if event.kind == "started" and event.task is not None:
                pids[event.task] = int(str(event.data["pid"]))
        finished = client.wait(submitted.id, timeout=PATIENCE_SECONDS)
    if finished.status not in TERMINAL_JOB:
        raise RuntimeError(f"the job is {finished.status}")
    outcomes = tuple(
        Outcome(
            task=task.name,
            state=task.status,
            reason=task.reason,
            message=task.message,
            peak=peaks.of(pids[task.name]) if task.name in pids else None,
        )
        for task in finished.tasks
    )
    assembled = all(one.state is TaskState.SUCCEEDED for one in outcomes if one.task == "evaluation")
    report = client.report(submitted.id) if assembled and len(outcomes) > 1 and "evaluation" in pids else None
    return Run(limit, plan, outcomes, report)


def complaints(limited: Run) -> list[str]:
    """What the limited run should have shown, and has not."""
    wrong = [
        f"{one.task} is {one.state.value} ({one.reason}: {one.message})"
        for one in limited.outcomes
        if one.task != "end_to_end" and one.state is not TaskState.SUCCEEDED
    ]
    if limited.outcome("end_to_end").reason is not Reason.HOST_OOM:
        wrong.append("end-to-end training did not run out of memory")
    if limited.report is None or not any("end_to_end could not be" in said for said in limited.report.warnings):
        wrong.append("the report does not say that end_to_end could not be trained")
    return wrong


def markdown(free: Run, limited: Run, machine: Mapping[str, str]) -> str:
    plan = limited.plan
    predicted = {task.name: plan.network_of(task).memory.total for task in plan.tasks if task.steps}
    head = (
        "| task | predicted for training, MB | most resident, MB | of it anonymous, MB | ended |",
        "|---|--:|--:|--:|---|",
    )

    def table(one: Run, tasks: Sequence[str]) -> list[str]:
        return [*head, *(one.outcome(task).line(predicted.get(task)) for task in tasks)]

    limit = 0 if limited.limit is None else limited.limit
    lines = [
        "# A model bigger than the machine",
        f"{plan.end_to_end.parameters:,} parameters end-to-end, {len(plan.blocks)} blocks of "
        f"{max(block.parameters for block in plan.blocks):,}; one slot; {plan.training.steps} steps of "
        f"{plan.training.batch_size} rows; seed {plan.training.seed}.",
        "",
        "Without a limit:",
        "",
        *table(free, [one.task for one in free.outcomes]),
        "",
        f"With {_mb(limit)} MB for a worker process:",
        "",
        *table(limited, [one.task for one in limited.outcomes]),
        "",
        *(f"- {said}" for said in _said(limited.report)),
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items()),
    ]
    return "\n".join(lines) + "\n"


def _said(report: Report | None) -> tuple[str, ...]:
    """Of end-to-end training, and how good the blocks are."""
    if report is None:
        return ()
    quality = report.quality
    accuracy = f"accuracy of the chain {quality.chain.accuracy:.1%}" if quality.family == "classification" else ""
    return (*(said for said in report.warnings if said.startswith("end_to_end")), accuracy)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f}"


def _held(pid: int) -> Peak | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
    return Peak(sizes["VmHWM"], sizes["RssAnon"]) if "VmHWM" in sizes else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-mib", type=int, default=LIMIT_MIB)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    arguments = parser.parse_args()
    shape = {"depth": arguments.depth, "width": arguments.width, "blocks": arguments.blocks}
    free = measure(job(**shape, steps=2), None)
    limited = measure(job(**shape, steps=arguments.steps), arguments.limit_mib * MIB)
    machine = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"} | {
        name: version(name) for name in ("torch", "ray")
    }
    page = markdown(free, limited, machine)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "bigger.md").write_text(page)
    runs = {"free": asdict(free), "limited": asdict(limited)}
    kept = {name: {key: one[key] for key in ("limit", "outcomes")} for name, one in runs.items()}
    (arguments.output / "bigger.json").write_text(json.dumps(kept, indent=1))
    print(page)
    if wrong := complaints(limited):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()

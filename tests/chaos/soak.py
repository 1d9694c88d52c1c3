"""Jobs run while faults are injected, and nothing is lost: python -m tests.chaos.soak --minutes 10 --seed 1

Starts `dbserve up` in a temporary directory, keeps small jobs coming, injects faults drawn from the seed, lets the jobs
end, and writes soak.md and soak.json. Exits with 1 unless every column that must be 0 is.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.machine import machine
from dbserve.client import Client, NotFound
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import TERMINAL_JOB
from dbserve.store import JobStore
from tests.acceptance.conftest import Service
from tests.chaos import verdict
from tests.chaos.faults import Ground, Kind, each_kind, redis_socket
from tests.chaos.injector import draw, inject, within
from tests.chaos.remains import MARK, as_bad, everything_below, marked_processes, zombies
from tests.chaos.table import Soak, markdown
from tests.chaos.workload import Workload, poison, surely, variants
from tests.integration.keys_left import leaks

STEPS = 1500  # of a block: some ten seconds, the time between two faults
STORE_BYTES = "256m"
STUCK_SECONDS = 120.0  # without a change of any job, after the last fault
END_SECONDS = 900.0  # that jobs have to end after the last fault, however they change
FOLLOWED_SECONDS = 60.0  # that followers have to be told of the end
REMOVED_SECONDS = 30.0  # that the reconciler has to remove what a deleted job leaves
ROOT = Path(__file__).parents[2]


def soak(minutes: float, seed: int, *, steps: int = STEPS, say: Callable[[str], None] = print) -> Soak:
    """One soak, from the start of a service to its end."""
    mark, ending, over = uuid.uuid4().hex, threading.Event(), threading.Event()
    os.environ[MARK] = mark  # inherited by whatever is started from here on
    specs = variants(steps)
    with tempfile.TemporaryDirectory(prefix="dbs-soak-") as directory, contextlib.ExitStack() as stack:
        home = Path(directory)
        data_dir = home / "data"
        disk = stack.enter_context(_small_disk(data_dir / "artifacts"))
        say("trains every kind of job without a service, to know its weights")
        digests = _undisturbed(specs, home / "cache")
        service = Service(data_dir)
        stack.callback(_stop, service)
        ground = Ground(service, redis_socket(service))
        work = Workload(service.url, specs, poison(home / "poison"), seed=seed)
        kinds = [*each_kind(disk=disk)]
        drawn = within(draw(seed, kinds), minutes * 60.0)
        say(f"{len(drawn)} faults in {minutes:g} minutes")
        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work.run, ending)
            working.add_done_callback(lambda _: over.set())  # without jobs, faults would show nothing
            try:
                faults = inject(drawn, ground, ending=over, say=say)
            finally:
                ending.set()
            working.result()
        say("no more faults; the jobs end")
        _await_ends(service)
        work.join(FOLLOWED_SECONDS)
        evidence = asyncio.run(verdict.look(ground))
        bad = verdict.offences(evidence, work.log, faults, digests)
        bad["zombies"] = zombies(service)
        bad["Redis keys leaked"] = leaks(ground.redis_socket)
        bad["left in the artefact store"] += _after_deletion(ground)
        code = service.stop()
        bad["unclean ends"] = [] if code == 0 else [f"dbserve up ended with {code}"]
        bad["processes left"] = marked_processes(mark)
    return Soak(
        seed=seed,
        minutes=minutes,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine("cpu") | {name: version(name) for name in ("ray", "redis")},
        faults=tuple(faults),
        ends=dict(Counter(job.status.value for job in evidence.outlines.values())),
        checked=verdict.checked(evidence),
        left_out=tuple(kind.value for kind in Kind if kind not in kinds),
        bad=as_bad(bad),
    )


@contextlib.contextmanager
def _small_disk(directory: Path) -> Generator[bool]:
    """A file system of STORE_BYTES at `directory` where we may mount one; tells whether there is one."""
    directory.mkdir(parents=True, mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"size={STORE_BYTES}", "tmpfs", str(directory)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(directory)], check=True)


def _undisturbed(specs: Sequence[JobSpec], cache_dir: Path) -> list[dict[str, str]]:
    """Of each spec the digests of its blocks; two trained at a time."""
    command = [sys.executable, "-m", "tests.chaos.undisturbed", str(cache_dir)]

    def digests(spec: JobSpec) -> dict[str, str]:
        given = spec.model_dump_json().encode()
        return json.loads(subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout)

    with ThreadPoolExecutor(2) as pool:
        return [*pool.map(digests, specs)]


def _await_ends(service: Service) -> None:
    """Returns when every job has ended, or when they had time enough."""
    before: list[tuple[str, str, int]] = []
    changed_at = began = time.monotonic()
    with Client(service.url) as client:
        while time.monotonic() < min(changed_at + STUCK_SECONDS, began + END_SECONDS):
            jobs = [job for job in surely(lambda: list(client.jobs())) if job.status not in TERMINAL_JOB]
            if not jobs:
                return
            now = [(job.id, job.status.value, job.progress.step) for job in jobs]
            if now != before:
                before, changed_at = now, time.monotonic()
            time.sleep(1.0)


def _after_deletion(ground: Ground) -> list[str]:
    """Deletes every job that has ended; what is left of them in the artefact store."""
    with Client(ground.service.url) as client:
        for job in surely(lambda: list(client.jobs())):
            if job.status in TERMINAL_JOB:
                with contextlib.suppress(NotFound):
                    client.delete(job.id)
    asyncio.run(_await_removal(ground.redis_socket))
    return [f"jobs/{name}, after all jobs were deleted" for name in everything_below(ground.artefacts / "jobs")]


async def _await_removal(socket: Path) -> None:
    store = JobStore.from_url(f"unix://{socket}")
    deadline = time.monotonic() + REMOVED_SECONDS
    while await store.wishes.deleted() and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    await store.aclose()


def _stop(service: Service) -> None:
    if service.process.poll() is None:
        service.stop()


def written(result: Soak, directory: Path) -> str:
    """The table, as it was written to soak.md beside soak.json."""
    directory.mkdir(parents=True, exist_ok=True)
    told = dataclasses.asdict(result) | {"injected": dict(result.injected), "counts": result.counts}
    (directory / "soak.json").write_text(json.dumps(told, indent=1))
    (directory / "soak.md").write_text(table := markdown(result))
    return table


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """By way of the exits of what was started and mounted."""
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    result = soak(arguments.minutes, arguments.seed, say=partial(print, flush=True))
    print(written(result, arguments.output))
    sys.exit(result.exit_code)


if __name__ == "__main__":
    main()

"""Programs of the failpoint tests: each runs in a process that may be killed.

    python -m tests.chaos.processes reconcile REDIS_URL DIRECTORY
    python -m tests.chaos.processes idle      REDIS_URL DIRECTORY RUN

A worker that is idle trains nothing: it is there as long as a file `hold` is in the directory, and then has finished.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from dbserve.artefacts import open_artefacts
from dbserve.contracts.status import HELD, STOPPING, Finished, Progress, Run, Started
from dbserve.errors import IllegalTransition, StaleRun
from dbserve.reconciler import Reconciler
from dbserve.store import JobStore
from tests.chaos.process_cluster import ProcessCluster
from workers.presence import birth


def cluster_of(redis_url: str, directory: Path) -> ProcessCluster:
    """Of idle workers."""
    command = [sys.executable, "-m", "tests.chaos.processes", "idle", redis_url, str(directory)]
    return ProcessCluster(directory / "workers", command)


async def reconcile(redis_url: str, directory: Path) -> None:
    store, stopping = JobStore.from_url(redis_url), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    artefacts = open_artefacts(str(directory / "artefacts"))
    await Reconciler(store, cluster_of(redis_url, directory), artefacts).run(stopping)
    await store.aclose()


async def idle(redis_url: str, directory: Path, run: Run) -> None:
    store, pid = JobStore.from_url(redis_url), os.getpid()
    try:
        task = await store.apply(Started(run=run, node="n", pid=pid, born=birth(pid)))
        while (directory / "hold").exists():
            task = await store.record_progress(Progress(run=run, step=0, total=task.steps, heartbeat_at=0.0))
            if task.run != run or task.state not in HELD | STOPPING:
                return
            await asyncio.sleep(0.05)
        await store.apply(Finished(run=run))
    except (StaleRun, IllegalTransition):
        return
    finally:
        await store.aclose()


if __name__ == "__main__":
    program, url, home, *rest = sys.argv[1:]
    if program == "reconcile":
        asyncio.run(reconcile(url, Path(home)))
    else:
        asyncio.run(idle(url, Path(home), Run.model_validate_json(rest[0])))

"""The real worker without Ray: a process forked from one that has imported everything, so that it is there at once."""

import asyncio
import multiprocessing
import os
import socket
from multiprocessing.process import BaseProcess
from pathlib import Path

from dbserve.contracts.status import Run, Started
from dbserve.failpoints import VARIABLE
from workers.actor import BlockWorker, WorkerConfig
from workers.presence import birth
from workers.termination import Termination


class RaylessWorker(BlockWorker):
    """Ray is asked for its node's name alone."""

    def _started(self, gpus: str | None) -> Started:
        pid = os.getpid()
        return Started(run=self._run, node=socket.gethostname(), pid=pid, born=birth(pid), gpu=gpus)


def start(
    run: Run,
    redis_url: str,
    location: str,
    cache_dir: Path,
    *,
    failpoints: str = "",
    otlp_endpoint: str | None = None,
) -> BaseProcess:
    """A worker at an attempt that was launched; `failpoints` as DBSERVE_FAILPOINTS has them."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([__name__, "workers.attempt", "workers.assemble", "workers.evaluate"])
    config = WorkerConfig(redis_url=redis_url, artifacts=location, cache_dir=cache_dir, otlp_endpoint=otlp_endpoint)
    process = forks.Process(target=_work, args=(run.model_dump_json(), config, failpoints), daemon=True)
    process.start()
    return process


def _work(run: str, config: WorkerConfig, failpoints: str) -> None:
    os.environ[VARIABLE] = failpoints
    worker = RaylessWorker(Run.model_validate_json(run), config, cpus=1.0, gpus=0.0, termination=Termination())
    asyncio.run(worker.work())

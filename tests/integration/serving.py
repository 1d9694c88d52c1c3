"""A real API server in a thread, and jobs that move without a cluster: what the tests of the API need."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from dbserve.api.app import create_app
from dbserve.api.wire import BoundedHttp
from dbserve.contracts.status import Finished, Launched, Run, Started, TaskState
from dbserve.settings import Settings, read_settings
from dbserve.store import JobStore
from tests.jobs import small_plan, small_spec


def settings(redis_url: str, directory: Path, **changes: Any) -> Settings:
    paths = {"artifacts": directory / "artifacts", "cache_dir": directory / "cache"}
    return read_settings(redis_url=redis_url, **paths, **changes)


@contextlib.contextmanager
def serving(chosen: Settings) -> Iterator[str]:
    """The address of a server that stops when the block is left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(create_app(chosen), http=BoundedHttp, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the server did not stop"


async def submitted(store: JobStore, *, project: str = "default", **changes: Any) -> str:
    """A job straight into the store: blocks 0 and 1, assembly, evaluation."""
    spec = small_spec(**changes)
    plan = small_plan(spec)
    made, _ = await store.create_job(spec, plan, project=project, idempotency_key=None, request_digest="d")
    return made.record.id


async def start(store: JobStore, job_id: str, task: str, attempt: int = 1) -> Run:
    run = Run(job_id=job_id, task=task, attempt=attempt)
    await store.apply(Launched(run=run, at=time.time(), cluster="c"))
    await store.apply(Started(run=run, at=time.time(), node="n1", pid=7))
    return run


async def finish(store: JobStore, job_id: str) -> None:
    """Brings what has not ended to its good end."""
    for name, task in (await store.snapshot(job_id)).tasks.items():
        if task.state is TaskState.PENDING:
            await start(store, job_id, name)
        if task.state is not TaskState.SUCCEEDED:
            await store.apply(Finished(run=task.run, at=time.time()))

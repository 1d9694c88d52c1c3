"""What docs/reliability.md says of a failover: a replica that has not heard the last writes becomes the primary."""

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis as redis_sync

from dbserve.contracts.status import (
    HELD,
    Checkpointed,
    CheckpointRef,
    Crashed,
    Progress,
    Reason,
    Run,
    Started,
)
from dbserve.embedded import redis_server_binary
from dbserve.errors import JobNotFound, StaleRun
from dbserve.store import JobStore
from tests.integration.serving import start, submitted
from tests.integration.test_reconciling import RememberingCluster, reconciler_of
from workers.pulse import Order, order_of


@dataclass(frozen=True)
class Server:
    port: int
    client: Any  # redis_sync.Redis, of whose commands pyright knows little

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"


@contextlib.contextmanager
def server(directory: Path, *extra: str) -> Generator[Server]:
    directory.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = subprocess.Popen(
        [
            str(redis_server_binary()),
            *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""),
            *("--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0", *extra),
        ],
        stdout=subprocess.DEVNULL,
    )
    client = redis_sync.Redis(port=port, decode_responses=True)
    try:
        _wait(lambda: _answers(client), "redis-server answers")
        yield Server(port, client)
    finally:
        client.close()
        process.kill()
        process.wait(10)


def _answers(client: Any) -> bool:
    with contextlib.suppress(redis_sync.ConnectionError):
        return bool(client.ping())
    return False


def _wait(holds: Any, what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, f"not within 20 s: {what}"
        time.sleep(0.02)


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[Server]:
    with server(tmp_path / "primary") as started:
        yield started


@pytest.fixture
def replica(tmp_path: Path, primary: Server) -> Iterator[Server]:
    with server(tmp_path / "replica", "--replicaof", "127.0.0.1", str(primary.port)) as started:
        _wait(lambda: started.client.info("replication")["master_link_status"] == "up", "the replica follows")
        yield started


@pytest.fixture
async def before(primary: Server) -> AsyncIterator[JobStore]:
    opened = JobStore.from_url(primary.url)
    yield opened
    await opened.aclose()


@pytest.fixture
async def after(replica: Server) -> AsyncIterator[JobStore]:
    opened = JobStore.from_url(replica.url)
    yield opened
    await opened.aclose()


def promote(replica: Server, primary: Server) -> None:
    """The replica knows all that was written so far, and nothing of what is written from here on."""
    primary.client.set("last", "written")  # WAIT speaks of what its own connection wrote last
    assert primary.client.wait(1, 20_000) == 1
    replica.client.replicaof("no", "one")


async def commit(store: JobStore, run: Run, step: int) -> CheckpointRef:
    path = f"jobs/{run.job_id}/{run.task}/attempt-{run.attempt}/step-{step}"
    ref = CheckpointRef(step=step, path=path, sha256="0" * 64, attempt=run.attempt, at=1.0)
    await store.apply(Checkpointed(run=run, checkpoint=ref, keep_last=2))
    return ref


def progress(run: Run) -> Progress:
    return Progress(run=run, step=1, total=20, heartbeat_at=1.0)


async def test_an_attempt_that_the_replica_does_not_know_is_refused_and_the_job_goes_on_from_what_it_knows(
    before: JobStore, after: JobStore, primary: Server, replica: Server, tmp_path: Path
) -> None:
    job_id = await submitted(before)
    first, sibling = await start(before, job_id, "block-0"), await start(before, job_id, "block-1")
    known = await commit(before, first, 10)
    promote(replica, primary)
    await before.apply(Crashed(run=first, reason=Reason.WORKER_LOST, message="killed"))
    unknown = await start(before, job_id, "block-0", attempt=2)
    await commit(before, unknown, 20)

    assert order_of(unknown, await after.record_progress(progress(unknown))) is Order.GIVEN_UP
    with pytest.raises(StaleRun):
        await commit(after, unknown, 30)
    assert order_of(sibling, await after.record_progress(progress(sibling))) is Order.GO, "nothing happened to it"
    task = await after.task(job_id, "block-0")
    assert (task.run, task.checkpoints) == (first, (known,)), "back at what the replica had heard"

    cluster = RememberingCluster(unknown, sibling)  # of which nobody told Ray
    reconciler = reconciler_of(after, cluster, tmp_path)
    async with asyncio.timeout(20):
        while not cluster.launched:
            await reconciler.tick()
    assert unknown in cluster.stopped, "the forgotten worker is stopped"
    assert cluster.launched == [Run(job_id=job_id, task="block-0", attempt=2)]
    task = await after.task(job_id, "block-0")
    assert (task.state in HELD, task.checkpoints) == (True, (known,))


async def test_a_job_accepted_after_the_last_replicated_write_is_not_known_and_those_before_it_are(
    before: JobStore, after: JobStore, primary: Server, replica: Server
) -> None:
    kept = await submitted(before)
    promote(replica, primary)
    lost = await submitted(before)
    assert (await after.snapshot(kept)).record.id == kept
    with pytest.raises(JobNotFound):
        await after.snapshot(lost)
    run = Run(job_id=lost, task="block-0", attempt=1)
    with pytest.raises(JobNotFound):
        await after.record_progress(progress(run))
    with pytest.raises(JobNotFound):
        await after.apply(Started(run=run, node="n", pid=7))

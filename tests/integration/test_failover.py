"""What docs/reliability.md says of a failover: a replica that has not heard the last writes becomes the primary."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

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
from dbserve.errors import JobNotFound, StaleRun
from dbserve.store import JobStore
from tests.chaos.durable_redis import DurableRedis
from tests.integration.serving import start, submitted
from tests.integration.test_reconciling import RememberingCluster, reconciler_of
from tests.ports import free_port
from workers.pulse import Order, order_of


@contextlib.contextmanager
def started(directory: Path, *options: str, port: int) -> Generator[DurableRedis]:
    directory.mkdir()
    server = DurableRedis(directory, "--repl-diskless-sync-delay", "0", *options, port=port)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def primary(tmp_path: Path, port: int) -> Iterator[DurableRedis]:
    with started(tmp_path / "primary", port=port) as server:
        yield server


@pytest.fixture
def replica(tmp_path: Path, primary: DurableRedis, port: int) -> Iterator[DurableRedis]:
    with started(tmp_path / "replica", "--replicaof", "127.0.0.1", str(port), port=free_port()) as server:
        client: Any = server.client  # of whose commands pyright knows little
        deadline = time.monotonic() + 20
        while client.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline, "the replica does not follow"
            time.sleep(0.02)
        yield server


@pytest.fixture
async def before(primary: DurableRedis) -> AsyncIterator[JobStore]:
    opened = JobStore.from_url(primary.url)
    yield opened
    await opened.aclose()


@pytest.fixture
async def after(replica: DurableRedis) -> AsyncIterator[JobStore]:
    opened = JobStore.from_url(replica.url)
    yield opened
    await opened.aclose()


def promote(replica: DurableRedis, primary: DurableRedis) -> None:
    """The replica knows all that was written so far, and nothing of what is written from here on."""
    old: Any = primary.client
    new: Any = replica.client
    old.set("last", "written")  # WAIT speaks of what its own connection wrote last
    assert old.wait(1, 20_000) == 1
    new.replicaof("no", "one")


async def commit(store: JobStore, run: Run, step: int) -> CheckpointRef:
    path = f"jobs/{run.job_id}/{run.task}/attempt-{run.attempt}/step-{step}"
    ref = CheckpointRef(step=step, path=path, sha256="0" * 64, attempt=run.attempt, at=1.0)
    await store.apply(Checkpointed(run=run, checkpoint=ref, keep_last=2))
    return ref


def progress(run: Run) -> Progress:
    return Progress(run=run, step=1, total=20, heartbeat_at=1.0)


async def test_an_attempt_that_the_replica_does_not_know_is_refused_and_the_job_goes_on_from_what_it_knows(
    before: JobStore, after: JobStore, primary: DurableRedis, replica: DurableRedis, tmp_path: Path
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
    before: JobStore, after: JobStore, primary: DurableRedis, replica: DurableRedis
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

"""The simulation of many workers, small: what happens, and that the model counts as Redis does; never how fast."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_sync

from benchmarks.scale import Row, markdown, rows_of
from benchmarks.scaling import model
from benchmarks.scaling.pace import Pace
from benchmarks.scaling.simulation import Measured, Scale, simulate
from dbserve.contracts.status import Checkpointed, CheckpointRef, Progress
from dbserve.contracts.work import Point
from dbserve.store import JobStore
from dbserve.store.history import Said
from tests.integration.serving import start, submitted

HASTY = Pace(
    steps=3600,
    checkpoint_every=2,
    log_every=2,
    stride=1,
    nearly_done=0.5,
    crashes_per_second=1 / 40,
    deaths_per_second=1 / 40,
    starting=(0.05, 0.2),
    lasting=(0.05, 0.2),
)
SMALL = Scale(workers=20, seconds=5.0, requests_per_second=10.0, followers=4, scrape_seconds=3.0, pace=HASTY)


@pytest.fixture(scope="module")
def simulated() -> Measured:
    return simulate(SMALL)


def test_simulated_workers_do_what_workers_do(simulated: Measured) -> None:
    did = simulated.did_in_all
    assert did["beats"] > 20, "all have a pulse"
    assert did["checkpoints"] > 20
    assert did.get("crashes", 0) + did.get("deaths", 0) > 0, "chance may spare them one of the two"
    assert did["launches"] > SMALL.workers, "whoever was lost was replaced, or others had their turn"
    assert "launched twice" not in did
    assert simulated.workers_of_lost_nodes > 0
    assert simulated.ticks["count"] > 2


def test_the_api_answers_everybody_meanwhile(simulated: Measured) -> None:
    assert simulated.refused == ()
    assert simulated.requests["count"] == 50
    assert simulated.scrape > 0
    assert simulated.received_by_followers > 0


def test_what_jobs_take_in_redis_is_what_the_model_says(simulated: Measured) -> None:
    said = model.bytes_of(dict(simulated.held.counts))
    found = {kind: simulated.held.by_kind[kind] for kind in said}
    assert {kind: found[kind] / said[kind] for kind in said} == {kind: pytest.approx(1.0, abs=0.4) for kind in said}
    assert sum(found.values()) / sum(said.values()) == pytest.approx(1.0, abs=0.25)


def test_every_figure_stands_beside_what_the_model_says(simulated: Measured) -> None:
    rows = rows_of([SMALL], [simulated])
    page = markdown([SMALL], rows, [simulated], {"machine": "this one"})
    assert page.count("\n| ") == len(rows) + 2, "with the head"
    beats = next(row for row in rows if row.what == "heartbeats /s")
    assert beats.said == (20.0,)
    assert beats.measured[0] <= 21.0, "never more than one a second and worker"


@contextlib.contextmanager
def counting(socket: Path, expected: int) -> Iterator[None]:
    """That so many commands are carried out, those in scripts included."""
    client: Any = redis_sync.Redis(unix_socket_path=str(socket))

    def carried_out() -> int:
        return client.info("stats")["total_commands_processed"]

    before = carried_out()
    yield
    assert carried_out() - before - 1 == expected
    client.close()


async def test_the_model_counts_the_commands_of_each_operation(store: JobStore, redis_socket: Path) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    now = time.time()
    progress = Progress(run=run, step=1, total=20, heartbeat_at=now)
    ref = CheckpointRef(step=1, path="p", sha256="0", attempt=1, at=now)
    point = Point(step=1, at=now, attempt=1)

    await store.record_progress(progress)  # the script is loaded, the connection open
    with counting(redis_socket, model.HEARTBEAT):
        await store.record_progress(progress)
    with counting(redis_socket, model.EVENT):
        await store.apply(Checkpointed(run=run, checkpoint=ref, keep_last=2))
    with counting(redis_socket, model.LOG_BATCH):
        await store.history.append_logs(run, [Said(now, "info", "said")])
    with counting(redis_socket, model.POINT_BATCH):
        await store.courses.append(run, [point])


def test_a_figure_that_is_more_than_it_may_be_is_named_and_ends_the_benchmark() -> None:
    assert Row("a request, p99, ms", (90.0, 130.0), most=100.0).missed() == ["a request, p99, ms: 130, at most 100"]
    assert Row("heartbeats /s", (1e9,)).missed() == []

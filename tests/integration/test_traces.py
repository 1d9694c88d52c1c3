"""Traces of what goes wrong, and what is stored where nothing is traced."""

import asyncio
import contextlib
import socket
from pathlib import Path

import httpx
import pytest
import redis as redis_sync

from dbserve.api.app import create_app
from dbserve.artefacts import open_artefacts
from dbserve.contracts.status import Launched, Reason, Run, Started, TaskState
from dbserve.reconciler import Reconciler
from dbserve.store import JobStore, keys
from dbserve.tracing import open_tracer
from tests.chaos import rayless
from tests.collector import collecting
from tests.integration.serving import settings, submitted
from tests.integration.test_reconciling import RememberingCluster
from tests.jobs import small_plan, small_spec

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECONDS = 60.0  # for a worker to end


@pytest.mark.parametrize("bad", ["x" * 256, f"{CALLER}-{'x' * 256}"], ids=["nonsense", "too much"])
async def test_a_bad_trace_context_is_ignored(redis_url: str, api_directory: Path, store: JobStore, bad: str) -> None:
    body = small_spec().model_dump(mode="json", exclude_unset=True)
    with collecting() as collector:
        app = create_app(settings(redis_url, api_directory, otlp_endpoint=collector.url), store)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
            answer = await http.post("/v1/jobs", json=body, headers={"traceparent": bad})
        app.state.services.tracer.flush(10.0)
        parents = [span.parent for span in collector.spans]
    assert answer.status_code == 202
    assert parents == [""]


async def test_a_lost_attempt_and_its_follower_are_launches_of_the_same_trace(store: JobStore, tmp_path: Path) -> None:
    spec = small_spec(retry={"max_attempts": 3, "backoff_seconds": 0.0})
    made, _ = await store.create_job(spec, small_plan(spec), idempotency_key=None, request_digest="d", trace=CALLER)
    first = Run(job_id=made.record.id, task="block-0", attempt=1)
    cluster = RememberingCluster()
    with collecting() as collector:
        tracer = open_tracer(collector.url, "reconciler")
        reconciler = Reconciler(store, cluster, open_artefacts(str(tmp_path)), tracer=tracer)
        await reconciler.tick()
        await store.apply(Started(run=first, node="n", pid=7))
        cluster.running.discard(first)
        await reconciler.tick()  # gives it up
        await reconciler.tick()  # and launches the next one
        tracer.flush(10.0)
        spans = [span for span in collector.spans if span.attributes["dbserve.task"] == "block-0"]
    launch, gone, again = spans
    assert [span.name for span in spans] == ["launch", "give up", "launch"]
    assert [span.parent for span in spans] == [CALLER.split("-")[2], launch.id, CALLER.split("-")[2]]
    assert (gone.failed, gone.attributes["error.type"]) == (True, Reason.WORKER_LOST)
    assert [span.attributes["dbserve.attempt"] for span in spans] == [1, 1, 2]
    task = await store.task(first.job_id, "block-0")
    assert task.trace.split("-")[2] == again.id


async def test_a_worker_that_fails_says_why_in_its_span(store: JobStore, redis_url: str, tmp_path: Path) -> None:
    run = Run(job_id=await submitted(store), task="block-0", attempt=1)  # which was planned for other rows
    await store.apply(Launched(run=run, cluster="c", trace=CALLER))
    with collecting() as collector:
        await _ended(run, redis_url, tmp_path, collector.url)
        [span] = collector.spans
    assert (span.name, span.parent, span.failed) == ("train", CALLER.split("-")[2], True)
    assert (span.attributes["error.type"], span.attributes["dbserve.outcome"]) == ("data_error", "data_error")
    assert "other rows than when the job was planned" in span.message


@pytest.mark.parametrize("listens", [False, True], ids=["refuses", "hangs"])
async def test_a_worker_whose_collector_is_dead_tells_its_outcome_all_the_same(
    store: JobStore, redis_url: str, tmp_path: Path, listens: bool
) -> None:
    run = Run(job_id=await submitted(store), task="block-0", attempt=1)
    await store.apply(Launched(run=run, cluster="c", trace=CALLER))
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        port = hangs.getsockname()[1]
        if not listens:
            hangs.close()
        await _ended(run, redis_url, tmp_path, f"http://127.0.0.1:{port}")
    task = await store.task(run.job_id, "block-0")
    assert (task.state, task.reason) == (TaskState.FAILED, Reason.DATA_ERROR)


async def _ended(run: Run, redis_url: str, directory: Path, endpoint: str) -> None:
    worker = rayless.start(run, redis_url, str(directory / "artefacts"), directory / "cache", otlp_endpoint=endpoint)
    await asyncio.to_thread(worker.join, SECONDS)
    assert worker.exitcode == 0


async def test_where_nothing_is_traced_nothing_of_it_is_stored(
    http: httpx.AsyncClient, store: JobStore, redis_url: str, tmp_path: Path
) -> None:
    body = small_spec().model_dump(mode="json", exclude_unset=True)
    made = (await http.post("/v1/jobs", json=body, headers={"traceparent": CALLER})).json()
    await Reconciler(store, RememberingCluster(), open_artefacts(str(tmp_path))).tick()
    assert (await store.task(made["id"], "block-0")).state is TaskState.LAUNCHED
    with contextlib.closing(redis_sync.Redis.from_url(redis_url, decode_responses=True)) as client:
        stored = [client.hget(keys.job(made["id"]), "record"), *client.hvals(keys.tasks(made["id"]))]
    assert not [value for value in stored if "trace" in str(value)]

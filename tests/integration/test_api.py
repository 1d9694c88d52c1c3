"""The REST API on a real Redis."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dbserve.contracts.report import Report
from dbserve.contracts.snapshot import ModelRecord
from dbserve.contracts.status import Checkpointed, CheckpointRef, Crashed, MemoryBytes, Progress, Reason
from dbserve.contracts.views import BlockView, EventView, JobMetricsView, JobView
from dbserve.contracts.work import Point, Work
from dbserve.store import JobStore
from dbserve.store.history import Said
from tests.integration.serving import finish, start, submitted
from tests.jobs import small_plan
from tests.unit.test_report_page import report

# --- reading


async def test_pages_are_stable_while_new_jobs_arrive(http: httpx.AsyncClient, store: JobStore) -> None:
    ids = [await submitted(store) for _ in range(5)]
    seen: list[str] = []
    asked: dict[str, Any] = {"limit": 2}
    while True:
        page = (await http.get("/v1/jobs", params=asked)).json()
        seen += [job["id"] for job in page["data"]]
        assert page["has_more"] is (page["next"] is not None)
        if not page["has_more"]:
            break
        asked["after"] = page["next"]
        await submitted(store)
    assert seen == ids[::-1]


async def test_jobs_are_found_by_label_and_status(http: httpx.AsyncClient, store: JobStore) -> None:
    wanted = await submitted(store, labels={"team": "a", "run": "1"})
    await submitted(store, labels={"team": "a", "run": "2"})
    cancelled = await submitted(store, labels={"team": "b", "run": "1"})
    await http.post(f"/v1/jobs/{cancelled}/cancel")

    async def found(query: str) -> list[str]:
        return [job["id"] for job in (await http.get(f"/v1/jobs?{query}")).json()["data"]]

    assert await found("label=team=a&label=run=1") == [wanted]
    assert await found("status=cancelled") == [cancelled]
    assert await found("status=cancelled&label=team=a") == []


async def test_a_job_shows_progress_eta_and_why_it_stands(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    told = {"loss": 1.5, "samples_per_second": 64.0, "memory": MemoryBytes(peak=4096)}
    await store.record_progress(Progress.model_validate(dict(run=run, step=10, total=20, heartbeat_at=1.0, **told)))
    job = JobView.model_validate_json((await http.get(f"/v1/jobs/{job_id}")).content)
    assert job.status == "running"
    assert (job.progress.step, job.progress.total, job.progress.percent) == (10, 40, 25.0)
    assert job.progress.eta_seconds == pytest.approx(5.0 + 10.0)
    block = job.blocks[0]
    assert (block.step, block.loss, block.memory_peak, block.node) == (10, 1.5, 4096, "n1")
    crash = Crashed(run=run, reason=Reason.WORKER_LOST, message="killed", retry_after=60.0)
    await store.apply(crash)
    job = JobView.model_validate_json((await http.get(f"/v1/jobs/{job_id}")).content)
    assert job.status == "recovering"
    assert (job.reason, job.blocks[0].attempt, job.blocks[0].message) == (Reason.WORKER_LOST, 2, "killed")
    assert job.blocks[0].retry_at is not None


async def test_a_block_shows_its_place_its_memory_and_its_checkpoint(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-1")
    ref = CheckpointRef(step=5, path="p", sha256="0" * 64, attempt=1, at=1000.0)
    await store.apply(Checkpointed(run=run, at=1000.0, checkpoint=ref, keep_last=2))
    block = BlockView.model_validate_json((await http.get(f"/v1/jobs/{job_id}/blocks/1")).content)
    plan = (await store.plan(job_id)).blocks[1]
    assert (block.layers, block.sigma_max, block.memory_predicted) == (plan.layers, plan.sigma_max, plan.memory)
    assert block.last_checkpoint is not None
    assert (block.last_checkpoint.step, block.step) == (5, 5)
    both = (await http.get(f"/v1/jobs/{job_id}/blocks")).json()
    assert [b["index"] for b in both["data"]] == [0, 1]
    assert both["has_more"] is False
    assert (await http.get(f"/v1/jobs/{job_id}/blocks/2")).json()["code"] == "block_not_found"


# --- ending


async def test_cancel_may_be_repeated_and_only_an_ended_job_is_deleted(
    http: httpx.AsyncClient, store: JobStore
) -> None:
    job_id = await submitted(store)
    early = await http.delete(f"/v1/jobs/{job_id}")
    assert (early.status_code, early.json()["code"]) == (409, "job_not_terminal")
    for _ in range(2):
        cancelled = await http.post(f"/v1/jobs/{job_id}/cancel")
        assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert (await http.delete(f"/v1/jobs/{job_id}")).status_code == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/events"), ("GET", "/logs")):
        gone = await http.request(method, f"/v1/jobs/{job_id}{path}")
        assert (gone.status_code, gone.json()["code"]) == (404, "job_not_found"), path


async def test_a_job_that_succeeded_is_not_cancelled(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    await finish(store, job_id)
    late = await http.post(f"/v1/jobs/{job_id}/cancel")
    assert (late.status_code, late.json()["code"]) == (409, "job_terminal")
    job = (await http.get(f"/v1/jobs/{job_id}")).json()
    assert (job["status"], job["progress"]["percent"], job["progress"]["eta_seconds"]) == ("succeeded", 100.0, 0.0)
    assert job["links"]["cancel"] is None
    assert job["links"]["model"] == f"/v1/models/{job_id}"


# --- history


async def test_events_come_in_pages_that_join_up(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    await finish(store, job_id)
    whole = (await http.get(f"/v1/jobs/{job_id}/events")).json()["data"]
    kinds = [event["kind"] for event in whole]
    assert (kinds[0], kinds[-1]) == ("job_created", "job_finished")
    parts: list[Any] = []
    after: dict[str, str] = {}
    while True:
        page = (await http.get(f"/v1/jobs/{job_id}/events", params={"limit": 3, **after})).json()
        parts += page["data"]
        if not page["has_more"]:
            break
        after = {"after": page["next"]}
    assert parts == whole


async def test_logs_are_chosen_by_block_attempt_and_tail(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    for task in ("block-0", "block-1"):
        run = await start(store, job_id, task)
        await store.history.append_logs(run, [Said(float(n), "INFO", f"{task} line {n}") for n in range(3)])

    async def lines(query: str) -> list[str]:
        response = await http.get(f"/v1/jobs/{job_id}/logs?{query}")
        assert response.status_code == 200, response.text
        return [line["message"] for line in response.json()["data"]]

    assert await lines("block=1&tail=2") == ["block-1 line 1", "block-1 line 2"]
    assert await lines("task=block-0") == [f"block-0 line {n}" for n in range(3)]
    assert await lines("attempt=2") == []
    assert await lines("tail=0") == []
    text = await http.get(f"/v1/jobs/{job_id}/logs?tail=1", headers={"Accept": "text/plain"})
    assert text.text == "1970-01-01T00:00:02Z block-1#1 INFO    block-1 line 2\n"
    for wrong in ("block=9", "task=block-9", "block=1&task=block-1"):
        assert (await http.get(f"/v1/jobs/{job_id}/logs?{wrong}")).status_code == 422, wrong


async def test_a_report_is_not_ready_before_the_evaluation(http: httpx.AsyncClient, store: JobStore) -> None:
    response = await http.get(f"/v1/jobs/{await submitted(store)}/report")
    assert (response.status_code, response.json()["code"]) == (409, "report_not_ready")


async def test_a_report_comes_as_data_or_as_a_page(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    known = report(job_name="<evidence>")
    await store.results.save_report(run, known)
    address = f"/v1/jobs/{job_id}/report"
    as_data = await http.get(address)
    assert Report.model_validate_json(as_data.content) == known
    Draft202012Validator((await http.get("/v1/report-schema")).json()).validate(as_data.json())
    asked: list[dict[str, Any]] = [{"params": {"format": "html"}}, {"headers": {"Accept": "text/html"}}]
    for how in asked:
        page = await http.get(address, **how)
        assert page.headers["content-type"].startswith("text/html")
        assert "&lt;evidence&gt;" in page.text


# --- models


async def test_a_model_is_listed_shown_and_downloaded(
    http: httpx.AsyncClient, store: JobStore, api_directory: Path
) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    place = api_directory / "artifacts" / "models" / job_id
    place.mkdir(parents=True)
    (place / "model.json").write_text("{}")
    model = ModelRecord(
        id=job_id, job_id=job_id, name="digits", version=1, created_at=1.0, contract_hash="c",
        path=f"models/{job_id}", manifest={"blocks": [1, 2]},
    )  # fmt: skip
    await store.results.save_model(run, model)
    assert [m["id"] for m in (await http.get("/v1/models")).json()["data"]] == [job_id]
    shown = (await http.get(f"/v1/models/{job_id}")).json()
    assert shown["manifest"] == {"blocks": [1, 2]}
    tar = await http.get(shown["download"])
    assert tar.headers["content-type"] == "application/x-tar"
    assert len(tar.content) == int(tar.headers["content-length"])
    assert f"{job_id}/model.json".encode() in tar.content


async def test_a_model_that_points_outside_the_artefacts_is_not_sent(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    (tmp_path / "secret").write_text("secret")
    model = ModelRecord(
        id=job_id, job_id=job_id, name="x", version=1, created_at=1.0, contract_hash="c",
        path=str(tmp_path), manifest={},
    )  # fmt: skip
    await store.results.save_model(run, model)
    response = await http.get(f"/v1/models/{job_id}/download")
    assert (response.status_code, response.json()["code"]) == (500, "storage_error")


STRANGE = st.one_of(
    st.text(max_size=80), st.integers().map(str), st.sampled_from(["1-\u00b2", "\u0663-0", "0-", "-", "$", "+"])
)


@settings_of_hypothesis(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["", "/{job}/events", "/{job}/logs", "/{job}/blocks/{part}", "/{part}", "/{job}/report"]),
    part=STRANGE,
    query=st.dictionaries(st.sampled_from(["after", "limit", "label", "status", "task", "tail", "format"]), STRANGE),
    last=st.one_of(st.none(), STRANGE),
)
async def test_no_strange_parameter_makes_the_server_fail(
    http: httpx.AsyncClient, store: JobStore, path: str, part: str, query: dict[str, str], last: str | None
) -> None:
    jobs, _ = await store.list_jobs(limit=1)
    job_id = jobs[0].record.id if jobs else await submitted(store)
    url = "/v1/jobs" + path.format(job=job_id, part=quote(part, safe=""))
    headers = [] if last is None else [(b"last-event-id", last.encode())]
    response = await http.get(url, params=query, headers=headers)
    assert response.status_code < 500, (url, query, response.text)


# --- operations


async def test_the_service_is_ready_when_redis_and_the_artefacts_are_there(
    http: httpx.AsyncClient, api_directory: Path
) -> None:
    (api_directory / "artifacts").mkdir(exist_ok=True)
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "missing": {}})


async def test_metrics_show_the_jobs_of_the_store(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    done = Work(steps=20, samples=640)
    await store.record_progress(Progress(run=run, step=20, total=20, heartbeat_at=1.0, work=done))
    text = (await http.get("/metrics")).text
    assert "dbserve_redis_up 1.0" in text
    assert 'dbserve_jobs{status="running"} 1.0' in text
    assert f'dbserve_block_status{{block="0",job_id="{job_id}",status="running"}} 1.0' in text
    await finish(store, job_id)
    text = (await http.get("/metrics")).text
    assert 'dbserve_jobs{status="succeeded"} 1.0' in text
    assert f'dbserve_block_steps_total{{block="0",job_id="{job_id}"}} 20.0' in text


async def test_the_course_of_a_training_is_told_after_it_has_ended(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await store.courses.append(run, [Point(step=step, at=float(step), attempt=1, loss=1.0 / step) for step in (5, 10)])
    await store.apply(Crashed(run=run, reason=Reason.WORKER_LOST, message="killed"))
    again = await start(store, job_id, "block-0", attempt=2)
    told = [Point(step=step, at=100.0 + step, attempt=2, loss=2.0, memory_bytes=7) for step in (6, 20)]
    await store.courses.append(again, told)
    await store.courses.append(again, told)  # told twice
    await finish(store, job_id)
    view = JobMetricsView.model_validate_json((await http.get(f"/v1/jobs/{job_id}/metrics")).content)
    assert [task.name for task in view.tasks] == ["block-0", "block-1"]
    course = view.tasks[0]
    assert [(point.step, point.attempt, point.loss) for point in course.points] == [
        (5, 1, 0.2),
        (6, 2, 2.0),
        (20, 2, 2.0),
    ]
    assert (course.total, course.memory_predicted) == (20, small_plan().blocks[0].memory.total)
    few = await http.get(f"/v1/jobs/{job_id}/metrics", params={"points": 2, "task": "block-0"})
    assert [point["step"] for point in few.json()["tasks"][0]["points"]] == [5, 20]
    assert (await http.get(f"/v1/jobs/{job_id}/metrics", params={"task": "assembly"})).status_code == 422
    await http.delete(f"/v1/jobs/{job_id}")
    assert (await http.get(f"/v1/jobs/{job_id}/metrics")).status_code == 404


def test_events_have_times_that_a_reader_can_compare() -> None:
    event = EventView.model_validate({"id": "1-0", "at": 0.0, "kind": "k", "job_status": "queued", "data": {}})
    assert event.at.isoformat() == "1970-01-01T00:00:00+00:00"

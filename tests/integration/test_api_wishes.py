"""Pause, resume, retry, cancel by force, checkpoints and quotas, as a client meets them."""

from pathlib import Path

import httpx
import pytest

from dbserve.api.app import create_app
from dbserve.contracts.status import (
    Checkpointed,
    CheckpointFailed,
    CheckpointRef,
    Condition,
    Crashed,
    Finished,
    Held,
    Reason,
    Run,
)
from dbserve.contracts.views import BlockView, JobView
from dbserve.store import JobStore
from tests.integration.serving import finish, settings, start, submitted
from tests.jobs import small_spec
from tests.tenants import bearer


async def told(http: httpx.AsyncClient, path: str, status: int = 202, method: str = "POST") -> JobView:
    answer = await http.request(method, path)
    assert answer.status_code == status, answer.text
    return JobView.model_validate_json(answer.content)


async def refused(http: httpx.AsyncClient, path: str) -> tuple[int, str]:
    answer = await http.post(path)
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


async def test_a_job_is_paused_and_resumed_and_its_links_say_what_is_possible(
    http: httpx.AsyncClient, store: JobStore
) -> None:
    here = f"/v1/jobs/{await submitted(store)}"
    queued = await told(http, here, 200, "GET")
    assert (queued.links.pause, queued.links.resume, queued.links.retry) == (f"{here}/pause", None, None)
    paused = await told(http, queued.links.pause or "")
    assert (paused.status, paused.links.pause, paused.links.resume) == ("paused", None, f"{here}/resume")
    assert (await told(http, paused.links.resume or "")).status == "queued"
    await finish(store, queued.id)
    assert await refused(http, f"{here}/pause") == (409, "job_terminal")
    assert await refused(http, f"{here}/resume") == (409, "job_not_paused")


async def test_a_failed_job_is_retried_and_a_running_one_is_not(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    here = f"/v1/jobs/{job_id}"
    assert await refused(http, f"{here}/retry") == (409, "nothing_to_retry")
    run = await start(store, job_id, "block-0")
    await store.apply(Crashed(run=run, reason=Reason.DATA_ERROR, message="bad shard"))
    failed = BlockView.model_validate_json((await http.get(f"{here}/blocks/0")).content)
    assert (failed.status, failed.reason) == ("failed", Reason.DATA_ERROR)
    retried = BlockView.model_validate_json((await http.post(f"{here}/blocks/0/retry")).content)
    assert (retried.status, retried.attempt, retried.reason) == ("pending", 2, None)
    assert await refused(http, f"{here}/blocks/0/retry") == (409, "nothing_to_retry")
    assert await refused(http, f"{here}/blocks/7/retry") == (404, "block_not_found")


async def test_a_cancel_by_force_says_so_in_the_events(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    await start(store, job_id, "block-0")
    assert (await told(http, f"/v1/jobs/{job_id}/cancel")).status == "cancelling"
    forced = await told(http, f"/v1/jobs/{job_id}/cancel?force=true")
    assert forced.blocks[0].status == "cancelling"
    events = (await http.get(f"/v1/jobs/{job_id}/events")).json()["data"]
    assert [event["data"]["force"] for event in events if event["kind"] == "job_cancel_requested"] == [False, True]


async def test_checkpoints_are_listed_by_task(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-1")
    for step in (5, 10):
        ref = CheckpointRef(step=step, path=f"p/{step}", sha256="0" * 64, attempt=1, at=1000.0)
        await store.apply(Checkpointed(run=run, checkpoint=ref, keep_last=2))
    found = (await http.get(f"/v1/jobs/{job_id}/checkpoints")).json()["data"]
    assert [(each["task"], each["step"], each["path"]) for each in found] == [
        ("block-1", 5, "p/5"),
        ("block-1", 10, "p/10"),
    ]


async def test_conditions_are_shown_while_the_task_goes_on(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    waiting = Run(job_id=job_id, task="block-0", attempt=1)
    await store.apply(Held(run=waiting, reason=Reason.UNSCHEDULABLE, message="no GPU"))
    run = await start(store, job_id, "block-1")
    await store.apply(CheckpointFailed(run=run, step=5, message="disk full"))
    blocks = (await told(http, f"/v1/jobs/{job_id}", 200, "GET")).blocks
    assert [block.conditions for block in blocks] == [(Condition.UNSCHEDULABLE,), (Condition.CHECKPOINT_STALE,)]
    assert [block.status for block in blocks] == ["pending", "running"]


@pytest.fixture
def two_keys() -> tuple[str, str]:
    return "a" * 20, "b" * 20


async def test_each_key_has_a_quota_of_its_own_and_learns_when_to_come_back(
    redis_url: str, api_directory: Path, store: JobStore, two_keys: tuple[str, str]
) -> None:
    chosen = settings(redis_url, api_directory, api_key=",".join(two_keys), max_jobs_per_key=1)
    transport = httpx.ASGITransport(app=create_app(chosen, store))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:

        async def submit(key: str) -> httpx.Response:
            return await http.post(
                "/v1/jobs",
                json=small_spec().model_dump(mode="json"),
                headers=bearer(key),
            )

        first, second = two_keys
        made = await submit(first)
        assert made.status_code == 202, made.text
        again = await submit(first)
        assert (again.status_code, again.json()["code"]) == (429, "quota_exceeded")
        assert int(again.headers["Retry-After"]) > 0
        assert (await submit(second)).status_code == 202
        await store.wishes.cancel(made.json()["id"])
        assert (await submit(first)).status_code == 202
        for path in ("retry", "blocks/0/retry"):
            retried = await http.post(f"/v1/jobs/{made.json()['id']}/{path}", headers=bearer(first))
            assert (retried.status_code, retried.json()["code"]) == (429, "quota_exceeded"), path
        assert (await submit("c" * 20)).status_code == 401
        assert (await store.outline(made.json()["id"])).record.owner not in ("", first)


async def test_an_event_stream_goes_on_over_a_retry(http: httpx.AsyncClient, store: JobStore) -> None:
    job_id = await submitted(store)
    await store.wishes.cancel(job_id)
    await store.wishes.retry(job_id)
    kinds = [event["kind"] for event in (await http.get(f"/v1/jobs/{job_id}/events")).json()["data"]]
    assert kinds == ["job_created", "job_cancel_requested", "job_finished", "job_retry_requested"]
    await finish_retried(store, job_id)
    assert (await told(http, f"/v1/jobs/{job_id}", 200, "GET")).status == "succeeded"


async def finish_retried(store: JobStore, job_id: str) -> None:
    for name in ("block-0", "block-1", "assembly", "evaluation"):
        run = await start(store, job_id, name, attempt=2)
        await store.apply(Finished(run=run))

"""A Redis that hangs is waited for by one request, and by no other until it answers again."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from dbserve.api.app import create_app
from dbserve.store import JobStore
from tests.chaos.durable_redis import DurableRedis
from tests.integration.serving import settings, submitted
from tests.waiting import eventually


@pytest.fixture
async def http(
    stoppable_redis: DurableRedis, impatient_store: JobStore, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings(stoppable_redis.url, tmp_path), impatient_store)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=30.0) as client,
    ):
        yield client


async def served(http: httpx.AsyncClient, path: str) -> bool:
    return (await http.get(path)).status_code == 200


async def test_after_one_request_has_waited_in_vain_the_others_are_refused_at_once(
    http: httpx.AsyncClient, impatient_store: JobStore, stoppable_redis: DurableRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/jobs/{await submitted(impatient_store)}"
    assert (await http.get(path)).status_code == 200
    with stoppable_redis.stopped():
        assert (await http.get(path)).status_code == 503
        asked: list[str] = []
        with monkeypatch.context() as patched:
            patched.setattr(JobStore, "snapshot", lambda _, job_id: asked.append(job_id))
            refused = await asyncio.gather(*(http.get(path) for _ in range(50)))
        assert {each.status_code for each in refused} == {503}
        assert {each.json()["code"] for each in refused} == {"store_unavailable"}
        assert all(int(each.headers["Retry-After"]) >= 1 for each in refused)
        assert asked == [], "Redis was not asked for any of them"
        ready = await http.get("/readyz")
        assert (ready.status_code, list(ready.json()["missing"])) == (503, ["redis"])
    await eventually(lambda: served(http, path), seconds=20, what="it is served again once Redis answers")


async def test_one_that_is_refused_is_no_reason_to_refuse_all(
    http: httpx.AsyncClient, impatient_store: JobStore, stoppable_redis: DurableRedis
) -> None:
    """Redis out of memory refuses writes, and goes on reading."""
    path = f"/v1/jobs/{await submitted(impatient_store)}"
    stoppable_redis.client.config_set("maxmemory", "1")  # pyright: ignore[reportUnknownMemberType]
    assert (await http.post(f"{path}/cancel")).status_code == 503
    assert (await http.get(path)).status_code == 200


async def test_a_redis_that_answers_with_a_refusal_is_back(
    http: httpx.AsyncClient, impatient_store: JobStore, stoppable_redis: DurableRedis
) -> None:
    path = f"/v1/jobs/{await submitted(impatient_store)}"
    stoppable_redis.client.config_set("maxmemory", "1")  # pyright: ignore[reportUnknownMemberType]
    with stoppable_redis.stopped():
        assert (await http.get(path)).status_code == 503
    await eventually(lambda: served(http, path), seconds=20, what="what it can do it is asked to do")


async def test_probes_in_vain_keep_the_door_closed(
    http: httpx.AsyncClient, stoppable_redis: DurableRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = 0
    ping = JobStore.ping

    async def counted(store: JobStore) -> None:
        nonlocal probed
        probed += 1
        await ping(store)

    monkeypatch.setattr(JobStore, "ping", counted)
    with stoppable_redis.stopped():
        assert (await http.get("/v1/jobs")).status_code == 503
        deadline = time.monotonic() + 20
        while probed < 2:
            assert (await http.get("/v1/jobs")).status_code == 503
            assert time.monotonic() < deadline, "it asks again and again"
            await asyncio.sleep(0.02)

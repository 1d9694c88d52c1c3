"""A Redis that hangs is waited for by one request, and by no other until it answers again."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from dbserve.api.app import create_app
from dbserve.store import JobStore
from tests.chaos.durable_redis import DurableRedis
from tests.integration.serving import settings, submitted

IN_VAIN = 1.5  # seconds a request waits for Redis here


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[DurableRedis]:
    server = DurableRedis(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def store(redis: DurableRedis) -> AsyncIterator[JobStore]:
    opened = JobStore.from_url(redis.url, timeout=IN_VAIN)
    yield opened
    await opened.aclose()


@pytest.fixture
async def http(redis: DurableRedis, store: JobStore, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings(redis.url, tmp_path), store)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=30.0) as client,
    ):
        yield client


async def test_after_one_request_has_waited_in_vain_the_others_are_refused_at_once(
    http: httpx.AsyncClient, store: JobStore, redis: DurableRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/v1/jobs/{await submitted(store)}"
    assert (await http.get(path)).status_code == 200
    with redis.stopped():
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
    deadline = time.monotonic() + 20
    while (await http.get(path)).status_code != 200:
        assert time.monotonic() < deadline, "it is served again once Redis answers"
        await asyncio.sleep(0.02)


async def test_one_that_is_refused_is_no_reason_to_refuse_all(
    http: httpx.AsyncClient, store: JobStore, redis: DurableRedis
) -> None:
    """Redis out of memory refuses writes, and goes on reading."""
    path = f"/v1/jobs/{await submitted(store)}"
    redis.client.config_set("maxmemory", "1")  # pyright: ignore[reportUnknownMemberType]
    assert (await http.post(f"{path}/cancel")).status_code == 503
    assert (await http.get(path)).status_code == 200


async def test_a_redis_that_answers_with_a_refusal_is_back(
    http: httpx.AsyncClient, store: JobStore, redis: DurableRedis
) -> None:
    path = f"/v1/jobs/{await submitted(store)}"
    redis.client.config_set("maxmemory", "1")  # pyright: ignore[reportUnknownMemberType]
    with redis.stopped():
        assert (await http.get(path)).status_code == 503
    deadline = time.monotonic() + 20
    while (await http.get(path)).status_code != 200:
        assert time.monotonic() < deadline, "what it can do it is asked to do"
        await asyncio.sleep(0.02)


async def test_probes_in_vain_keep_the_door_closed(
    http: httpx.AsyncClient, redis: DurableRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = 0
    ping = JobStore.ping

    async def counted(store: JobStore) -> None:
        nonlocal probed
        probed += 1
        await ping(store)

    monkeypatch.setattr(JobStore, "ping", counted)
    with redis.stopped():
        assert (await http.get("/v1/jobs")).status_code == 503
        deadline = time.monotonic() + 20
        while probed < 2:
            assert (await http.get("/v1/jobs")).status_code == 503
            assert time.monotonic() < deadline, "it asks again and again"
            await asyncio.sleep(0.02)

"""How often a key may ask, and an address without one."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from dbserve.api.app import create_app
from dbserve.api.auth import FAILURES_A_MINUTE
from dbserve.api.serve import configured
from dbserve.store import JobStore
from dbserve.store.rates import Rate, rate
from tests.chaos.durable_redis import DurableRedis
from tests.integration.serving import settings
from tests.tenants import BOOTSTRAP, a_key, bearer


def asking(app: object, key: str, address: str = "192.0.2.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(address, 1))  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=bearer(key), timeout=30)


async def test_a_key_that_asks_too_often_is_told_when_to_come_back_and_others_go_on(
    redis_url: str, api_directory: Path, store: JobStore
) -> None:
    chosen = settings(redis_url, api_directory, rate_limit=10)
    first, second = create_app(chosen, store), create_app(chosen, store)  # two processes count together
    busy, other = await a_key(store, "red"), await a_key(store, "red")
    async with asking(first, busy) as http, asking(second, busy) as elsewhere, asking(first, other) as another:
        answers = [await client.get("/v1/jobs") for client in (http, elsewhere) * 5]
        assert [answer.status_code for answer in answers] == [200] * 10
        remaining = [int(answer.headers["RateLimit"].split(";")[1].removeprefix("r=")) for answer in answers]
        assert remaining == sorted(remaining, reverse=True)
        assert remaining[-1] == 0
        assert answers[0].headers["RateLimit-Policy"] == '"key";q=10;w=60'
        refused = await http.get("/v1/jobs")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["Retry-After"]) <= 120
        assert refused.headers["RateLimit"].startswith('"key";r=0;t=')
        assert (await another.get("/v1/jobs")).status_code == 200
        assert (await http.get("/healthz")).status_code == 200


async def test_what_is_refused_for_its_scope_counts_and_no_limit_means_none(
    redis_url: str, api_directory: Path, store: JobStore
) -> None:
    key = await a_key(store, "red")
    async with asking(create_app(settings(redis_url, api_directory, rate_limit=3), store), key) as http:
        assert [(await http.get("/metrics")).status_code for _ in range(5)] == [403, 403, 403, 429, 429]
    async with asking(create_app(settings(redis_url, api_directory, rate_limit=0), store), key) as http:
        answers = await asyncio.gather(*(http.get("/v1/jobs") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert "RateLimit" not in answers[0].headers


async def test_an_address_whose_keys_do_not_open_is_told_to_wait_but_a_good_key_comes_in_from_there(
    redis_url: str, api_directory: Path, store: JobStore
) -> None:
    app = create_app(settings(redis_url, api_directory, api_key=BOOTSTRAP), store)
    async with asking(app, "garbage") as http:
        for _ in range(FAILURES_A_MINUTE):
            assert (await http.get("/v1/jobs")).status_code == 401
        refused = await http.get("/v1/jobs")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert int(refused.headers["Retry-After"]) >= 1
        del http.headers["Authorization"]
        for _ in range(FAILURES_A_MINUTE + 1):
            assert (await http.get("/v1/jobs")).status_code == 401, "who sends none is told that one is asked for"
    async with asking(app, BOOTSTRAP) as http:
        assert (await http.get("/v1/jobs")).status_code == 200
    async with asking(app, "garbage", "192.0.2.2") as http:
        assert (await http.get("/v1/jobs")).status_code == 401


async def test_who_has_an_ipv6_network_has_one_address_and_who_comes_by_ipv4_has_its_own(
    redis_url: str, api_directory: Path, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbserve.api.auth.FAILURES_A_MINUTE", 2)
    app = create_app(settings(redis_url, api_directory, api_key=BOOTSTRAP), store)

    async def answered(address: str) -> int:
        async with asking(app, "garbage", address) as http:
            return (await http.get("/v1/jobs")).status_code

    same = ["2001:db8:0:7::1", "2001:db8:0:7:ffff::2", "2001:DB8:0:7::3"]
    assert [await answered(address) for address in same] == [401, 401, 429]
    assert await answered("2001:db8:0:8::1") == 401, "the next network"
    mapped = ["::ffff:192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"]
    assert [await answered(address) for address in mapped] == [401, 401, 429]
    assert await answered("::ffff:192.0.2.2") == 401, "as a socket for both kinds shows another IPv4 address"


async def test_those_who_send_no_key_lock_nobody_out(redis_url: str, api_directory: Path, store: JobStore) -> None:
    async with asking(create_app(settings(redis_url, api_directory, api_key=BOOTSTRAP), store), "garbage") as http:
        for _ in range(FAILURES_A_MINUTE):
            assert (await http.get("/v1/jobs", headers={"Authorization": ""})).status_code == 401
        assert (await http.get("/v1/jobs")).status_code == 401, "not counted: 429 is for keys that do not open"


@pytest.mark.parametrize(("trusted", "address"), [(None, "127.0.0.1"), ("127.0.0.1", "192.0.2.9")])
async def test_a_forwarded_address_is_believed_of_the_proxies_that_are_named_alone(
    tmp_path: Path, trusted: str | None, address: str
) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    environment = {"FORWARDED_ALLOW_IPS": trusted} if trusted else {}
    config = configured(app, settings("unix:///no", tmp_path), environment)  # type: ignore[arg-type]
    config.load()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(config.loaded_app), base_url="http://localhost") as http:
        await http.get("/", headers={"X-Forwarded-For": "192.0.2.9"})
    assert seen == [address]


async def test_with_redis_hung_nothing_is_counted_and_no_key_of_the_store_is_believed(
    stoppable_redis: DurableRedis, impatient_store: JobStore, tmp_path: Path
) -> None:
    app = create_app(settings(stoppable_redis.url, tmp_path, api_key=BOOTSTRAP, rate_limit=1), impatient_store)
    key = await a_key(impatient_store, "default")
    async with app.router.lifespan_context(app):
        with stoppable_redis.stopped():
            async with asking(app, BOOTSTRAP) as http:
                for _ in range(3):
                    assert (await http.get("/v1/architectures")).status_code == 200, "it needs no Redis"
                    assert (await http.get("/v1/jobs")).status_code == 503
            async with asking(app, key) as http:
                assert (await http.get("/v1/architectures")).status_code == 503, "it may have been revoked"
            async with asking(app, "garbage") as http:
                assert (await http.get("/v1/architectures")).status_code == 401


@pytest.mark.parametrize(
    ("counted", "current", "previous", "left", "expected"),
    [
        (1, 1, 0, 0.5, Rate(True, 9, 0)),
        (1, 10, 0, 0.5, Rate(True, 0, 1)),
        (1, 1, 8, 0.5, Rate(True, 5, 0)),
        (0, 5, 10, 0.5, Rate(False, 0, 1)),  # half of ten still count; less so with every second
        (0, 5, 20, 0.5, Rate(False, 0, 15)),  # until a quarter of them does
        (0, 10, 0, 0.5, Rate(False, 0, 36)),  # until the next minute, and a tenth of it
    ],
)
def test_the_last_minute_counts_for_less_as_this_one_goes_on(
    counted: int, current: int, previous: int, left: float, expected: Rate
) -> None:
    assert rate(10, counted, current, previous, left=left) == expected

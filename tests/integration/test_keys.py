"""API keys over REST and the command line, on a real Redis: made, shown once, rotated, revoked."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from dbserve.api import doorkeeper
from dbserve.api.app import create_app
from dbserve.cli import cli
from dbserve.contracts.key import ALL_PROJECTS, Scope
from dbserve.store import JobStore, keys
from dbserve.store.api_keys import MOST_KEYS
from tests.integration.serving import serving, settings, start, submitted
from tests.tenants import BOOTSTRAP, a_key, bearer

ADMIN = {"name": "ops", "scopes": ["admin", "read"], "project": "*"}


@pytest.fixture
async def http(redis_url: str, api_directory: Path, store: JobStore) -> AsyncIterator[httpx.AsyncClient]:
    """The API with a bootstrap key, which every request sends unless it says otherwise."""
    app = create_app(settings(redis_url, api_directory, api_key=BOOTSTRAP), store)
    async with client_of(app, BOOTSTRAP) as client:
        yield client


@pytest.fixture
async def redis(redis_url: str) -> Any:
    client = Redis.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


def client_of(app: Any, key: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=bearer(key))


async def status(http: httpx.AsyncClient, key: str, path: str = "/v1/jobs") -> int:
    return (await http.get(path, headers=bearer(key))).status_code


async def made(http: httpx.AsyncClient, key: str = BOOTSTRAP, **asked: Any) -> Any:
    answer = await http.post("/v1/keys", json={"name": "k", "scopes": ["read"]} | asked, headers=bearer(key))
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_key_is_shown_once_and_the_store_has_its_digest_alone(http: httpx.AsyncClient, redis: Redis) -> None:
    key = await made(http, name="ci", scopes=["submit", "read", "read"], project="red", expires_in_seconds=3600)
    assert key["key"].startswith(key["prefix"])
    assert (len(key["key"]), key["scopes"], key["project"]) == (4 + 12 + 1 + 64, ["read", "submit"], "red")
    assert await status(http, key["key"]) == 200
    secret = key["key"].rpartition("_")[2]
    for path in ("/v1/keys", f"/v1/keys/{key['id']}", "/v1/audit"):
        answer = await http.get(path)
        assert answer.status_code == 200
        assert secret not in answer.text
    stored = json.dumps([await redis.hgetall(keys.API_KEYS), await redis.hgetall(keys.API_KEYS_USED)])  # type: ignore[misc]
    assert key["id"] in stored
    assert secret not in stored
    streams = [await redis.xrange(name) async for name in redis.scan_iter("dbserve:audit:*")]
    assert secret not in json.dumps(streams)


async def test_a_rotated_secret_goes_on_for_its_grace_and_no_longer(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await made(http)
    rotated = (await http.post(f"/v1/keys/{key['id']}/rotate?grace_seconds=3600")).json()
    assert rotated["id"] == key["id"]
    assert rotated["previous_until"] is not None
    assert [await status(http, one["key"]) for one in (key, rotated)] == [200, 200]
    with monkeypatch.context() as later:
        now = time.time()
        later.setattr(doorkeeper.time, "time", lambda: now + 3601)
        assert [await status(http, one["key"]) for one in (key, rotated)] == [401, 200]
    third = (await http.post(f"/v1/keys/{key['id']}/rotate")).json()
    assert [await status(http, one["key"]) for one in (key, rotated, third)] == [401, 200, 200], "the last but one ends"
    fourth = (await http.post(f"/v1/keys/{key['id']}/rotate?grace_seconds=0")).json()
    assert [await status(http, one["key"]) for one in (third, fourth)] == [401, 200]


async def test_a_revoked_key_ends_here_at_once_and_elsewhere_within_seconds(
    http: httpx.AsyncClient, redis_url: str, api_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await made(http)
    other = create_app(settings(redis_url, api_directory, api_key=BOOTSTRAP))
    async with client_of(other, key["key"]) as elsewhere:
        assert (await elsewhere.get("/v1/jobs")).status_code == 200
        for _ in range(2):
            assert (await http.delete(f"/v1/keys/{key['id']}")).status_code == 204
        assert await status(http, key["key"]) == 401
        assert (await elsewhere.get("/v1/jobs")).status_code == 200, "it is remembered there"
        later = time.monotonic() + doorkeeper.CACHE_SECONDS
        monkeypatch.setattr(doorkeeper.time, "monotonic", lambda: later)
        assert (await elsewhere.get("/v1/jobs")).status_code == 401
    await other.state.services.opened.aclose()
    assert doorkeeper.CACHE_SECONDS <= 5.0
    gone = (await http.get(f"/v1/keys/{key['id']}")).json()
    assert gone["revoked_at"] is not None
    assert (await http.post(f"/v1/keys/{key['id']}/rotate")).json()["code"] == "key_ended"


async def test_a_stream_says_nothing_more_once_its_key_is_revoked(
    redis_url: str, api_directory: Path, store: JobStore
) -> None:
    job_id = await submitted(store)
    key = await a_key(store, "default")
    with serving(settings(redis_url, api_directory, api_key=BOOTSTRAP)) as url:
        async with httpx.AsyncClient(base_url=url, headers=bearer(key), timeout=30) as http:
            accept = {"Accept": "text/event-stream"}
            async with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=accept) as stream:
                pieces = stream.aiter_text()
                assert "job_created" in await anext(pieces)
                revoked = await http.delete(f"/v1/keys/{key[4:16]}", headers=bearer(BOOTSTRAP))
                assert revoked.status_code == 204
                await start(store, job_id, "block-0")
                rest = "".join([piece async for piece in pieces])
    assert "launched" not in rest


async def test_when_a_key_was_used_is_noted_once_a_minute(
    http: httpx.AsyncClient, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await made(http)
    assert key["last_used_at"] is None

    async def used() -> float:
        await status(http, key["key"])
        noted = await redis.hget(keys.API_KEYS_USED, key["id"])  # type: ignore[misc]
        return float(str(noted))

    assert abs(await used() - time.time()) < 60
    assert (await http.get(f"/v1/keys/{key['id']}")).json()["last_used_at"] is not None
    await redis.hset(keys.API_KEYS_USED, key["id"], str(time.time() - 30))  # type: ignore[misc]
    skipped = time.monotonic() + 2 * doorkeeper.CACHE_SECONDS
    monkeypatch.setattr(doorkeeper.time, "monotonic", lambda: skipped)
    assert await used() < time.time() - 25, "half a minute ago: not written again"
    await redis.hset(keys.API_KEYS_USED, key["id"], str(time.time() - 61))  # type: ignore[misc]
    monkeypatch.setattr(doorkeeper.time, "monotonic", lambda: skipped + 2 * doorkeeper.CACHE_SECONDS)
    assert await used() > time.time() - 25


async def test_no_key_makes_one_that_may_do_more_than_itself(http: httpx.AsyncClient, store: JobStore) -> None:
    admin = await a_key(store, "red", (Scope.ADMIN, Scope.READ))
    strong = await a_key(store, "red")

    async def refused(method: str, path: str, **asked: Any) -> str:
        body = {"name": "k", "scopes": ["read"]} | asked if asked else None
        answer = await http.request(method, path, json=body, headers=bearer(admin))
        assert answer.status_code == 403
        return answer.json()["code"]

    assert await refused("POST", "/v1/keys", scopes=["submit"]) == "forbidden_scope"
    assert await refused("POST", "/v1/keys", project="blue") == "forbidden_project"
    assert await refused("POST", "/v1/keys", project=ALL_PROJECTS) == "forbidden_project"
    assert await refused("POST", f"/v1/keys/{strong[4:16]}/rotate") == "forbidden_scope", "it would be told the secret"
    assert (await made(http, admin, scopes=["admin"]))["project"] == "red"


async def test_no_key_outlives_the_one_that_makes_it(http: httpx.AsyncClient, store: JobStore) -> None:
    ends = time.time() + 3600
    brief = await a_key(store, "red", expires_at=ends)
    kept = await a_key(store, "red", (Scope.READ,))
    assert await expiry(store, (await made(http, brief))["id"]) == ends, "it has its maker's"
    shorter = await made(http, brief, expires_in_seconds=60)
    assert (await expiry(store, shorter["id"]) or ends) < ends
    longer = {"name": "k", "scopes": ["read"], "expires_in_seconds": 7200}
    refused = await http.post("/v1/keys", json=longer, headers=bearer(brief))
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/expires_in_seconds")
    rotated = await http.post(f"/v1/keys/{kept[4:16]}/rotate", headers=bearer(brief))
    assert rotated.status_code == 403, "it would be told a secret that outlives its own"
    for own in (shorter["id"], brief[4:16]):
        assert (await http.post(f"/v1/keys/{own}/rotate", headers=bearer(brief))).status_code == 200


async def expiry(store: JobStore, key_id: str) -> float | None:
    key, _ = await store.api_keys.find(key_id)
    return key.expires_at


async def test_of_a_bootstrap_key_its_place_is_shown_and_nothing_to_guess_it_by(
    redis_url: str, api_directory: Path, store: JobStore
) -> None:
    second = "another-key-of-the-operator"
    app = create_app(settings(redis_url, api_directory, api_key=f"{BOOTSTRAP},{second}"), store)
    async with client_of(app, second) as http:
        assert (await made(http, BOOTSTRAP))["created_by"] == "bootstrap-1"
        assert (await made(http, second))["created_by"] == "bootstrap-2"
        assert (await http.get("/v1/me")).json()["key_id"] == "bootstrap-2"
        assert [one["key_id"] for one in (await http.get("/v1/audit")).json()["data"]] == ["bootstrap-2", "bootstrap-1"]


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["root"]}, "/scopes/0"),
        ({"project": "Red"}, "/project"),
        ({"project": "../x"}, "/project"),
        ({"expires_in_seconds": 0}, "/expires_in_seconds"),
        ({"secret": "mine"}, "/secret"),
        ({"name": ""}, "/name"),
    ],
)
async def test_a_key_that_cannot_be_made_is_pointed_at(
    http: httpx.AsyncClient, asked: dict[str, Any], pointer: str
) -> None:
    answer = await http.post("/v1/keys", json={"name": "k", "scopes": ["read"]} | asked)
    assert answer.status_code == 422
    assert pointer in [error["pointer"] for error in answer.json()["errors"]]


async def test_a_project_has_so_many_keys_at_most_and_ended_ones_do_not_count(
    http: httpx.AsyncClient, store: JobStore
) -> None:
    first = await made(http, project="red")
    await asyncio.gather(*(a_key(store, "red") for _ in range(MOST_KEYS - 1)))
    full = await http.post("/v1/keys", json={"name": "k", "scopes": ["read"], "project": "red"})
    assert (full.status_code, full.json()["code"]) == (409, "too_many_keys")
    await made(http, project="blue")
    await http.delete(f"/v1/keys/{first['id']}")
    await made(http, project="red")


async def test_keys_that_ended_long_ago_are_forgotten(http: httpx.AsyncClient, store: JobStore) -> None:
    ago = time.time() - 91 * 24 * 3600
    old, lately = await a_key(store, "red", revoked_at=ago), await a_key(store, "red", revoked_at=time.time() - 60)
    await made(http, project="blue")
    shown = {key["id"] for key in (await http.get("/v1/keys")).json()["data"]}
    assert old[4:16] not in shown
    assert lately[4:16] in shown


async def test_of_a_projects_ended_keys_the_last_are_kept_and_none_of_anothers_go(
    http: httpx.AsyncClient, store: JobStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbserve.store.api_keys.ENDED_KEPT", 3)
    now = time.time()
    others = [await a_key(store, "blue", revoked_at=now - 1000.0 - ago) for ago in range(3)]
    ended: dict[float, str] = {}
    for ago in (30.0, 50.0, 10.0, 40.0, 20.0):
        ended[ago] = (await a_key(store, "red", expires_at=now - ago))[4:16]
        await store.api_keys.used(ended[ago], at=now)
    live = await made(http, project="red")
    kept = {ended[ago] for ago in (10.0, 20.0, 30.0)}
    assert {found.key.id for found in await store.api_keys.of_project("red")} == {*kept, live["id"]}
    assert len(await store.api_keys.of_project("blue")) == len(others)
    used = await redis.hkeys(keys.API_KEYS_USED)  # type: ignore[misc]
    assert set(used) == kept


async def test_a_caller_learns_who_it_is(http: httpx.AsyncClient, store: JobStore) -> None:
    key = await a_key(store, "red", (Scope.READ,))
    me = (await http.get("/v1/me", headers=bearer(key))).json()
    assert me == {"key_id": key[4:16], "project": "red", "every_project": False, "scopes": ["read"]}
    assert (await http.get("/v1/me")).json()["every_project"] is True


# --- when keys are asked for


async def test_the_first_key_closes_a_service_that_asked_for_none(
    redis_url: str, api_directory: Path, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(redis_url, api_directory)
    app, other = create_app(chosen, store), create_app(chosen, JobStore.from_url(redis_url))
    async with client_of(app, "none") as http, client_of(other, "none") as elsewhere:
        assert (await elsewhere.get("/v1/jobs")).status_code == 200
        assert (await http.get("/v1/me")).json()["key_id"] is None
        weak = await http.post("/v1/keys", json={"name": "k", "scopes": ["read"]})
        assert weak.json()["errors"][0]["code"] == "first_key", "nobody could make another one"
        first = await http.post("/v1/keys", json=ADMIN)
        assert first.status_code == 201
        assert (await http.get("/v1/jobs")).status_code == 401
        skipped = time.monotonic() + doorkeeper.CACHE_SECONDS
        monkeypatch.setattr(doorkeeper.time, "monotonic", lambda: skipped)
        assert (await elsewhere.get("/v1/jobs")).status_code == 401
        key = first.json()["key"]
        assert await status(http, key) == 200
        assert (await http.delete(f"/v1/keys/{key[4:16]}", headers=bearer(key))).status_code == 204
        assert (await http.get("/v1/jobs")).status_code == 401, "it does not open again when all keys have ended"
    again = create_app(chosen, store)
    async with client_of(again, "none") as http:
        assert (await http.get("/v1/jobs")).status_code == 401
    await other.state.services.opened.aclose()


async def test_a_name_turned_to_this_machine_reads_and_changes_nothing_until_keys_are_asked_for(
    redis_url: str, api_directory: Path, store: JobStore
) -> None:
    app = create_app(settings(redis_url, api_directory), store)
    turned = {"Host": "evil.example.org"}
    async with client_of(app, "none") as http:
        for path in ("/v1/jobs", "/v1/me", "/v1/keys", "/metrics"):
            answer = await http.get(path, headers=turned)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden_foreign"), path
            assert "make a key" in answer.json()["detail"]
        assert (await http.post("/v1/keys", json=ADMIN, headers=turned)).status_code == 403
        assert (await http.post("/v1/jobs", headers={"Origin": "https://evil.example.org"})).status_code == 403
        for probe in ("/healthz", "/readyz"):
            assert (await http.get(probe, headers=turned)).status_code == 200
        assert (await store.audit.page(ALL_PROJECTS, limit=10))[0] == []
        key = (await http.post("/v1/keys", json=ADMIN)).json()["key"]
        assert (await http.get("/v1/jobs", headers=bearer(key) | turned)).status_code == 200, "a key vouches for it"


async def test_a_service_that_others_reach_asks_though_there_is_no_key(
    redis_url: str, api_directory: Path, store: JobStore
) -> None:
    app = create_app(settings(redis_url, api_directory, host="0.0.0.0"), store)
    async with client_of(app, "none") as http:
        assert (await http.get("/v1/jobs")).status_code == 401


async def test_prometheus_has_a_key_that_opens_nothing_else(
    redis_url: str, api_directory: Path, store: JobStore
) -> None:
    scraper = "the-key-of-the-scraper"
    app = create_app(settings(redis_url, api_directory, api_key=BOOTSTRAP, scrape_key=scraper), store)
    async with client_of(app, scraper) as http:
        assert (await http.get("/metrics")).status_code == 200
        for path in ("/v1/jobs", "/v1/me", "/v1/keys", "/v1/architectures"):
            assert (await http.get(path)).status_code == 403
        assert await status(http, await a_key(store, "red"), "/metrics") == 403, "it shows every project"
        assert await status(http, await a_key(store, ALL_PROJECTS, (Scope.READ,)), "/metrics") == 200


# --- on the command line


async def test_keys_on_the_command_line(redis_url: str, api_directory: Path, store: JobStore) -> None:
    with serving(settings(redis_url, api_directory, api_key=BOOTSTRAP)) as url:

        def said(*arguments: str, key: str = BOOTSTRAP, code: int = 0) -> str:
            ran = CliRunner().invoke(cli, [*arguments, "--url", url], env={"DBSERVE_API_KEY": key})
            assert ran.exit_code == code, ran.output
            return ran.output

        create = ("keys", "create", "ci", "--project", "red", "--scope", "read", "--expires-in", "30d", "--json")
        created = json.loads(await asyncio.to_thread(said, *create))
        assert (created["project"], created["scopes"]) == ("red", ["read"])
        mine = json.loads(await asyncio.to_thread(said, "keys", "whoami", key=created["key"]))
        assert mine["project"] == "red"
        await asyncio.to_thread(said, "jobs", key=created["key"])
        assert created["id"] in await asyncio.to_thread(said, "keys", "list")
        rotated = json.loads(await asyncio.to_thread(said, "keys", "rotate", created["id"], "--grace", "0s", "--json"))
        await asyncio.to_thread(said, "jobs", key=created["key"], code=2)
        await asyncio.to_thread(said, "jobs", key=rotated["key"])
        await asyncio.to_thread(said, "keys", "revoke", created["id"])
        shown = json.loads(await asyncio.to_thread(said, "keys", "show", created["id"]))
        assert shown["revoked_at"] is not None
        await asyncio.to_thread(said, "keys", "create", "x", "--expires-in", "soon", code=2)
        await asyncio.to_thread(said, "keys", "create", "x", "--scope", "root", code=2)
        audit = await asyncio.to_thread(said, "keys", "audit", "--json")
        assert "rotate" not in audit, "that is in the log of project red"
        await asyncio.to_thread(said, "keys", "revoke", created["id"], key="garbage", code=2)
        for option, entries in (("--strangers", 1), ("--deployment", 0)):
            listed = json.loads(await asyncio.to_thread(said, "keys", "audit", option, "--json"))
            assert len(listed["data"]) == entries, option

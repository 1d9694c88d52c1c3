"""Every request that changes something is noted, refused ones too, and no secret with it."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from dbserve.api.app import create_app
from dbserve.api.guards import LOOKING
from dbserve.api.scopes import CHANGES_NOTHING
from dbserve.contracts.audit import AuditEntry
from dbserve.contracts.key import ALL_PROJECTS, Scope
from dbserve.store import JobStore
from tests.chaos.durable_redis import DurableRedis
from tests.integration.serving import settings, submitted
from tests.tenants import BOOTSTRAP, ROUTES, UNKNOWN, a_key, ask, bearer, things_of

MUTATING = sorted(  # what deletes comes last
    (route for route in ROUTES if route[0] not in LOOKING and route not in CHANGES_NOTHING),
    key=lambda route: (route[0] == "DELETE", route),
)


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


async def entries(http: httpx.AsyncClient, key: str, query: str = "") -> list[dict[str, Any]]:
    answer = await http.get(f"/v1/audit{query}", headers=bearer(key))
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def test_every_route_that_changes_something_leaves_an_entry(
    http: httpx.AsyncClient, store: JobStore, tmp_path: Path
) -> None:
    red, key = await things_of(store, "red", tmp_path), await a_key(store, "red")
    assert len(MUTATING) > 10
    for route in MUTATING:
        answer = await ask(http, route, red._asdict(), key)
        newest = (await entries(http, key))[0]
        assert newest["request_id"] == answer.headers["x-request-id"], route
        assert (newest["method"], newest["route"], newest["status"]) == (*route, answer.status_code)
        assert (newest["key_id"], newest["address"]) == (key[4:16], "192.0.2.7")
        made = answer.headers.get("location")
        assert newest["object"] == (made or route[1].format(**red._asdict(), block="0"))
    before = len(await entries(http, key))
    for route in ROUTES:
        if route not in MUTATING and "live" not in route[1]:
            await ask(http, route, red._asdict(), key)
    assert len(await entries(http, key)) == before, "who only looks leaves none"


async def test_what_was_refused_is_noted_too(http: httpx.AsyncClient, store: JobStore) -> None:
    admin, reader = await a_key(store, "red"), await a_key(store, "red", (Scope.READ,))
    cancel = ("POST", "/v1/jobs/{job_id}/cancel")
    assert (await ask(http, cancel, UNKNOWN, admin)).status_code == 404
    assert (await ask(http, cancel, UNKNOWN, reader)).status_code == 403
    assert (await ask(http, ("POST", "/v1/keys"), {}, reader)).status_code == 403
    headers = {**bearer(admin), "Content-Type": "application/json"}
    assert (await http.post("/v1/jobs", content=b"[" * 100_000, headers=headers)).status_code == 422
    found = await entries(http, admin)
    assert [(one["status"], one["route"]) for one in found] == [
        (422, "/v1/jobs"),
        (403, "/v1/keys"),
        (403, cancel[1]),
        (404, cancel[1]),
    ]


async def test_attempts_with_a_bad_key_are_no_projects_and_are_shown_to_the_operator(
    http: httpx.AsyncClient, store: JobStore
) -> None:
    red = await a_key(store, "red")
    for key in ("garbage", red[:-1] + ("0" if red[-1] != "0" else "1")):
        assert (await ask(http, ("DELETE", "/v1/jobs/{job_id}"), UNKNOWN, key)).status_code == 401
    assert await entries(http, red) == []
    found = await entries(http, BOOTSTRAP, "?strangers=true")
    assert [(one["status"], one["key_id"], one["route"]) for one in found] == [(401, None, "/v1/jobs/{job_id}")] * 2
    for whose in ("deployment", "strangers"):
        refused = await http.get(f"/v1/audit?{whose}=true", headers=bearer(red))
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden_project")
    both = await http.get("/v1/audit?strangers=true&deployment=true", headers=bearer(BOOTSTRAP))
    assert (both.status_code, both.json()["errors"][0]["pointer"]) == (422, "/query/strangers")


async def test_strangers_of_any_number_of_addresses_wash_no_act_of_an_operator_away(
    app: FastAPI, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dbserve.store.audit.KEPT", 1)
    whole = {"name": "k", "scopes": ["read"], "project": ALL_PROJECTS}
    assert (await http.post("/v1/keys", json=whole, headers=bearer(BOOTSTRAP))).status_code == 201
    for number in range(250):  # Redis trims whole nodes of a hundred
        transport = httpx.ASGITransport(app, client=(f"2001:db8:0:{number:x}::1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as stranger:
            assert (await stranger.delete("/v1/jobs/x", headers=bearer("garbage"))).status_code == 401
    assert [one["status"] for one in await entries(http, BOOTSTRAP, "?deployment=true")] == [201]
    theirs = await entries(http, BOOTSTRAP, "?strangers=true&limit=1000")
    assert 0 < len(theirs) < 250, "theirs are trimmed"
    assert theirs[0]["address"] == "2001:db8:0:f9::1", "the whole address is told"


async def test_who_sends_no_key_writes_nothing_into_redis_and_is_in_the_process_log(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dbserve.audit"):
        statuses = [
            (await http.post("/nowhere")).status_code,
            (await http.delete("/v1/plans")).status_code,
            (await http.post("/v1/jobs", content=b"", headers={"Content-Encoding": "gzip"})).status_code,
            (await http.post("/v1/jobs", content=b" " * 2_000_000)).status_code,
            (await http.post("/v1/jobs")).status_code,
        ]
    assert statuses == [404, 405, 415, 413, 401]
    told = [record.__dict__["status"] for record in caplog.records if record.message == "audit"]
    assert told == statuses
    for whose in ("deployment", "strangers"):
        assert await entries(http, BOOTSTRAP, f"?{whose}=true") == []


async def test_an_operators_act_stands_in_the_log_of_the_project_that_it_touches(
    http: httpx.AsyncClient, store: JobStore
) -> None:
    red = await a_key(store, "red")
    operator = bearer(BOOTSTRAP)
    made = await http.post("/v1/keys", json={"name": "k", "scopes": ["read"], "project": "red"}, headers=operator)
    await http.delete(f"/v1/keys/{made.json()['id']}", headers=operator)
    await http.post("/v1/jobs/x/cancel", headers={**operator, "X-Dbserve-Project": "red"})
    whole = {"name": "k", "scopes": ["read"], "project": ALL_PROJECTS}
    await http.post("/v1/keys", json=whole, headers=operator)
    found = await entries(http, red)
    assert [(one["method"], one["status"]) for one in found] == [("POST", 404), ("DELETE", 204), ("POST", 201)]
    assert all(one["key_id"].startswith("bootstrap-") for one in found)
    assert [one["status"] for one in await entries(http, BOOTSTRAP, "?deployment=true")] == [201]


async def test_a_secret_that_somebody_took_for_an_id_is_not_repeated(http: httpx.AsyncClient, store: JobStore) -> None:
    red = await a_key(store, "red")
    for mistaken in (red, red.rpartition("_")[2]):
        await http.delete(f"/v1/keys/{mistaken}", headers=bearer(red))
    found = await entries(http, red)
    assert [one["object"] for one in found] == ["/v1/keys/?"] * 2


async def test_the_log_is_paged(http: httpx.AsyncClient, store: JobStore) -> None:
    red = await a_key(store, "red")
    for _ in range(5):
        await ask(http, ("POST", "/v1/jobs/{job_id}/pause"), UNKNOWN, red)
    headers = bearer(red)
    seen: list[str] = []
    asked: dict[str, Any] = {"limit": 2}
    while True:
        page = (await http.get("/v1/audit", params=asked, headers=headers)).json()
        seen += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
        asked["after"] = page["next"]
    assert len(seen) == len(set(seen)) == 5
    assert seen == sorted(seen, reverse=True)


async def test_of_a_full_log_the_oldest_entries_go(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whole nodes of Redis' stream, which hold a hundred entries at most."""
    monkeypatch.setattr("dbserve.store.audit.KEPT", 100)
    for number in range(500):
        entry = AuditEntry(at=1.0, method="POST", route="/v1/jobs", status=202, request_id=str(number))
        await store.audit.note("red", entry)
    found, _ = await store.audit.page("red", limit=500)
    assert 100 <= len(found) < 200
    assert [int(entry.request_id) for _, entry in found] == list(range(499, 499 - len(found), -1))


async def test_an_entry_is_a_line_of_the_log_whatever_becomes_of_redis(
    stoppable_redis: DurableRedis, impatient_store: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(settings(stoppable_redis.url, tmp_path, api_key=BOOTSTRAP), impatient_store)
    job_id = await submitted(impatient_store)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http,
    ):
        with stoppable_redis.stopped(), caplog.at_level(logging.INFO, "dbserve.audit"):
            answer = await ask(http, ("DELETE", "/v1/jobs/{job_id}"), {"job_id": job_id}, BOOTSTRAP)
            assert answer.status_code == 503
    [line] = [record for record in caplog.records if record.message == "audit"]
    assert (line.__dict__["route"], line.__dict__["status"]) == ("/v1/jobs/{job_id}", 503)
    assert line.__dict__["key_id"].startswith("bootstrap-")
    assert BOOTSTRAP not in str(line.__dict__)

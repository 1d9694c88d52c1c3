"""Every route with every kind of key, on a real Redis: who may not is refused, and nobody learns of another project."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from dbserve.api.app import create_app
from dbserve.api.auth import permit
from dbserve.api.scopes import NEEDS, Need
from dbserve.contracts.key import ALL_PROJECTS, Scope
from dbserve.store import JobStore
from tests.integration.serving import settings, submitted
from tests.jobs import small_spec
from tests.tenants import BODIES, BOOTSTRAP, ROUTES, UNKNOWN, Things, a_key, ask, bearer, things_of

CLOSED = sorted(  # what deletes comes last
    (route for route in ROUTES if NEEDS.get(route) is not Need.NOTHING), key=lambda route: (route[0] == "DELETE", route)
)
OF_SOMETHING = [route for route in CLOSED if any(f"{{{name}}}" in route[1] for name in UNKNOWN)]


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.fixture
async def red(store: JobStore, tmp_path: Path) -> Things:
    return await things_of(store, "red", tmp_path)


@pytest.fixture
async def blue(store: JobStore, tmp_path: Path) -> Things:
    return await things_of(store, "blue", tmp_path)


def test_the_table_of_scopes_has_every_route_and_no_other() -> None:
    assert set(ROUTES) == set(NEEDS)


@pytest.mark.parametrize("route", CLOSED, ids=" ".join)
def test_every_route_that_needs_a_key_asks_for_it_before_anything_else(route: tuple[str, str]) -> None:
    assert ROUTES[route].dependant.dependencies[0].call is permit


async def test_nobody_comes_in_without_a_key_that_opens(app: FastAPI, store: JobStore, red: Things) -> None:
    good = await a_key(store, "red")
    revoked = await a_key(store, "red", revoked_at=time.time() - 1)
    expired = await a_key(store, "red", expires_at=time.time() - 1)
    unknown = good[:4] + "0" * 12 + good[16:]
    keys = {
        "none": None,
        "garbage": "garbage",
        "another secret": good[:-64] + "0" * 64,
        "an unknown id": unknown,
        "revoked": revoked,
        "expired": expired,
        "its id alone": good[:-65],
    }
    for number, route in enumerate(CLOSED):  # each from an address of its own, for there is a limit
        transport = httpx.ASGITransport(app, client=(f"10.0.0.{number}", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            for what, key in keys.items():
                answer = await ask(http, route, red._asdict(), key)
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), (route, what)
                assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_key_does_what_its_scopes_say_and_nothing_else(
    http: httpx.AsyncClient, store: JobStore, red: Things
) -> None:
    alone = {scope: await a_key(store, "red", (scope,)) for scope in Scope}
    every, deployment = await a_key(store, "red"), await a_key(store, ALL_PROJECTS, (Scope.READ,))
    for route in CLOSED:
        for scope, key in alone.items():
            if NEEDS[route].value not in (scope.value, Need.KEY.value):
                answer = await ask(http, route, red._asdict(), key)
                assert (answer.status_code, answer.json()["code"]) == (403, "forbidden_scope"), (route, scope)
        answer = await ask(http, route, red._asdict(), deployment if NEEDS[route] is Need.SCRAPE else every)
        assert answer.status_code < 300 or answer.status_code == 409, (route, answer.text)


async def test_what_is_another_projects_is_not_there(
    http: httpx.AsyncClient, store: JobStore, red: Things, blue: Things
) -> None:
    key = await a_key(store, "blue")
    for route in OF_SOMETHING:
        theirs = await ask(http, route, red._asdict(), key)
        nothing = await ask(http, route, UNKNOWN, key)
        assert theirs.status_code == 404, route
        assert said(theirs, red._asdict()) == said(nothing, UNKNOWN), f"the very same answer: {route}"
        streamed = await ask(http, route, red._asdict(), key, Accept="text/event-stream")
        assert streamed.status_code == 404, route
        admin = await ask(http, route, red._asdict(), BOOTSTRAP, **{"X-Dbserve-Project": "blue"})
        assert admin.status_code == 404, f"who names a project acts in it alone: {route}"
        ours = await ask(http, route, blue._asdict(), key)
        assert ours.status_code != 404, route


def said(answer: httpx.Response, ids: dict[str, str]) -> dict[str, Any]:
    """A problem without what is the request's own."""
    text = answer.text
    for name, value in ids.items():
        text = text.replace(value, name.removesuffix("_id").replace("model", "job"))
    problem = httpx.Response(200, text=text).json()
    del problem["request_id"]
    problem["headers"] = {name for name in answer.headers if name not in ("date", "content-length")}
    return problem


async def test_lists_show_the_projects_own_and_cursors_lead_nowhere_else(
    http: httpx.AsyncClient, store: JobStore, red: Things, blue: Things
) -> None:
    blues = [blue.job_id]
    for project in ("red", "blue") * 3:
        job_id = await submitted(store, project=project)
        blues += [job_id] if project == "blue" else []
    key = bearer(await a_key(store, "blue"))
    of_red = bearer(await a_key(store, "red"))
    seen: list[str] = []
    after = (await http.get("/v1/jobs?limit=1", headers=of_red)).json()["next"]  # red's cursor, in blue's hands
    while after:
        page = (await http.get("/v1/jobs", params={"limit": 1, "after": after}, headers=key)).json()
        seen += [job["id"] for job in page["data"]]
        after = page["next"]
    assert seen == [job_id for job_id in sorted(blues, reverse=True) if job_id in seen]
    assert [job["id"] for job in (await http.get("/v1/jobs", headers=key)).json()["data"]] == sorted(blues)[::-1]
    assert [model["id"] for model in (await http.get("/v1/models", headers=key)).json()["data"]] == [blue.model_id]
    assert [hook["id"] for hook in (await http.get("/v1/webhooks", headers=key)).json()["data"]] == [blue.webhook_id]
    assert {one["project"] for one in (await http.get("/v1/keys", headers=key)).json()["data"]} == {"blue"}


async def test_what_is_made_belongs_to_the_project_of_its_key(http: httpx.AsyncClient, store: JobStore) -> None:
    blue = await a_key(store, "blue")
    headers = bearer(blue)
    job = await http.post("/v1/jobs", json=BODIES["POST", "/v1/jobs"], headers=headers)
    hook = await http.post("/v1/webhooks", json=BODIES["POST", "/v1/webhooks"], headers=headers)
    assert (job.status_code, hook.status_code) == (202, 201)
    assert (await store.outline(job.json()["id"])).record.project == "blue"
    assert (await store.webhooks.get(hook.json()["id"])).project == "blue"
    assert (await store.list_jobs(limit=10))[0] == [], "nothing in the default project"


async def test_the_same_idempotency_key_makes_a_job_in_each_project(http: httpx.AsyncClient, store: JobStore) -> None:
    made: list[str] = []
    for project in ("red", "blue", "red"):
        headers = {**bearer(await a_key(store, project)), "Idempotency-Key": "k"}
        spec = small_spec(name=project).model_dump(mode="json")
        answer = await http.post("/v1/jobs", json=spec, headers=headers)
        assert answer.status_code == 202, answer.text
        made.append(answer.json()["id"])
    assert made[0] == made[2] != made[1]


async def test_a_quota_is_the_projects_however_many_keys_it_has(
    redis_url: str, api_directory: Path, store: JobStore
) -> None:
    app = create_app(settings(redis_url, api_directory, max_jobs_per_key=1), store)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        statuses: list[int] = []
        for project in ("red", "red", "blue"):
            headers = bearer(await a_key(store, project))
            spec = BODIES["POST", "/v1/jobs"]
            statuses.append((await http.post("/v1/jobs", json=spec, headers=headers)).status_code)
    assert statuses == [202, 429, 202]


async def test_webhooks_are_told_of_their_own_project_alone(store: JobStore, red: Things, blue: Things) -> None:
    job_id = await submitted(store, project="red")
    await store.wishes.cancel(job_id)
    while await store.webhooks.dispatch():
        pass
    assert (await store.webhooks.attempts(red.webhook_id))[0] > 0
    assert (await store.webhooks.attempts(blue.webhook_id))[0] == 0


async def test_a_key_of_the_deployment_sees_the_project_it_names(
    http: httpx.AsyncClient, store: JobStore, red: Things
) -> None:
    async def jobs(key: str, **headers: str) -> Any:
        answer = await http.get("/v1/jobs", headers={**bearer(key), **headers})
        return answer.json().get("code") or [job["id"] for job in answer.json()["data"]]

    for key in (BOOTSTRAP, await a_key(store, ALL_PROJECTS, (Scope.READ,))):
        assert await jobs(key) == [], "the default project"
        assert await jobs(key, **{"X-Dbserve-Project": "red"}) == [red.job_id]
        assert await jobs(key, **{"X-Dbserve-Project": "No such name"}) == "invalid_parameter"
    blue = await a_key(store, "blue")
    assert await jobs(blue, **{"X-Dbserve-Project": "blue"}) == []
    for other in ("red", "nowhere", "*"):
        assert await jobs(blue, **{"X-Dbserve-Project": other}) == "forbidden_project"


async def test_who_may_only_look_is_not_told_how_to_write_to_a_receiver(
    http: httpx.AsyncClient, store: JobStore, red: Things
) -> None:
    shown: list[str] = []
    for scopes in ((Scope.READ,), (Scope.READ, Scope.SUBMIT)):
        headers = bearer(await a_key(store, "red", scopes))
        one = (await http.get(f"/v1/webhooks/{red.webhook_id}", headers=headers)).json()["url"]
        [listed] = (await http.get("/v1/webhooks", headers=headers)).json()["data"]
        assert listed["url"] == one
        shown.append(one)
    host = shown[1].split("/")[2]
    assert shown[0] == f"{shown[1].split(':')[0]}://{host}/..."
    assert shown[1] != shown[0]

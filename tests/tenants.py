"""Two projects on one API: their keys, and one of everything that belongs to a project."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from fastapi import FastAPI

from dbserve.api import credentials
from dbserve.api.app import create_app
from dbserve.contracts.key import ApiKey, Scope
from dbserve.contracts.snapshot import ModelRecord
from dbserve.contracts.status import Run
from dbserve.contracts.webhook import Topic, Webhook
from dbserve.settings import read_settings
from dbserve.store import JobStore
from tests.integration.serving import finish, submitted
from tests.jobs import small_spec
from tests.unit.test_report_page import report

EVERY = tuple(Scope)
BOOTSTRAP = "a-bootstrap-key-of-the-operator"
BODIES: dict[tuple[str, str], Any] = {  # what is sent to routes that read a body
    ("POST", "/v1/plans"): small_spec().model_dump(mode="json"),
    ("POST", "/v1/jobs"): small_spec().model_dump(mode="json"),
    ("POST", "/v1/webhooks"): {"url": "http://127.0.0.1:9/hook"},
    ("POST", "/v1/keys"): {"name": "another", "scopes": ["read"]},
}
UNKNOWN = {  # ids of the right shape that nothing has
    "job_id": "j0000000000000000000000",
    "model_id": "j0000000000000000000000",
    "webhook_id": "w0000000000000000",
    "key_id": "000000000000",
}
OTHERS = {"block": "0", "kind": "vit", "name": "app.js"}  # what else stands in paths


def routes_of(app: FastAPI) -> Iterator[tuple[str, str, Any]]:
    """(method, path, route) of everything the application answers."""
    for route in app.routes:
        included: Any = getattr(route, "effective_route_contexts", None)
        found: list[Any] = [route] if included is None else list(included())
        for one in found:
            for method in sorted(one.methods):
                yield method, one.path, one


ROUTES = {(method, path): route for method, path, route in routes_of(create_app(read_settings(redis_url="unix:///no")))}


def bearer(key: str) -> dict[str, str]:
    """What a request says whose key this is."""
    return {"Authorization": f"Bearer {key}"}


async def ask(
    http: httpx.AsyncClient, route: tuple[str, str], ids: dict[str, str], key: str | None, **headers: str
) -> httpx.Response:
    """The request that the route is made for, with a key."""
    method, path = route
    sent = bearer(key) if key is not None else {}
    return await http.request(method, path.format(**ids, **OTHERS), json=BODIES.get(route), headers=sent | headers)


async def a_key(store: JobStore, project: str, scopes: tuple[Scope, ...] = EVERY, **more: Any) -> str:
    """The bearer token of a new key in the store."""
    secret, key_id = credentials.new_secret(), credentials.new_id()
    key = ApiKey(
        id=key_id,
        name=project,
        project=project,
        scopes=scopes,
        sha256=credentials.digest(secret),
        created_at=time.time(),
        **more,
    )
    await store.api_keys.add(key)
    return credentials.prefix(key_id) + secret


class Things(NamedTuple):
    """Ids of one of everything."""

    job_id: str
    model_id: str
    webhook_id: str
    key_id: str


async def things_of(store: JobStore, project: str, artifacts: Path) -> Things:
    """A job that succeeded, with report and model; a webhook; a key."""
    job_id = await submitted(store, project=project)
    await finish(store, job_id)
    tasks = (await store.outline(job_id)).tasks
    path = f"models/{job_id}"
    (artifacts / path).mkdir(parents=True)
    (artifacts / path / "model.json").write_text("{}")
    model = ModelRecord(
        id=job_id,
        job_id=job_id,
        name=f"model of {project}",
        version=1,
        created_at=1.0,
        contract_hash="c",
        path=path,
        manifest={"of": project},
    )
    await store.results.save_model(tasks["assembly"].run, model)
    await store.results.save_report(Run.model_validate(tasks["evaluation"].run), report())
    webhook = Webhook(
        id=f"w{job_id[-16:]}",
        project=project,
        url="http://127.0.0.1:9/hook",
        events=tuple(Topic),
        secret="whsec_" + "a" * 32,
        created_at=time.time(),
    )
    await store.webhooks.add(webhook)
    token = await a_key(store, project)
    parsed = credentials.parsed(token)
    assert parsed is not None
    return Things(job_id, job_id, webhook.id, parsed[0])

"""Names that people try, on a running API: of data in jobs, and of things in paths. None leads anywhere."""

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from dbserve.api.app import create_app
from dbserve.artefacts import open_artefacts
from dbserve.contracts.snapshot import ModelRecord
from dbserve.store import JobStore, keys
from dbserve.store.codec import packed
from tests.integration.serving import serving, settings
from tests.jobs import small_spec
from tests.shards import pixels, write_shard
from tests.tenants import BOOTSTRAP, bearer

SECRET = "what nobody may read"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file beside the artefact root, and one below it that is no model's."""
    (tmp_path / "artifacts/models").mkdir(parents=True)
    (tmp_path / "artifacts/secret.txt").write_text(SECRET)
    (tmp_path / "secret.txt").write_text(SECRET)
    return tmp_path / "secret.txt"


@pytest.fixture
def address(redis_url: str, tmp_path: Path, secret: Path) -> Iterator[tuple[str, int]]:
    with serving(settings(redis_url, tmp_path)) as url:
        parts = urlsplit(url)
        yield str(parts.hostname), int(parts.port or 0)


NAMES = [
    *("..", "../secret.txt", "../../secret.txt", "....//secret.txt", "..%2fsecret.txt", "..%252fsecret.txt", "%2e%2e"),
    *("%2e%2e%2fsecret.txt", "..\\secret.txt", "..%5csecret.txt", "%c0%ae%c0%ae/secret.txt", "..;/secret.txt", "..%00"),
    *(
        "j1%00",
        "j1%0a",
        "j1%0d%0aX:1",
        ".",
        "%2e",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "//etc/passwd",
        "file:%2f%2f%2fetc",
    ),
    *(
        "j*",
        "j?",
        "[a-z]",
        "j1:tasks",
        "j1%3Atasks",
        "*",
        "%2a",
        "jobs",
        "dbserve:jobs",
        "%e2%80%ae",
        "%ef%bc%8e%ef%bc%8e",
    ),
    *("j" * 65, "j" * 5000, "%ff%fe", "1%20OR%201=1", "{{7*7}}", "$(id)", "`id`", "-rf", "~", "~root"),
]
ROUTES = [
    *("/v1/jobs/{}", "/v1/jobs/{}/events", "/v1/jobs/{}/logs", "/v1/jobs/{}/report", "/v1/jobs/{}/blocks/0"),
    *(
        "/v1/jobs/{}/blocks",
        "/v1/jobs/{}/checkpoints",
        "/v1/jobs/{}/metrics",
        "/v1/models/{}",
        "/v1/models/{}/download",
    ),
    *("/v1/webhooks/{}", "/v1/keys/{}", "/v1/architectures/{}", "/assets/{}", "/v1/jobs/j1/blocks/{}", "/{}"),
]


DELETED = ("/v1/jobs/{}", "/v1/webhooks/{}", "/v1/keys/{}")


@pytest.mark.parametrize("route", ROUTES)
def test_no_name_in_a_path_leads_out(address: tuple[str, int], route: str) -> None:
    """Asked as they are: a client of higher manners would tidy them up first."""
    for name in NAMES:
        for method in ("GET", "DELETE") if route in DELETED else ("GET",):
            status, body = _raw(address, method, route.format(name))
            assert 300 <= status < 500 or (status == 200 and b"<!doctype html>" in body.lower()), (method, name, status)
            assert SECRET.encode() not in body, name
            assert b"root:" not in body, name


def _raw(address: tuple[str, int], method: str, path: str) -> tuple[int, bytes]:
    """What is answered to a path that is sent as it is. A request that is not understood may be cut off: 400."""
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1")
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(request)
        answer = http.client.HTTPResponse(connection, method=method)
        try:
            answer.begin()
            return answer.status, answer.read()
        except http.client.BadStatusLine:
            return 400, b""


@pytest.mark.parametrize(
    "path", ["..", "../secret.txt", "/etc", "models/../..", "models/x/../../..", "models/link", ".", ""]
)
async def test_a_record_that_a_worker_forged_leads_to_no_file_outside(
    redis_url: str, tmp_path: Path, store: JobStore, secret: Path, path: str
) -> None:
    """Workers write what a model's path is."""
    (tmp_path / "artifacts/models/link").symlink_to(tmp_path)
    chosen = settings(redis_url, tmp_path)
    (tmp_path / "artifacts/models/m1").mkdir()
    record = ModelRecord(
        id="m1", job_id="j1", name="m", version=1, created_at=0.0, contract_hash="h", path=path, manifest={}
    )
    redis = store._redis  # pyright: ignore[reportPrivateUsage]
    await redis.set(keys.model("m1"), packed(record))
    transport = httpx.ASGITransport(create_app(chosen, store), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        answer = await http.get("/v1/models/m1/download")
    await redis.delete(keys.model("m1"))
    assert SECRET.encode() not in answer.content
    assert answer.status_code >= 400 or path == "."


async def test_links_in_a_model_are_not_followed(tmp_path: Path, secret: Path) -> None:
    model = tmp_path / "artifacts/models/m1"
    model.mkdir()
    (model / "model.json").write_text("{}")
    (model / "secret.txt").symlink_to(secret)
    (model / "up").symlink_to(tmp_path)
    found = await asyncio.to_thread(open_artefacts(str(tmp_path / "artifacts")).files, "models/m1")
    assert [file.name for file in found] == ["model.json"]


# --- data


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shard(tmp_path / "sets/a/train-0.parquet", pixels(400, (8, 8, 1)), [0, 1, 2, 0] * 100)
    write_shard(tmp_path / "other/train-0.parquet", pixels(400, (8, 8, 1)), [0, 1, 2, 0] * 100)
    return tmp_path / "sets"


@pytest.fixture
def ask(redis_url: str, tmp_path: Path, store: JobStore) -> Any:
    """Plans and jobs of a data uri, on an API with such settings: the statuses, and the first fault."""

    async def asked(uri: str, **changes: Any) -> tuple[int, int, dict[str, str]]:
        app = create_app(settings(redis_url, tmp_path, **changes), store)
        headers = bearer(changes["api_key"]) if "api_key" in changes else {}
        job = small_spec(data={"uri": uri}).model_dump(mode="json")
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers
        ) as client:
            plan, made = await client.post("/v1/plans", json=job), await client.post("/v1/jobs", json=job)
        return plan.status_code, made.status_code, next(iter(plan.json().get("errors", [])), {})

    return asked


async def test_at_home_a_job_names_whatever_this_machines_user_could_open(ask: Any, shards: Path) -> None:
    assert (await ask(str(shards / "a")))[:2] == (200, 202)
    assert (await ask("builtin:digits"))[:2] == (200, 202)


@pytest.mark.parametrize("doors", [{"api_key": BOOTSTRAP}, {"api_key": BOOTSTRAP, "host": "0.0.0.0"}])
async def test_where_a_key_is_asked_for_only_builtin_data_are_named_until_others_are_listed(
    ask: Any, shards: Path, doors: dict[str, str]
) -> None:
    assert (await ask("builtin:digits", **doors))[:2] == (200, 202)
    plan, made, fault = await ask(str(shards / "a"), **doors)
    assert (plan, made, fault["pointer"]) == (422, 422, "/data/uri")
    assert "DBSERVE_DATA_ALLOW" in fault["message"]
    listed = {"data_allow": str(shards), **doors}
    assert (await ask(str(shards / "a"), **listed))[:2] == (200, 202)
    assert (await ask(str(shards / "../other"), **listed))[:2] == (422, 422)
    assert (await ask("builtin:digits", **listed))[:2] == (200, 202)


@pytest.mark.parametrize(
    "uri",
    [
        *("/etc", "/proc/self/environ", "file:///etc", "s3://bucket/a", "http://169.254.169.254/latest/meta-data/"),
        *("http://127.0.0.1:6379/", "simplecache::http://10.0.0.1/", "gopher://127.0.0.1:6379/_FLUSHALL", "a\0b"),
        *(
            "http://user:secret-word@10.0.0.1/",
            "builtin:../../etc/passwd",
            "builtin:/etc/passwd",
            "reference:///etc/passwd",
        ),
    ],
)
async def test_a_job_that_names_what_is_not_listed_is_refused_at_its_key(ask: Any, shards: Path, uri: str) -> None:
    plan, made, fault = await ask(uri, api_key=BOOTSTRAP, data_allow=str(shards))
    assert (plan, made, fault["pointer"]) == (422, 422, "/data/uri")
    assert "secret-word" not in json.dumps(fault)

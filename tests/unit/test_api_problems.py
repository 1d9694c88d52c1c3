"""Every error of the API leaves as problem+json. No Redis: its address leads nowhere."""

import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from dbserve.api.app import create_app
from dbserve.api.envelope import MAX_BODY_BYTES
from dbserve.settings import Settings, read_settings
from dbserve.store.ownership import Ownership
from tests.jobs import small_spec

JSON = {"Content-Type": "application/json"}
KEY = "a-key-that-nobody-guesses"


def settings(tmp_path: Path, **changes: Any) -> Settings:
    return read_settings(
        redis_url=f"unix://{tmp_path}/no.sock",
        artifacts=tmp_path / "artifacts",
        cache_dir=tmp_path / "cache",
        **changes,
    )


def calling(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers)


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """With a key: without one it would have to ask Redis first whether there are any."""
    return create_app(settings(tmp_path, api_key=KEY))


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(app, Authorization=f"Bearer {KEY}") as client:
        yield client


def check(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    problem = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["type"] == f"urn:dbserve:problem:{code}"
    assert problem["title"]
    assert problem["detail"]
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


async def test_an_unknown_path_is_a_problem(http: httpx.AsyncClient) -> None:
    check(await http.get("/v2/jobs"), 404, "not_found")


async def test_a_wrong_method_is_a_problem_and_says_which_are_right(http: httpx.AsyncClient) -> None:
    response = await http.put("/v1/plans")
    check(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    several = await http.put("/v1/jobs")
    assert several.headers["allow"] == "GET, POST"  # of two routes


async def test_a_body_of_another_kind_is_refused(http: httpx.AsyncClient) -> None:
    for headers in ({"Content-Type": "text/plain"}, {}):
        check(await http.post("/v1/jobs", content=b"{}", headers=headers), 415, "unsupported_media_type")


async def test_a_large_body_is_refused_whether_or_not_it_says_its_length(http: httpx.AsyncClient) -> None:
    async def unannounced() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 50_000 + 1):
            yield b" " * 50_000

    check(await http.post("/v1/jobs", content=b" " * (MAX_BODY_BYTES + 1), headers=JSON), 413, "body_too_large")
    check(await http.post("/v1/jobs", content=unannounced(), headers=JSON), 413, "body_too_large")
    check(await http.post("/v1/jobs", content=b" " * MAX_BODY_BYTES, headers=JSON), 422, "spec_invalid")


@pytest.mark.parametrize(
    ("path", "places"),
    [
        ("/v1/jobs?limit=0&stauts=running", ["/query/limit", "/query/stauts"]),
        ("/v1/jobs?status=odd", ["/query/status"]),
        ("/v1/jobs?label=team", ["/query/label/0"]),
        ("/v1/jobs?after=%F0%9F%92%A9", ["/query/after"]),
        ("/v1/jobs/j1/blocks/first", ["/path/block"]),
        ("/v1/jobs/j1/logs?tail=-1", ["/query/tail"]),
        ("/v1/jobs/j1/report?format=pdf", ["/query/format"]),
        ("/v1/models?limit=many", ["/query/limit"]),
    ],
)
async def test_a_wrong_parameter_is_pointed_at_and_not_echoed(
    http: httpx.AsyncClient, path: str, places: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ours(*_: object) -> str:
        return "default"

    monkeypatch.setattr(Ownership, "of_job", ours)
    response = await http.get(path)
    assert response.status_code == 422
    assert [error["pointer"] for error in response.json()["errors"]] == places
    assert "many" not in response.text.replace("/query", "")


async def test_a_wrong_idempotency_key_is_pointed_at(http: httpx.AsyncClient) -> None:
    headers = {**JSON, "Idempotency-Key": "k" * 256}
    response = await http.post("/v1/jobs", content=small_spec().model_dump_json(), headers=headers)
    assert "/header/idempotency-key" in json.dumps(check(response, 422, "invalid_parameter")["errors"]).lower()


@pytest.mark.parametrize("job_id", ["a:tasks", "..", "j1%2Fx", "%00", "x" * 65])
async def test_an_id_of_a_shape_that_is_never_given_out_reaches_no_storage_key(
    http: httpx.AsyncClient, job_id: str
) -> None:
    assert (await http.get(f"/v1/jobs/{job_id}")).status_code == 404
    assert (await http.get(f"/v1/models/{job_id}/download")).status_code == 404


async def test_without_redis_the_process_is_alive_not_ready_and_says_503_at_once(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json()["status"] == "ok"
    ready = await http.get("/readyz")
    assert ready.status_code == 503
    assert set(ready.json()["missing"]) == {"redis", "artifacts"}
    for path in ("/v1/jobs", "/v1/jobs/j1", "/v1/jobs/j1/events", "/v1/models"):
        response = await http.get(path)
        check(response, 503, "store_unavailable")
        assert int(response.headers["retry-after"]) > 0
    assert "dbserve_redis_up 0.0" in (await http.get("/metrics")).text


async def test_the_application_starts_without_redis(app: FastAPI, tmp_path: Path) -> None:
    async with app.router.lifespan_context(app):
        assert (tmp_path / "artifacts").is_dir()


async def test_a_mistake_of_ours_is_logged_under_the_id_it_is_answered_with(
    app: FastAPI, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("the secret detail")

    with caplog.at_level(logging.ERROR):
        response = await http.get("/broken")
    problem = check(response, 500, "internal_error")
    assert "secret" not in response.text
    assert problem["request_id"] in caplog.text
    assert "the secret detail" in caplog.text


@pytest.mark.parametrize(("given", "kept"), [("abc-123", True), ("x" * 129, False), ("a b\x7f", False)])
async def test_a_request_id_comes_back_when_it_is_sane(http: httpx.AsyncClient, given: str, kept: bool) -> None:
    answered = (await http.get("/healthz", headers={"X-Request-ID": given})).headers["x-request-id"]
    assert (answered == given) is kept
    assert answered


async def test_with_a_key_set_all_but_health_asks_for_it(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path, api_key=KEY))
    async with calling(app) as nobody:
        for path in ("/v1/jobs", "/v1/jobs?limit=zero", "/v1/architectures", "/v1/report-schema", "/metrics"):
            response = await nobody.get(path)
            check(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await nobody.get("/healthz")).status_code == 200
        assert (await nobody.get("/readyz")).status_code == 503
        for wrong in (b"Bearer wrong", b"Bearer \xfc", b"Basic " + KEY.encode(), b"Bearer"):
            assert (await nobody.get("/v1/architectures", headers=[(b"Authorization", wrong)])).status_code == 401
    async with calling(app, Authorization=f"Bearer {KEY}") as friend:
        assert (await friend.get("/v1/architectures")).status_code == 200
        assert (await friend.get("/metrics")).status_code == 200


async def test_requests_are_counted_by_the_template_of_their_route(http: httpx.AsyncClient) -> None:
    for path in ("/v1/jobs/j1", "/v1/jobs/j2", "/v1/jobs/j1/blocks/3", "/nowhere", "/elsewhere"):
        await http.get(path)
    text = (await http.get("/metrics")).text
    assert 'http_requests_total{code="503",method="GET",route="/v1/jobs/{job_id}"} 2.0' in text
    assert 'http_requests_total{code="503",method="GET",route="/v1/jobs/{job_id}/blocks/{block}"} 1.0' in text
    assert 'http_requests_total{code="404",method="GET",route="unmatched"} 2.0' in text
    assert 'http_request_duration_seconds_count{code="404",method="GET",route="unmatched"} 2.0' in text


async def test_an_architecture_shows_its_options_and_their_defaults(http: httpx.AsyncClient) -> None:
    kinds = [item["kind"] for item in (await http.get("/v1/architectures")).json()["data"]]
    assert "vit" in kinds
    shown = (await http.get("/v1/architectures/vit")).json()
    assert shown["defaults"]["depth"] == shown["options_schema"]["properties"]["depth"]["default"]
    check(await http.get("/v1/architectures/perceptron"), 404, "architecture_not_found")


async def test_the_document_says_what_routes_read_and_answer(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    submit = document["paths"]["/v1/jobs"]["post"]
    read = submit["requestBody"]["content"]
    assert set(read) == {"application/json", "application/yaml"}
    assert read["application/json"]["schema"]["$ref"].endswith("/JobSpec-Input")
    assert {"202", "413", "415", "422", "503"} <= set(submit["responses"])
    assert "application/problem+json" in submit["responses"]["422"]["content"]

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set[str]()
            return own.union(*map(references, node.values()))
        return set[str]().union(*map(references, node)) if isinstance(node, list) else set()

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known


def test_the_api_imports_neither_torch_nor_ray_nor_the_reconciler() -> None:
    code = (
        "import sys, dbserve.api.app\n"
        "print([name for name in ('torch', 'ray', 'sklearn', 'dbserve.cluster', 'dbserve.reconciler', 'workers.actor')"
        " if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"

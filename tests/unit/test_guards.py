"""What browsers are told with every answer, and what other pages may do. No Redis: its address leads nowhere."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import Headers

from dbserve.api import documentation
from dbserve.api.app import create_app
from dbserve.api.guards import foreign
from dbserve.errors import StartupRefused
from dbserve.settings import read_settings
from tests.unit.test_api_problems import KEY, calling, settings

ANYWHERE = [
    "/",
    "/docs",
    "/openapi.json",
    "/healthz",
    "/readyz",
    "/metrics",
    "/nowhere",
    "/v1/jobs",
    "/v1/architectures",
]


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(create_app(settings(tmp_path, api_key=KEY))) as client:
        yield client


@pytest.mark.parametrize("path", ANYWHERE)
@pytest.mark.parametrize("key", ["", KEY])
async def test_every_answer_is_guarded_refusals_too(http: httpx.AsyncClient, path: str, key: str) -> None:
    answer = await http.get(path, headers={"Authorization": f"Bearer {key}"} if key else {})
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert re.match(r"default-src '(none|self)'; .*frame-ancestors 'none'", headers["content-security-policy"])
    assert headers["cache-control"] in ("no-store", "no-cache")
    assert "server" not in headers
    for name in ("x-content-type-options", "content-security-policy", "cache-control", "x-request-id"):
        assert len(headers.get_list(name)) == 1, name


async def test_what_is_refused_before_it_meets_a_route_is_guarded_too(http: httpx.AsyncClient) -> None:
    for answer in (
        await http.post("/v1/jobs", content=b" " * 2_000_000),
        await http.post("/v1/jobs", content=b"", headers={"Content-Encoding": "gzip"}),
        await http.delete("/v1/plans"),
    ):
        assert answer.status_code in (405, 413, 415)
        assert answer.headers["cache-control"] == "no-store"


async def test_the_documentation_runs_its_own_script_and_the_viewers_alone(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs")
    policy = answer.headers["content-security-policy"]
    [script] = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"', answer.text)
    assert loaded
    assert all(url.startswith(documentation.VIEWER + "/") for url in loaded)
    assert all(f'{url}" integrity="sha384-' in answer.text for url in loaded)
    assert (await http.get("/redoc")).status_code == 404


async def test_pages_of_other_origins_may_not_call_unless_they_are_named(
    tmp_path: Path, http: httpx.AsyncClient
) -> None:
    origin = {"Origin": "https://ui.example.org"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert "access-control-allow-origin" not in (await http.get("/healthz", headers=origin)).headers
    assert (await http.options("/v1/jobs", headers=asked)).status_code == 405
    named = create_app(settings(tmp_path, api_key=KEY, cors_origins="https://ui.example.org, http://localhost:3000"))
    async with calling(named) as friend:
        allowed = await friend.options("/v1/jobs", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://ui.example.org"
        assert "access-control-allow-credentials" not in allowed.headers
        refused = await friend.get("/v1/architectures", headers=origin)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://ui.example.org", "so that it reads why"
        other = await friend.options("/v1/jobs", headers={**asked, "Origin": "https://evil.example.org"})
        assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("method", "sent", "refused"),
    [
        ("GET", {"Host": "localhost"}, False),
        ("GET", {"Host": "LOCALHOST:8000"}, False),
        ("GET", {"Host": "127.0.0.1:8000"}, False),
        ("POST", {"Host": "[::1]:8000"}, False),
        ("GET", {"Host": "evil.example.org:8000"}, True),  # its name leads here: DNS rebinding
        ("GET", {"Host": "localhost.evil.example.org"}, True),
        ("GET", {"Host": "192.0.2.1"}, True),
        ("GET", {"Host": "[::1"}, True),
        ("GET", {"Host": ""}, True),
        ("GET", {}, True),
        ("POST", {"Host": "localhost:8000", "Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}, False),
        ("POST", {"Host": "localhost:8000", "Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}, True),
        ("POST", {"Host": "localhost:8000", "Origin": "https://evil.example.org"}, True),
        ("POST", {"Host": "localhost:8000", "Origin": "null"}, True),
        ("DELETE", {"Host": "localhost:8000", "Sec-Fetch-Site": "cross-site"}, True),
        ("POST", {"Host": "localhost", "Origin": "https://ui.example.org", "Sec-Fetch-Site": "cross-site"}, False),
        ("GET", {"Host": "localhost:8000", "Origin": "https://evil.example.org"}, False),  # which cannot read it
    ],
)
def test_without_keys_this_machines_names_are_answered_and_its_own_page(
    method: str, sent: dict[str, str], refused: bool
) -> None:
    assert (foreign(method, Headers(sent), ["https://ui.example.org"]) is not None) == refused


@pytest.mark.parametrize("origins", ["*", "ui.example.org", "https://ui.example.org/", "https://*.example.org", "null"])
def test_an_origin_is_a_scheme_and_a_host(origins: str) -> None:
    with pytest.raises(StartupRefused, match="DBSERVE_CORS_ORIGINS"):
        read_settings(cors_origins=origins)

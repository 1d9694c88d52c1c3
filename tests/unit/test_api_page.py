"""The files of the page as a browser asks for them. No Redis: they need none."""

import gzip
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from dbserve.api.app import create_app
from dbserve.api.page import DIRECTORY, read_assets
from dbserve.settings import read_settings
from tests.pages import Page

MOST_BYTES = 200_000  # of everything, unpacked: a first paint cannot need more
FILES = sorted(path.name for path in DIRECTORY.iterdir())


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A server with a key, which its page does not need."""
    app = create_app(
        read_settings(
            redis_url=f"unix://{tmp_path}/no.sock",
            artifacts=tmp_path / "artifacts",
            cache_dir=tmp_path / "cache",
            api_key="a-key-that-nobody-guesses",
        )
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


def text(name: str) -> str:
    return (DIRECTORY / name).read_text()


async def test_the_page_and_all_that_it_names_are_served_without_a_key(http: httpx.AsyncClient) -> None:
    page = await http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = {value for _, name, value in Page(page.text).attributes if name in {"src", "href"} and value[0] == "/"}
    imported = {found for file in FILES for found in re.findall(r'(?:from |import\()"(/[^"]+)"', text(file))}
    assert len(imported) > 10
    for path in named | imported:
        assert (await http.get(path)).status_code == 200, path
    assert {f"/assets/{file}" for file in FILES} - named - imported == {"/assets/index.html"}, "files nobody needs"


async def test_nothing_but_the_page_s_own_files_is_served(http: httpx.AsyncClient) -> None:
    for path in ("/assets/none.js", "/assets/..%2Fcli.py", "/assets/../cli.py", "/assets/"):
        assert (await http.get(path)).status_code == 404, path


async def test_a_file_that_has_not_changed_is_not_sent_again(http: httpx.AsyncClient) -> None:
    first = await http.get("/assets/app.js")
    again = await http.get("/assets/app.js", headers={"If-None-Match": f'"another", {first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    assert (await http.get("/assets/app.js", headers={"If-None-Match": 'W/"another"'})).status_code == 200


async def test_a_file_is_packed_for_who_takes_it_packed(http: httpx.AsyncClient) -> None:
    packed = await http.get("/assets/views.css", headers={"Accept-Encoding": "br, gzip"})
    plain = await http.get("/assets/views.css", headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.text == plain.text == text("views.css")
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2
    assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"


async def test_the_policy_lets_in_nothing_from_elsewhere_and_nothing_inline(http: httpx.AsyncClient) -> None:
    for path in ("/", "/assets/app.js"):
        headers = (await http.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    page = Page(text("index.html"))
    assert not [name for _, name, _ in page.attributes if name == "style" or name.startswith("on")]
    assert "style" not in page.tags


async def test_the_page_stays_out_of_the_document_of_the_api(http: httpx.AsyncClient) -> None:
    assert not {"/", "/assets/{name}"} & set((await http.get("/openapi.json")).json()["paths"])


@pytest.mark.parametrize("name", FILES)
def test_no_file_makes_markup_out_of_text_or_names_another_host(name: str) -> None:
    source = text(name)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", source)
    assert not re.search(r"(?<!xmlns=\")https?://(?!www\.w3\.org/2000/svg)", source)


def test_everything_together_is_small() -> None:
    assets = read_assets(DIRECTORY.iterdir()).values()
    assert sum(len(asset.body) for asset in assets) < MOST_BYTES
    assert all(gzip.decompress(asset.packed) == asset.body for asset in assets)

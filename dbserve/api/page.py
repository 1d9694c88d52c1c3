"""The page at `/`: static files of this package, read once. They need no key; what they show does."""

import gzip
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

router = APIRouter(include_in_schema=False)

DIRECTORY = Path(__file__).parent.parent / "page"
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# Nothing from elsewhere and nothing inline: whatever a job's name or a log line holds, it can start no script.
POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {  # beside what every answer has (dbserve.api.guards)
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and answered by 304: a new version is seen at once
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True)
class Asset:
    """A file as it is sent: plain, and packed by gzip. `etag` is weak, because it stands for both."""

    body: bytes
    packed: bytes
    media_type: str
    etag: str


def read_assets(files: Iterable[Path]) -> Mapping[str, Asset]:
    """Those of the files that a browser may ask for, by name."""
    return {path.name: _asset(path) for path in files if path.suffix in MEDIA_TYPES}


def _asset(path: Path) -> Asset:
    body = path.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:16]
    return Asset(body, gzip.compress(body, mtime=0), MEDIA_TYPES[path.suffix], f'W/"{digest}"')


@cache
def _assets() -> Mapping[str, Asset]:
    return read_assets(DIRECTORY.iterdir())


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page itself; all else it needs lies under /assets, and /v1."""
    return _answer(request, INDEX)


@router.api_route("/assets/{name}", methods=["GET", "HEAD"])
async def asset(request: Request, name: str) -> Response:
    """A script, a style sheet or the icon."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    found = _assets().get(name)
    if found is None:
        raise HTTPException(404, "the page has no such file")
    headers = HEADERS | {"ETag": found.etag, "Content-Type": found.media_type}
    if found.etag in _listed(request, "if-none-match"):
        return Response(status_code=304, headers=headers)
    if "gzip" in _listed(request, "accept-encoding"):
        return Response(found.packed, headers=headers | {"Content-Encoding": "gzip"})
    return Response(found.body, headers=headers)


def _listed(request: Request, header: str) -> set[str]:
    return {item.strip() for item in request.headers.get(header, "").split(",")}

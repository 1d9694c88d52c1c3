"""What is no request, or would never be one: raw bytes at a real server."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from dbserve.api import envelope, wire
from tests.integration.serving import serving, settings

OK = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def url(redis_url: str, api_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that is not patient."""
    monkeypatch.setattr(wire, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(envelope, "BODY_SECONDS", 1.0)
    with serving(settings(redis_url, api_directory)) as address:
        yield address


def connected(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=20)


def all_that_comes(client: socket.socket) -> bytes:
    """Until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := client.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_client_that_does_not_say_what_it_wants_is_let_go(url: str, sent: bytes) -> None:
    with connected(url) as client:
        client.sendall(sent)
        assert all_that_comes(client) == b""


def test_nor_one_that_trickles_its_second_request(url: str) -> None:
    with connected(url) as client:
        client.sendall(OK)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(OK[:10])
        assert b"200" not in all_that_comes(client)


def test_a_client_may_ask_many_times_over_one_connection(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        assert [client.get("/healthz").status_code for _ in range(50)] == [200] * 50


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(200)) + b"\r\n",
        b"GET /healthz HTTP/1.1\r\nX-Endless: " + b"a" * 200_000,
    ],
    ids=["a long path", "a large header", "many headers", "a header without an end"],
)
def test_a_head_that_nobody_would_send_is_refused(url: str, head: bytes) -> None:
    with connected(url) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(head)
        answer = all_that_comes(client)
        assert not answer.startswith(b"HTTP/1.1 2")
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_body_that_trickles_in_is_refused(url: str) -> None:
    head = (
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    )
    with connected(url) as client:
        client.sendall(head + b"{")
        answer = all_that_comes(client)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"code":"body_too_slow"' in answer


async def test_streams_outlive_the_time_that_bodies_have(url: str) -> None:
    """What is waited for by then is the client's leaving."""
    spec = {"name": "x", "architecture": {"kind": "vit"}, "data": {"uri": "builtin:digits"}, "blocks": {"count": 2}}
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        made = await client.post("/v1/jobs", json={**spec, "training": {"steps": 5, "batch_size": 32}})
        job_id = made.json()["id"]
        async with client.stream("GET", f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"}) as stream:
            pieces = stream.aiter_bytes()
            assert b"job_created" in await anext(pieces)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(pieces), 1.5 * envelope.BODY_SECONDS)
        await client.post(f"/v1/jobs/{job_id}/cancel")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP"])
def test_a_compressed_body_is_refused(url: str, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    answer = httpx.post(f"{url}/v1/jobs", content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")

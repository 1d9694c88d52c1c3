"""The access log: a line a request, without what it carried."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from dbserve.api.app import create_app
from dbserve.logs import LineFormatter, Printer
from dbserve.redaction import Redactor
from dbserve.settings import read_settings

KEY = "a-key-that-nobody-guesses"


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """No Redis: its address leads nowhere."""
    paths = {"artifacts": tmp_path / "artifacts", "cache_dir": tmp_path / "cache"}
    return create_app(read_settings(redis_url=f"unix://{tmp_path}/no.sock", api_key=KEY, **paths))


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """What this process would write, at the level of debugging."""
    printer = Printer(out := io.StringIO())
    printer.setFormatter(LineFormatter(Redactor([KEY])))
    logger = logging.getLogger("dbserve")
    level = logger.level
    logger.addHandler(printer)
    logger.setLevel(logging.DEBUG)
    yield out
    logger.removeHandler(printer)
    logger.setLevel(level)


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


async def test_a_request_is_one_line_of_what_came_of_it(http: httpx.AsyncClient, out: io.StringIO) -> None:
    answer = await http.get("/v1/jobs/j1/logs?tail=3&follow=true", headers={"X-Request-ID": "r-1"})
    [line] = lines(out)
    assert line.pop("timestamp")
    assert line.pop("duration_seconds") >= 0
    assert line == {
        "level": "info",
        "event": "request",
        "logger": "dbserve.access",
        "request_id": "r-1",
        "job_id": "j1",
        "method": "GET",
        "route": "/v1/jobs/{job_id}/logs",
        "path": "/v1/jobs/j1/logs",
        "query": "tail,follow",
        "status": 401,
        "bytes": len(answer.content),
        "client": "192.0.2.7",
    }


async def test_nothing_that_a_request_carried_is_in_its_line(http: httpx.AsyncClient, out: io.StringIO) -> None:
    headers = {"Authorization": "Bearer in-a-header", "Cookie": "c=in-a-cookie"}
    await http.post("/v1/jobs?api_key=in-the-query&in-a-name", headers=headers, content=b'{"name": "in-the-body"}')
    await http.get(f"/v1/jobs/{KEY}")
    written = out.getvalue()
    assert [line["event"] for line in lines(out) if line["logger"] == "dbserve.access"] == ["request", "request"]
    for secret in ("in-a-header", "in-a-cookie", "in-the-query", "in-a-name", "in-the-body", KEY):
        assert secret not in written


async def test_what_is_asked_for_all_the_time_is_for_debugging(http: httpx.AsyncClient, out: io.StringIO) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        await http.get(path)
    levels = {line["path"]: line["level"] for line in lines(out) if line["logger"] == "dbserve.access"}
    assert levels == {"/healthz": "debug", "/readyz": "debug", "/metrics": "debug"}


async def test_what_a_request_causes_to_be_said_has_its_id(
    app: FastAPI, http: httpx.AsyncClient, out: io.StringIO
) -> None:
    @app.get("/broken")
    async def broken() -> None:
        await asyncio.to_thread(logging.getLogger("dbserve.somewhere").info, "in another thread")
        raise RuntimeError("two\nlines")

    await http.get("/broken", headers={"X-Request-ID": "r-2"})
    said, failed, access = lines(out)
    assert {line["request_id"] for line in (said, failed, access)} == {"r-2"}
    assert failed["exception"].endswith("two\nlines")
    assert access["status"] == 500
    await http.get("/nowhere")
    assert lines(out)[-1]["request_id"] != "r-2"


async def test_a_stream_has_a_line_where_it_begins_and_one_where_it_ends(
    app: FastAPI, http: httpx.AsyncClient, out: io.StringIO
) -> None:
    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def content() -> AsyncIterator[bytes]:
            yield b"data: 1\n\n"
            assert [line["event"] for line in lines(out)] == ["stream begins"]
            yield b"data: 2\n\n"

        return StreamingResponse(content(), media_type="text/event-stream")

    await http.get("/stream")
    begins, ends = lines(out)
    assert (begins["event"], begins["status"], ends["event"], ends["bytes"]) == ("stream begins", 200, "request", 18)
    assert "cut_off" not in ends


async def test_an_answer_that_was_not_sent_to_its_end_is_called_so(
    app: FastAPI, http: httpx.AsyncClient, out: io.StringIO
) -> None:
    @app.get("/half")
    async def half(_: Request) -> StreamingResponse:
        async def content() -> AsyncIterator[bytes]:
            yield b"half"
            raise RuntimeError("and no more")

        return StreamingResponse(content())

    await http.get("/half")
    access = lines(out)[-1]
    assert (access["status"], access["bytes"], access["cut_off"]) == (200, 4, True)


async def test_a_long_path_is_cut_between_its_parts(http: httpx.AsyncClient, out: io.StringIO) -> None:
    await http.get("/a/" + "b" * 2000)
    assert lines(out)[-1]["path"] == "/a/..."

"""The audit of dependencies tells "none is known" from "could not be checked"."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests import audit
from tests.http_server import running


class Advisories(BaseHTTPRequestHandler):
    """Answers as the server's `answer` makes of the queries."""

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        body = json.dumps(self.server.answer(queries)).encode()  # pyright: ignore[reportAttributeAccessIssue]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def service() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    with running(server):
        yield server


def checked(server: Any, answer: Any) -> int:
    server.answer = answer
    return audit.main(f"http://127.0.0.1:{server.server_address[1]}/v1/querybatch")


def test_every_pin_is_asked_for_once() -> None:
    asked = audit.pins(audit.PINS.read_text())
    assert len(asked) > 100
    assert len({pin.name for pin in asked}) == len(asked)
    assert {"torch", "redis", "ray"} <= {pin.name for pin in asked}
    assert audit.pins("a==1.0+cpu ; python_version\n# b==2\nc[d]==3\n") == [("a", "1.0"), ("c", "3")]


def test_no_advisory_is_clean(service: ThreadingHTTPServer) -> None:
    assert checked(service, lambda queries: {"results": [{} for _ in queries]}) == audit.CLEAN


def test_an_advisory_is_named_and_fails(service: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(queries: list[Any]) -> Any:
        weak = {"vulns": [{"id": "GHSA-made-up"}]}
        return {"results": [weak if query["package"]["name"] == "redis" else {} for query in queries]}

    assert checked(service, answer) == audit.WEAK
    assert "redis" in (said := capsys.readouterr().err)
    assert "GHSA-made-up" in said


@pytest.mark.parametrize("answer", [{}, {"results": []}, {"results": "none"}, [], {"results": None}])
def test_an_answer_that_is_none_is_no_clean_one(service: ThreadingHTTPServer, answer: Any) -> None:
    assert checked(service, lambda _: answer) == audit.UNCHECKED


def test_a_service_that_is_away_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main("http://127.0.0.1:9/v1/querybatch") == audit.UNCHECKED
    assert "could NOT be checked" in capsys.readouterr().err

"""A web server of data sets, honest or not: what it has at which path, and how it answers."""

import contextlib
import re
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.http_server import running

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclass
class Web:
    """`files` by path; `answers` by path are sent as they are; `asked` is who asked for what."""

    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(
        default_factory=dict[str, tuple[int, dict[str, str], bytes]]
    )
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (Host, path)
    port: int = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@contextlib.contextmanager
def web(address: str = "127.0.0.1") -> Generator[Web]:
    served = Web()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            served.asked.append((self.headers.get("Host", ""), self.path))
            if self.path in served.answers:
                status, headers, body = served.answers[self.path]
            elif self.path in served.files:
                status, headers, body = self._part(served.files[self.path])
            else:
                status, headers, body = 404, {}, b"no such file"
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _part(self, content: bytes) -> tuple[int, dict[str, str], bytes]:
            match = _RANGE.fullmatch(self.headers.get("Range", ""))
            if match is None:
                return 200, {}, content
            first, last = int(match[1]), min(int(match[2]), len(content) - 1)
            span = {"Content-Range": f"bytes {first}-{last}/{len(content)}", "ETag": f'"{hash(content)}"'}
            return 206, span, content[first : last + 1]

        def log_message(self, *_arguments: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer((address, 0), Handler)
    served.port = int(server.server_address[1])
    with running(server):
        yield served

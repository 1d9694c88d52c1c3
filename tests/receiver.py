"""A server that webhooks are sent to: it answers as it is told, and remembers what it was sent."""

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Sent:
    """One request."""

    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """Answers with `codes`, one after the other, and with the last one from then on; holds while `hangs` is set."""

    def __init__(self, codes: Sequence[int], headers: dict[str, str]) -> None:
        self.sent: list[Sent] = []
        self.released = threading.Event()
        self.released.set()
        self._codes = list(codes)
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                code = receiver.take(
                    Sent(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                )
                receiver.released.wait()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(code)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", "5")
                    self.end_headers()
                    self.wfile.write(b"heard")

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def take(self, sent: Sent) -> int:
        with self._lock:
            self.sent.append(sent)
            return self._codes.pop(0) if len(self._codes) > 1 else self._codes[0]

    def hang(self) -> None:
        """From now on nothing is answered."""
        self.released.clear()

    def topics(self) -> list[str]:
        return [sent.message["type"] for sent in self.sent]


@contextlib.contextmanager
def receiving(*codes: int, **headers: str) -> Iterator[Receiver]:
    """A receiver on this machine until the block is left; 200 unless it is told otherwise."""
    receiver = Receiver(codes or (200,), headers)
    thread = threading.Thread(target=receiver.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join(10)

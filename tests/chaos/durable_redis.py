"""A Redis as `dbserve up` starts it, which a test may kill: what it had acknowledged is there when it is back."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis as redis_sync

from dbserve.embedded import redis_server_binary

START_SECONDS = 20.0


class DurableRedis:
    """One server on a socket in `directory`, with its append-only file beside it."""

    def __init__(self, directory: Path, *options: str, port: int = 0) -> None:
        self._directory = directory
        self._options = ("--port", str(port), *options)
        self.socket = directory / "redis.sock"
        self.client = redis_sync.Redis(unix_socket_path=str(self.socket), decode_responses=True)
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        self._server = subprocess.Popen(
            [
                str(redis_server_binary()),
                *self._options,
                *("--unixsocket", str(self.socket), "--dir", str(self._directory)),
                *("--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory-policy", "noeviction"),
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(redis_sync.ConnectionError):  # BusyLoadingError is one
                self.client.ping()  # pyright: ignore[reportUnknownMemberType]
                return
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL: nothing is said, nothing is flushed."""
        assert self._server is not None
        self._server.kill()
        self._server.wait(10)
        self.socket.unlink(missing_ok=True)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """SIGSTOP: connections stay open, and nothing is answered."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._server.send_signal(signal.SIGCONT)

    def empty(self) -> None:
        self.client.flushall()  # pyright: ignore[reportUnknownMemberType]

    def stop(self) -> None:
        self.client.close()
        self.kill()

"""Redis servers of the tests' own, which keep nothing."""

import contextlib
import subprocess
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import redis as redis_sync

from dbserve.embedded import redis_server_binary


@contextlib.contextmanager
def redis_server(directory: Path, arguments: Sequence[str], **reached: Any) -> Generator[redis_sync.Redis]:
    """A server that keeps nothing; yields a client that reaches it as `reached` says, once it answers."""
    log = directory / "redis.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                *(str(redis_server_binary()), "--dir", str(directory), "--save", "", "--appendonly", "no"),
                *("--maxmemory-policy", "noeviction", *arguments),
            ],
            stdout=output,
        )
    client = redis_sync.Redis(decode_responses=True, **reached)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(redis_sync.ConnectionError):
                client.ping()
                break
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.02)
        yield client
    finally:
        client.close()
        server.terminate()
        server.wait(10)

"""Real servers for the integration tests: every test that asks for Redis gets an empty one of this test session."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import redis as redis_sync
from fastapi import FastAPI

from dbserve.api.app import create_app
from dbserve.store import JobStore
from tests.chaos.durable_redis import DurableRedis
from tests.integration.keys_left import leaks
from tests.integration.serving import settings
from tests.redis_servers import redis_server
from tests.tenants import BOOTSTRAP

IN_VAIN = 2.5  # seconds an impatient store waits for Redis


@pytest.fixture(scope="session")
def redis_socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dbs-redis-") as directory:
        socket = Path(directory) / "redis.sock"
        arguments = ["--port", "0", "--unixsocket", str(socket)]
        with redis_server(Path(directory), arguments, unix_socket_path=str(socket)):
            yield socket


@pytest.fixture
def redis_url(redis_socket: Path) -> str:
    client = redis_sync.Redis(unix_socket_path=str(redis_socket))
    client.flushall()
    client.close()
    return f"unix://{redis_socket}"


@pytest.fixture
async def store(redis_url: str, redis_socket: Path) -> AsyncIterator[JobStore]:
    """Fails the test that leaves keys behind which nobody would ever find, or which expire and must not."""
    opened = JobStore.from_url(redis_url)
    yield opened
    await opened.aclose()
    assert leaks(redis_socket) == []


@pytest.fixture
def stoppable_redis(tmp_path: Path) -> Iterator[DurableRedis]:
    """One of the test's own, which it may make hang."""
    server = DurableRedis(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def impatient_store(stoppable_redis: DurableRedis) -> AsyncIterator[JobStore]:
    opened = JobStore.from_url(stoppable_redis.url, timeout=IN_VAIN)
    yield opened
    await opened.aclose()


@pytest.fixture(scope="session")
def api_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the API's artefacts and its digits lie; the digits are written once."""
    return tmp_path_factory.mktemp("api")


@pytest.fixture
def app(redis_url: str, tmp_path: Path, api_directory: Path, store: JobStore) -> FastAPI:
    """The API where a key is asked for, with artefacts of its own; the digits are written once."""
    chosen = settings(redis_url, api_directory, api_key=BOOTSTRAP, webhook_private_hosts=True)
    return create_app(chosen.model_copy(update={"artifacts": str(tmp_path)}), store)


@pytest.fixture
async def http(redis_url: str, api_directory: Path, store: JobStore) -> AsyncIterator[httpx.AsyncClient]:
    """The API on this Redis, without a socket in between."""
    app = create_app(settings(redis_url, api_directory), store)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client

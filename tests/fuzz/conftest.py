"""The running service as the fuzzers meet it: real uvicorn, real Redis, a key that may do everything."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbserve.contracts.status import Crashed, Progress, Reason
from dbserve.store import JobStore
from tests.integration.conftest import redis_socket  # noqa: F401
from tests.integration.serving import serving, settings, start, submitted
from tests.tenants import things_of

KEY = "fuzz-key-0123456789abcdef"


@pytest.fixture(scope="session")
def server(redis_socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: F811
    """Its address. It has jobs that ended with report and model, one that trains and one that failed; the fuzzers
    make more."""
    url = f"unix://{redis_socket}"
    chosen = settings(
        url,
        tmp_path_factory.mktemp("fuzz"),
        api_key=KEY,
        rate_limit=0,  # a fuzzer asks for more than anybody
        data_allow="memory://fuzz/",  # no file of this machine, no other server
    )
    asyncio.run(_things(url, Path(chosen.artifacts)))
    with serving(chosen) as address:
        yield address


async def _things(url: str, artifacts: Path) -> None:
    store = JobStore.from_url(url)
    for _ in range(3):  # a fuzzer deletes some
        await things_of(store, "default", artifacts)
    training, failed = [await submitted(store, name=name) for name in ("training", "failed")]
    run = await start(store, training, "block-0")
    await store.record_progress(Progress(run=run, step=3, total=10, heartbeat_at=time.time(), loss=0.5))
    for attempt in range(1, 4):
        run = await start(store, failed, "block-1", attempt)
        await store.apply(Crashed(run=run, reason=Reason.WORKER_ERROR, message="simulated"))
    await store.aclose()

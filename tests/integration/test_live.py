"""Live views over a real connection, on a real Redis."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dbserve.sse import messages
from dbserve.store import JobStore
from tests.integration.serving import finish, serving, settings, start, submitted


@pytest.fixture
def url(redis_url: str, tmp_path: Path) -> Iterator[str]:
    with serving(settings(redis_url, tmp_path)) as address:
        yield address


async def test_a_live_stream_shows_a_job_from_its_first_state_to_its_last(url: str, store: JobStore) -> None:
    job_id = await submitted(store)
    address = f"{url}/v1/jobs/{job_id}/live"
    received = bytearray()
    async with httpx.AsyncClient(timeout=20.0) as http:
        async with http.stream("GET", address) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            async for piece in response.aiter_bytes():
                received += piece
                if b'"running"' in piece:
                    await finish(store, job_id)
                elif b'"queued"' in piece:  # the first view is here: so is the viewer
                    assert "dbserve_sse_clients 1.0" in (await http.get(f"{url}/metrics")).text
                    await start(store, job_id, "block-0")
        *views, end = messages([bytes(received)])
        assert [view.event for view in views] == ["job"] * len(views)
        assert '"status":"queued"' in views[0].data
        assert '"status":"succeeded"' in views[-1].data
        assert end.event == "end"
        again = await http.get(address, headers={"Last-Event-ID": views[-1].id or ""})
        assert again.status_code == 204
        assert (await http.get(address, headers={"Last-Event-ID": "0" * 16})).text.count("event: job") == 1


async def test_an_unknown_job_has_no_live_stream(url: str) -> None:
    async with httpx.AsyncClient() as http:
        response = await http.get(f"{url}/v1/jobs/j00/live")
        assert (response.status_code, response.json()["code"]) == (404, "job_not_found")
        response = await http.get(f"{url}/v1/jobs/j00/live", headers={"Last-Event-ID": "not-an-id"})
        assert response.status_code == 404, "whatever else is wrong"

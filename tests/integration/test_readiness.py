"""A probe that hangs does not make the service look as if it did, and whoever asks learns no more than that."""

import logging
import threading
from pathlib import Path

import httpx
import pytest

from dbserve.api import readiness
from dbserve.api.app import create_app
from dbserve.api.readiness import ArtefactProbe
from dbserve.errors import StoreUnavailable
from dbserve.store import JobStore
from tests.integration.serving import settings
from tests.tenants import BOOTSTRAP, bearer


class Hanging:
    """An artefact store that answers when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.let = threading.Event()

    def check(self) -> None:
        self.asked += 1
        assert self.let.wait(30)


async def test_a_store_that_hangs_is_said_to_be_silent_and_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Hanging()

    def opened(_: str) -> Hanging:
        return store

    monkeypatch.setattr(readiness, "open_artefacts", opened)
    monkeypatch.setattr(readiness, "PATIENCE_SECONDS", 0.05)
    probe = ArtefactProbe("s3://bucket")
    for _ in range(5):
        assert "has not answered" in (await probe.missing() or "")
    assert store.asked == 1
    store.let.set()
    monkeypatch.setattr(readiness, "PATIENCE_SECONDS", 30.0)
    assert await probe.missing() is None


async def test_a_directory_that_is_not_there_is_missing(tmp_path: Path) -> None:
    assert await ArtefactProbe(str(tmp_path)).missing() is None
    assert await ArtefactProbe(str(tmp_path / "gone")).missing() is not None


SAID = "Redis refused: user api at redis.internal:6379 has no permissions"


async def test_what_is_missing_is_named_and_why_stands_in_the_log_once_each_time(
    redis_url: str, tmp_path: Path, store: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refused(_: JobStore) -> None:
        raise StoreUnavailable(SAID)

    app = create_app(settings(redis_url, tmp_path, api_key=BOOTSTRAP), store)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        with caplog.at_level(logging.INFO, "dbserve.api.readiness"):
            for _ in range(2):
                with monkeypatch.context() as away:
                    away.setattr(JobStore, "ping", refused)
                    for _ in range(3):
                        answer = await http.get("/readyz")
                        assert (answer.status_code, answer.json()["missing"]) == (
                            503,
                            {"redis": "unavailable", "artifacts": "unavailable"},
                        )
                assert list((await http.get("/readyz")).json()["missing"]) == ["artifacts"]
    told = [record.getMessage() for record in caplog.records if "redis" in record.getMessage()]
    assert told == [f"not ready: redis: {SAID}", "redis is there again"] * 2
    assert sum("artifacts" in record.getMessage() for record in caplog.records) == 1


async def test_a_stranger_is_not_told_the_words_of_a_redis_that_is_away(tmp_path: Path) -> None:
    """Who comes with what looks like a key makes the store be asked."""
    socket = tmp_path / "no.sock"
    app = create_app(settings(f"unix://{socket}", tmp_path, api_key=BOOTSTRAP))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        stranger = await http.get("/v1/jobs", headers=bearer(f"dbs_{'0' * 12}_{'0' * 64}"))
        assert (stranger.status_code, stranger.json()["detail"]) == (503, "Redis does not answer.")
        known = await http.get("/v1/jobs", headers=bearer(BOOTSTRAP))
        assert str(socket) in known.json()["detail"]
    await app.state.services.opened.aclose()

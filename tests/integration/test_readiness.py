"""A probe that hangs does not make the service look as if it did."""

import threading
from pathlib import Path

import pytest

from dbserve.api import readiness
from dbserve.api.readiness import ArtefactProbe


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

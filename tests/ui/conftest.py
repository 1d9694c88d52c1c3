"""One service with a key and one Chromium for all tests of the page: both take seconds to start."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbserve.client import Client
from tests.acceptance.conftest import Service
from tests.ui.browser import Browser

KEY = "the-key-of-the-tests-of-the-page"
PROGRAMS = {"chromium": "chromium", "chromedriver": "chromium-driver"}  # -> Debian's packages


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.ui)


@pytest.fixture(scope="session")
def programs() -> dict[str, str]:
    """Where the browser and its driver are; skips without them, unless they are required."""
    found = {name: shutil.which(name) for name in PROGRAMS}
    missing = " ".join(package for name, package in PROGRAMS.items() if found[name] is None)
    if missing:
        assert not os.environ.get("DBSERVE_REQUIRE_SERVERS"), f"apt install {missing}"
        pytest.skip(f"no browser (apt install {missing})")
    return {name: path for name, path in found.items() if path is not None}


@pytest.fixture(scope="session")
def service(programs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("ui") / "data", api_key=KEY)
    yield running
    assert running.stop() == 0, running.said()


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, api_key=KEY) as opened:
        yield opened


@pytest.fixture(scope="session")
def chromium(service: Service, programs: dict[str, str]) -> Iterator[Browser]:
    started = Browser(service.url, program=programs["chromium"], driver=programs["chromedriver"])
    yield started
    started.close()


@pytest.fixture
def stranger(chromium: Browser) -> Iterator[Browser]:
    """A browser that has never been here. Whatever the test does, no script may complain."""
    chromium.resize(1440, 900)
    chromium.prefer("light")
    chromium.forget()
    chromium.complaints()
    yield chromium
    assert chromium.complaints() == []


@pytest.fixture
def browser(stranger: Browser) -> Browser:
    """One that has logged in."""
    stranger.script("sessionStorage.setItem('dbserve.key', arguments[0])", KEY)
    return stranger

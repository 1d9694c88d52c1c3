"""What tests of images share: the engine, and each image built once."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.install import requirements
from tests.images.engine import ROOT, Engine, missing

NEEDS = f"apt install {' '.join(missing())}, as root"
# Debian's Python is 3.11.2, for which some packages ask for more than for the one that runs the tests.
OF_OLDER_PYTHON = ("async-timeout",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and (missing() or os.geteuid()) and not os.environ.get("DBSERVE_REQUIRE_SERVERS"):
            item.add_marker(pytest.mark.skip(reason=f"images are neither built nor run here: {NEEDS}"))


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(tmp_path_factory.mktemp("engine"))


def wheels(directory: Path, *extras: str) -> Path:
    """All that an image installs, fetched with whatever index pip is told of here: so the build needs none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*requirements(project, extras), *OF_OLDER_PYTHON, "setuptools", "scikit-learn"]
    fetching = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version=3.11"]
    fetched = subprocess.run(
        [*fetching, "--dest", directory, "--constraint", ROOT / "constraints.txt", *wanted],
        capture_output=True,
        text=True,
    )
    assert fetched.returncode == 0, fetched.stderr
    return directory


@pytest.fixture(scope="session")
def control(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The control plane's image."""
    return engine.image("dbserve", wheels(tmp_path_factory.mktemp("wheels"), "control", "trace"))


@pytest.fixture(scope="session")
def worker(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The nodes' image, with the torch that pip finds here."""
    return engine.image("dbserve-worker", wheels(tmp_path_factory.mktemp("wheels"), "worker", "trace"))


@pytest.fixture
def network(engine: Engine, request: pytest.FixtureRequest) -> Iterator[str]:
    """One for the test, named after its process: nothing of another's is removed."""
    with engine.network(f"dbserve-{os.getpid()}") as opened:
        yield opened

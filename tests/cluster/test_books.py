"""Ray's books in the chart's Redis, as a user who sees nothing else: a head that was killed finds its workers again."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.kubernetes.chart import rendered
from tests.kubernetes.servers import ChartRedis, redis_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

if shutil.which("redis-server") is None and not os.environ.get("DBSERVE_REQUIRE_SERVERS"):
    pytest.skip("redis-server is not installed (apt install redis-server)", allow_module_level=True)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[ChartRedis]:
    with redis_of(rendered("defaults"), tmp_path) as server:
        yield server


@pytest.fixture
def cluster(books: ChartRedis, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """As KubeRay starts it where the GCS is to outlive its process."""
    monkeypatch.setenv("RAY_REDIS_ADDRESS", f"127.0.0.1:{books.port}")
    monkeypatch.setenv("RAY_external_storage_namespace", "books")
    arguments = {"num_cpus": 1, "redis_username": "ray", "redis_password": books.passwords["ray"]}
    started = Cluster(initialize_head=True, head_node_args=arguments)
    try:
        ray.init(address=started.address, namespace="books", log_to_driver=False)
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


@ray.remote(num_cpus=1, max_restarts=0)
class BlockActor:
    def pid(self) -> int:
        return os.getpid()


def test_a_head_that_was_killed_finds_its_workers_again(cluster: Cluster, books: ChartRedis) -> None:
    worker: Any = BlockActor.options(name="a-block", lifetime="detached").remote()
    pid = ray.get(worker.pid.remote(), timeout=120)
    with books.connect("ray") as ray_user:
        assert {key.partition("@")[0] for key in ray_user.scan_iter("*")} == {"RAYbooks"}
    cluster.head_node.kill_gcs_server(False)
    cluster.head_node.start_gcs_server()
    found: Any = ray.get_actor("a-block")
    assert ray.get(found.pid.remote(), timeout=120) == pid

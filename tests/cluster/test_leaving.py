"""A pod that must go, on a real Ray: it is drained, and its preStop hook returns when its workers have left."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.waiting import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, and a node whose pod is called leaving-pod."""
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        started.add_node(num_cpus=1, env_vars={"RAY_CLOUD_INSTANCE_ID": "leaving-pod"})
        ray.init(address=started.address, namespace="leaving", log_to_driver=False)
        yield started
    finally:
        ray.shutdown()
        started.shutdown()


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)
class BlockActor:
    def pid(self) -> int:
        return os.getpid()


def pre_stop(cluster: Cluster, pod: str, seconds: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_CLOUD_INSTANCE_ID": pod}
    command = [sys.executable, "-m", "workers.leaving", "--seconds", str(seconds)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_node_that_ray_does_not_know_says_so_and_goes(cluster: Cluster) -> None:
    hook = pre_stop(cluster, "another-pod", 8.0)
    assert hook.returncode == 0
    assert "it knows none of another-pod" in hook.stderr
    assert sum(node["Alive"] for node in ray.nodes()) == 2


def test_a_leaving_node_takes_no_new_workers_and_goes_when_its_last_has_gone(cluster: Cluster) -> None:
    worker: Any = BlockActor.remote()
    ray.get(worker.pid.remote())
    hook = pre_stop(cluster, "leaving-pod", 20.0)
    assert (hook.returncode, hook.stderr) == (0, "")  # drained, and the worker met SIGTERM at half time
    wait_for(lambda: sum(node["Alive"] for node in ray.nodes()) == 1, seconds=60, what="the drained node's end")

"""RayCluster on a real Ray of two nodes: what it says of a worker on a node other than its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

# In a process of its own: Ray leaves threads and handlers behind, and reads its settings when it is imported.
PROGRAM = """
import json, os, socket, subprocess, sys
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
import ray
from ray.cluster_utils import Cluster
from dbserve import cluster as under_test
from dbserve.cluster import RayCluster
from dbserve.contracts.cluster import Demand, Resources
from dbserve.contracts.plan import TaskKind
from dbserve.contracts.status import Run, Task
from dbserve.settings import Settings
from workers.presence import birth

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
other = nodes.add_node(num_cpus=1)
cluster = RayCluster.connect(Settings(ray_address=nodes.address, autoscaling=True), "test")
worker = subprocess.Popen(["sleep", "600"])
run = Run(job_id="j", task="block-0", attempt=1)
born = birth(worker.pid)
task = Task(run=run, kind=TaskKind.BLOCK, node="elsewhere", node_id=other.node_id, pid=worker.pid, born=born)
said = {}

def look(what, task):
    answer = cluster.presence(task)
    while answer == "asked" or (answer == "unknown" and what != "node lost"):
        answer = cluster.presence(task)
    said[what] = answer

poll, patience = under_test.POLL_SECONDS, under_test.LOOK_SECONDS
under_test.POLL_SECONDS, under_test.LOOK_SECONDS = 0.0, 3600.0
said["just asked"] = cluster.presence(task)
under_test.LOOK_SECONDS = 0.0
said["asked for too long"] = cluster.presence(task)
under_test.POLL_SECONDS, under_test.LOOK_SECONDS = poll, patience
look("there", task)
look("pid given again", task.model_copy(update={"born": 1.0}))
cluster.stop(run, task=task.model_copy(update={"born": 1.0}))
look("still there", task)
cluster.stop(run, task=task)
worker.wait(30)
look("killed", task)
nodes.remove_node(other, allow_graceful=False)
while any(node["Alive"] and node["NodeID"] == other.node_id for node in ray.nodes()):
    pass
look("node lost", task)
look("never begun", task.model_copy(update={"pid": None}))
said["cause of what was not launched"] = cluster.cause_of_death(run)
said["alive"] = sorted(map(str, cluster.alive()))
bad, good = Demand(Resources(1.0, 0.0), labels=(("a/b/c", "x"),)), Demand(Resources(1.0, 0.0))
for _ in range(4):
    cluster.grow([], [bad, good])
said["left out"] = cluster.capacity().growth.left_out == {bad}
print(json.dumps(said))
cluster.disconnect()
nodes.shutdown()
"""


def test_a_worker_on_another_node_is_looked_at_and_killed_there(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads(ended.stdout.splitlines()[-1]) == {
        "just asked": "asked",
        "asked for too long": "unknown",
        "there": "present",
        "pid given again": "gone",
        "still there": "present",
        "killed": "gone",
        "node lost": "unknown",
        "never begun": "gone",
        "cause of what was not launched": None,
        "alive": [],
        "left out": True,
    }

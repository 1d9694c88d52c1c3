"""A block trained by two replicas on two real Ray nodes, one of which is killed, and then its node."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dbserve.contracts.job import JobSpec
from dbserve.contracts.views import BlockView, JobView
from tests.acceptance.jobs import digits_job
from tests.chaos.undisturbed import digest_of
from tests.cluster.machines import Floor, floor_of
from workers.checkpoint import answering_weights

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS, EVERY = 2000, 50


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """With a short name: Ray's sockets lie deep in it."""
    with tempfile.TemporaryDirectory(prefix="dbs-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def floor(directory: Path) -> Iterator[Floor]:
    with floor_of(directory) as opened:
        yield opened


def replicas() -> list[psutil.Process]:
    """Processes of replicas other than the leading ones, wherever they run on this host."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].startswith("ray::ReplicaActor"):
            found.append(process)
    return found


def undisturbed(spec: JobSpec, cache: Path) -> str:
    """Digest of what one worker makes of the same job's block."""
    command = [sys.executable, "-m", "tests.chaos.undisturbed", str(cache)]
    done = subprocess.run(command, input=spec.model_dump_json().encode(), stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["block-0"]


def block_of(floor: Floor, job: JobView) -> BlockView:
    [block] = floor.blocks(job)
    return block


def test_replicas_on_two_nodes_survive_the_loss_of_one_and_of_its_node_and_learn_what_one_worker_does(
    floor: Floor, directory: Path
) -> None:
    for name in ("a", "b"):
        floor.add(name, cpus=1)
    floor.wait_for_nodes("a", "b")
    spec = digits_job(
        name="two",
        blocks={"count": 2, "train": [0]},
        training={"steps": STEPS, "batch_size": 64, "lr": 3e-3},
        checkpoint={"every_steps": EVERY, "keep_last": 1},
        # also where the node's end is noticed late: each attempt that is launched on it costs one
        retry={"max_attempts": 10, "backoff_seconds": 0.0},
        resources={"replicas": 2, "min_replicas": 1, "placement": "spread"},
    )
    job = floor.client.submit(spec)

    def saved(after: int) -> bool:
        checkpoint = block_of(floor, job).last_checkpoint
        return checkpoint is not None and checkpoint.step > after

    floor.wait_for(lambda: saved(0), seconds=240, what="a first checkpoint")
    [first] = floor.events(job, "launched")
    assert len(set(first.data["nodes"])) == 2, "a node each"
    [other] = replicas()
    os.kill(other.pid, signal.SIGKILL)
    floor.wait_for(lambda: len(floor.events(job, "restored")) == 1, seconds=120, what="the next attempt goes on")
    [crashed] = floor.events(job, "crashed")
    assert crashed.data["reason"] == "worker_lost"
    assert "block-0: worker 1 of 2 died" in crashed.data["message"]
    stood = floor.events(job, "restored")[0].data["step"]
    assert stood >= EVERY

    floor.wait_for(lambda: saved(stood), seconds=240, what="a checkpoint of the second attempt")
    launched = floor.events(job, "launched")[-1]
    assert len(launched.data["nodes"]) == 2, "there was room for both"
    leading = launched.data["nodes"][0]
    floor.machines.kill("b" if floor.nodes()["a"].id == leading else "a")
    floor.wait_for(
        lambda: floor.client.job(job.id).status == "succeeded", seconds=240, what="one replica finishes the job"
    )
    assert len(floor.events(job, "launched")[-1].data["nodes"]) == 1
    assert {event.data["reason"] for event in floor.events(job, "crashed")} <= {"worker_lost", "preempted"}
    assert not replicas(), "none is left behind"

    checkpoint = floor.events(job, "checkpointed")[-1].data["checkpoint"]
    path = directory / "data" / "artifacts" / checkpoint["path"]
    assert digest_of(answering_weights(path)) == undisturbed(spec, directory / "undisturbed"), "two gradients, one sum"

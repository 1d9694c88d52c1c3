"""A block trained by two replicas on two real Ray nodes, one of which is killed, and then its node."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from dbserve.contracts.job import JobSpec
from dbserve.contracts.views import BlockView, JobView
from tests.acceptance.jobs import digits_job
from tests.chaos.undisturbed import digest_of, final_weights
from tests.cluster.machines import Floor, floor_of
from workers.checkpoint import answering_weights

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

STEPS, SHARDED_STEPS, EVERY = 2000, 600, 50


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """With a short name: Ray's sockets lie deep in it."""
    with tempfile.TemporaryDirectory(prefix="dbs-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def floor(directory: Path) -> Iterator[Floor]:
    """Two nodes, of one core each."""
    with floor_of(directory) as opened:
        for name in ("a", "b"):
            opened.add(name, cpus=1)
        opened.wait_for_nodes("a", "b")
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


def job_of_two(name: str, steps: int, **changes: Any) -> JobSpec:
    return digits_job(
        name=name,
        blocks={"count": 2, "train": [0]},
        training={"steps": steps, "batch_size": 64, "lr": 3e-3},
        checkpoint={"every_steps": EVERY, "keep_last": 1},
        **changes,
    )


def saved(floor: Floor, job: JobView, after: int) -> bool:
    checkpoint = block_of(floor, job).last_checkpoint
    return checkpoint is not None and checkpoint.step > after


def goes_on_without_the_one_that_is_killed(floor: Floor, job: JobView) -> int:
    """The step of the checkpoint from which the second attempt goes on."""
    floor.wait_for(lambda: saved(floor, job, 0), seconds=240, what="a first checkpoint")
    [first] = floor.events(job, "launched")
    assert len(set(first.data["nodes"])) == 2, "a node each"
    [other] = replicas()
    os.kill(other.pid, signal.SIGKILL)
    floor.wait_for(lambda: len(floor.events(job, "restored")) == 1, seconds=120, what="the next attempt goes on")
    [crashed] = floor.events(job, "crashed")
    assert crashed.data["reason"] == "worker_lost"
    assert "block-0: worker 1 of 2 died" in crashed.data["message"]
    stood: int = floor.events(job, "restored")[0].data["step"]
    assert stood >= EVERY
    return stood


def learnt(floor: Floor, job: JobView, directory: Path) -> dict[str, Tensor]:
    """The weights that the block answers with in the end."""
    checkpoint = floor.events(job, "checkpointed")[-1].data["checkpoint"]
    return answering_weights(directory / "data" / "artifacts" / checkpoint["path"])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=3e-5)


def test_replicas_that_share_the_state_go_on_from_the_leaders_save_and_learn_what_one_worker_does(
    floor: Floor, directory: Path
) -> None:
    spec = job_of_two("sharded", SHARDED_STEPS, resources={"replicas": 2, "sharding": "state", "placement": "spread"})
    job = floor.client.submit(spec)
    assert goes_on_without_the_one_that_is_killed(floor, job) < SHARDED_STEPS
    floor.wait_for(lambda: floor.client.job(job.id).status == "succeeded", seconds=240, what="two finish the job")
    assert [len(event.data["nodes"]) for event in floor.events(job, "launched")] == [2, 2]
    floor.wait_for(lambda: not replicas(), seconds=30, what="none is left behind")

    found, alone = learnt(floor, job, directory), final_weights(spec, directory / "undisturbed")["block-0"]
    assert found.keys() == alone.keys()
    for name, weights in alone.items():
        if name.endswith("qkv.bias"):  # of the keys' third softmax takes no notice, and AdamW makes steps of rounding
            for third in (0, 2):
                close(found[name].chunk(3)[third], weights.chunk(3)[third])
        else:
            close(found[name], weights)


def test_replicas_on_two_nodes_survive_the_loss_of_one_and_of_its_node_and_learn_what_one_worker_does(
    floor: Floor, directory: Path
) -> None:
    spec = job_of_two(
        "two",
        STEPS,
        # also where the node's end is noticed late: each attempt that is launched on it costs one
        retry={"max_attempts": 10, "backoff_seconds": 0.0},
        resources={"replicas": 2, "min_replicas": 1, "placement": "spread"},
    )
    job = floor.client.submit(spec)
    stood = goes_on_without_the_one_that_is_killed(floor, job)

    floor.wait_for(lambda: saved(floor, job, stood), seconds=240, what="a checkpoint of the second attempt")
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

    found = digest_of(learnt(floor, job, directory))
    assert found == undisturbed(spec, directory / "undisturbed"), "two gradients, one sum"

"""Blocks on several real Ray nodes: where they go, and what becomes of them when nodes go and come."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dbserve.contracts.views import JobView
from tests.acceptance.jobs import long_job
from tests.cluster.machines import Floor, floor_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def floor() -> Iterator[Floor]:
    with (
        tempfile.TemporaryDirectory(prefix="dbs-", ignore_cleanup_errors=True) as directory,
        floor_of(Path(directory)) as opened,
    ):
        yield opened


def test_six_blocks_live_through_a_drained_a_killed_and_an_added_node(floor: Floor) -> None:
    """One story, since every worker takes seconds to import torch."""
    for name in ("a", "b", "c"):
        floor.add(name, cpus=3, gpus=2)
    floor.wait_for_nodes("a", "b", "c")
    spec = long_job(
        name="six",
        architecture={"kind": "vit", "options": {"depth": 6, "width": 16, "heads": 2, "patch": 4}},
        blocks={"count": 6},
        training={"steps": 1_000_000, "batch_size": 16},
        checkpoint={"every_steps": 100},
        resources={"placement": "spread", "gpus_per_block": 1},
    )
    job = floor.client.submit(spec)
    floor.wait_until_training(job, steps=100)
    where = floor.workers(job.id)
    assert {name: len(tasks) for name, tasks in where.items()} == {"a": 2, "b": 2, "c": 2}

    shares_one_decode_per_node(floor, job)
    each_has_a_gpu_of_its_own(floor, job)

    floor.machines.drain(floor.nodes()["c"].id, seconds=90)
    floor.wait_for(lambda: "c" not in floor.workers(job.id), seconds=60, what="its blocks have left the node")
    moved = {event.task: event for event in floor.events(job, "move_requested")}
    assert sorted(filter(None, moved)) == where["c"]
    floor.wait_for(lambda: floor.client.cluster().waiting == 2, seconds=60, what="a core is free, but no GPU")

    floor.add("d", cpus=4, gpus=3)
    floor.wait_for(
        lambda: {event.task for event in floor.events(job, "restored") if event.attempt == 2} == set(where["c"]),
        seconds=240,
        what="they go on on the node that came",
    )
    after = {block.name: block for block in floor.blocks(job)}
    assert floor.workers(job.id) == {"a": where["a"], "b": where["b"], "d": where["c"]}
    for name, block in after.items():
        assert block.restarts == ({"preempted": 1} if name in where["c"] else {}), "nobody crashed"
    for event in floor.events(job, "crashed"):
        assert event.data["reason"] == "preempted"
        assert "a last checkpoint at step" in str(event.data["message"])
        stopped_at = int(str(event.data["message"]).rpartition(" ")[2])
        [restored] = [one for one in floor.events(job, "restored") if (one.task, one.attempt) == (event.task, 2)]
        assert restored.data["step"] == stopped_at, "not a step is lost"
    node = floor.nodes().get("c")
    assert node is None or node.draining, "Ray ends it when nothing is left there"

    lost = where["b"]
    before = {block.name: block.last_checkpoint for block in floor.blocks(job)}
    floor.machines.kill("b")
    floor.wait_for(lambda: "b" not in floor.nodes(), seconds=90, what="Ray has missed the node")
    floor.wait_for(
        lambda: len(floor.workers(job.id)["d"]) == 3, seconds=90, what="one of its blocks has the last GPU there is"
    )
    [waiting] = [block.name for block in floor.blocks(job) if block.status == "pending"]
    assert waiting in lost
    assert floor.client.cluster().waiting == 1, "a GPU that went with its node is nobody's"

    floor.add("e", cpus=2, gpus=1)
    floor.wait_for(
        lambda: floor.workers(job.id).get("e") == [waiting], seconds=60, what="it starts on the node that came"
    )
    floor.wait_until_training(job)
    for block in floor.blocks(job):
        checkpoint = before[block.name]
        assert checkpoint is not None
        assert block.step >= checkpoint.step
    each_has_a_gpu_of_its_own(floor, job)
    floor.end(job)


def shares_one_decode_per_node(floor: Floor, job: JobView) -> None:
    """Both blocks of a node map the same file, which lies in the node's own cache."""
    for name, tasks in floor.workers(job.id).items():
        mapped = []
        for block in floor.blocks(job):
            if block.name in tasks:
                assert block.pid is not None
                paths = {region.path for region in psutil.Process(block.pid).memory_maps()}
                mapped.append({path for path in paths if "/caches/" in path})
        first, second = mapped
        assert first == second != set(), "they share what was decoded"
        assert all(Path(path).is_relative_to(floor.machines.cache(name)) for path in first), "on their own node"


def each_has_a_gpu_of_its_own(floor: Floor, job: JobView) -> None:
    """As the workers themselves say, who have it from Ray."""
    gpus = {block.name: block.gpu for block in floor.blocks(job)}
    for name, tasks in floor.workers(job.id).items():
        held = {gpus[task] for task in tasks}
        assert len(held - {None}) == len(tasks), f"{name}: {held}"
        assert floor.nodes()[name].gpus_free == floor.nodes()[name].gpus - len(tasks)


def test_gpu_types_and_labels_say_where_blocks_go_and_halves_share_a_gpu(floor: Floor) -> None:
    floor.add("t4", cpus=2, gpus=1, labels={"ray.io/accelerator-type": "T4", "zone": "1"})
    floor.add("a100", cpus=3, gpus=2, labels={"ray.io/accelerator-type": "A100", "zone": "2"})
    floor.wait_for_nodes("t4", "a100")
    halves = floor.client.submit(long_job(name="halves", resources={"gpus_per_block": 0.5, "gpu_type": "A100"}))
    never = floor.client.submit(long_job(name="never", resources={"gpus_per_block": 1.0, "gpu_type": "H100"}))
    zone = long_job(name="zone", resources={"node_labels": {"zone": "1"}}, blocks={"count": 2, "train": [1]})
    there = floor.client.submit(zone)
    floor.wait_until_training(halves)
    floor.wait_until_training(there)
    assert floor.workers(halves.id) == {"a100": ["block-0", "block-1"]}
    assert floor.workers(there.id) == {"t4": ["block-1"]}
    first, second = floor.blocks(halves)
    assert first.gpu == second.gpu, "two halves are one GPU"
    shown = floor.nodes()["a100"]
    assert (shown.gpus_free, shown.gpu_type) == (1.0, "A100")
    larger = floor.client.submit(long_job(name="larger", resources={"gpus_per_block": 0.7, "gpu_type": "A100"}))
    floor.wait_for(lambda: len(floor.workers(larger.id)) == 1, seconds=60, what="one of them has a GPU")
    assert floor.client.cluster().waiting == 3, "0.3 + 0.3 are no 0.7, though 0.6 of two GPUs are free; two never fit"
    assert floor.client.job(never.id).message == "block-0: no node has GPU type H100; nodes have A100, T4"
    for job in (halves, there, never, larger):
        floor.client.cancel(job.id, force=True)

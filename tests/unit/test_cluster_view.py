"""What a project is shown of the cluster."""

from dataclasses import replace

from dbserve.api.cluster import cluster_view
from dbserve.contracts.cluster import ClusterRecord, Resources
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import TaskState
from tests.scenes import NOW, RUNNING, SUCCEEDED, a_job, cluster_of

FIRST, SECOND = cluster_of(Resources(4.0, 2.0), Resources(4.0, 0.0)).nodes
RECORD = ClusterRecord(at=NOW, cluster="c1", nodes=(replace(FIRST, gpu_type="T4", labels={"zone": "1"}), SECOND))


def of_project(job: JobOutline, project: str) -> JobOutline:
    return job.model_copy(update={"record": job.record.model_copy(update={"project": project})})


def test_a_node_shows_what_is_free_and_which_tasks_hold_the_rest() -> None:
    shared = {**RUNNING, "gpus": 0.5, "gpu": "GPU-1", "nodes": ("n0", "n1", "n0")}
    job = a_job(block_0=shared, block_1=SUCCEEDED)
    first, second = cluster_view(RECORD, [job], "default", NOW).nodes
    assert (first.name, first.cpus, first.cpus_free, first.gpus, first.gpus_free) == ("host0", 4.0, 2.0, 2.0, 1.0)
    assert (first.gpu_type, first.labels, second.gpu_type) == ("T4", {"zone": "1"}, None)
    assert (second.cpus_free, second.gpus_free) == (3.0, 0.0)
    assert [(worker.task, worker.replicas) for node in (first, second) for worker in node.workers] == [
        ("block-0", 2),
        ("block-0", 1),
    ]


def test_of_another_project_only_what_it_holds_is_shown() -> None:
    own = a_job("j1", block_0={**RUNNING, "nodes": ("n0",)}, block_1=SUCCEEDED)
    other = of_project(a_job("j2", block_0={**RUNNING, "nodes": ("n0", "n0")}), "other")
    shown = cluster_view(RECORD, [own, other], "default", NOW)
    assert [(worker.job_id, worker.task) for worker in shown.nodes[0].workers] == [("j1", "block-0")]
    assert (shown.nodes[0].others, shown.nodes[0].cpus_free) == (2, 1.0)
    assert (shown.waiting, cluster_view(RECORD, [own, other], "other", NOW).waiting) == (0, 1)
    assert "j2" not in shown.model_dump_json()


def test_a_node_that_is_about_to_go_says_so_and_who_moves_off_it() -> None:
    record = RECORD.model_copy(update={"nodes": (replace(FIRST, draining=True, leaves_in=40.0), SECOND)})
    job = a_job(block_0={**RUNNING, "nodes": ("n0",), "stop_by": NOW + 30}, block_1={"state": TaskState.PENDING})
    first, second = cluster_view(record, [job], "default", NOW).nodes
    assert (first.draining, first.leaves_in_seconds, first.workers[0].moving) == (True, 40.0, True)
    assert not second.draining


def test_before_a_reconciler_has_looked_there_is_nothing_to_show() -> None:
    shown = cluster_view(None, [a_job()], "default", NOW)
    assert (shown.seen_at, shown.nodes, shown.waiting) == (None, (), 2)


def test_what_the_store_keeps_of_nodes_comes_back_as_it_was() -> None:
    record = RECORD.model_copy(update={"nodes": (replace(FIRST, draining=True, leaves_in=40.0), SECOND)})
    assert ClusterRecord.model_validate_json(record.model_dump_json(exclude_defaults=True)) == record

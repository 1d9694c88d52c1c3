"""The cluster: its nodes, what they have, and what runs where."""

import time
from collections import Counter
from collections.abc import Sequence

from fastapi import APIRouter

from dbserve.api.auth import Asking
from dbserve.api.context import Store
from dbserve.api.problems import problems
from dbserve.api.views import utc
from dbserve.contracts.cluster import Capacity, ClusterRecord, Node
from dbserve.contracts.cluster_view import ClusterView, NodeView, WorkerView
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import OCCUPYING, Intent, Task, TaskState
from dbserve.lifecycle import can_start
from dbserve.placement import Books, nodes_of

router = APIRouter(prefix="/v1", tags=["cluster"])


@router.get("/cluster", responses=problems())
async def cluster(caller: Asking, store: Store) -> ClusterView:
    """Nodes as a reconciler saw them a moment ago. Of other projects it is told how much they hold, and no more."""
    record, jobs = await store.cluster.seen(), await store.active_outlines()
    return cluster_view(record, jobs, caller.project, time.time())


def cluster_view(record: ClusterRecord | None, jobs: Sequence[JobOutline], project: str, now: float) -> ClusterView:
    """As one project may see it at `now` (unix seconds). Pure."""
    ours = [job for job in jobs if job.record.project == project]
    waiting = sum(
        can_start(task, job.tasks, now)
        for job in ours
        if job.record.intent is Intent.RUN
        for task in job.tasks.values()
    )
    if record is None:
        return ClusterView(seen_at=None, waiting=waiting)
    held = [task for job in jobs for task in job.tasks.values() if task.state in OCCUPYING]
    books = Books(Capacity(record.nodes))
    books.charge(held)
    mine = [task for job in ours for task in job.tasks.values() if task.state in OCCUPYING]
    replicas = Counter(node_id for task in held for node_id in nodes_of(task))
    nodes = tuple(
        _node(node, books, mine, replicas[node.id])
        for node in sorted(record.nodes, key=lambda node: (node.name, node.id))
    )
    return ClusterView(seen_at=utc(record.at), nodes=nodes, waiting=waiting)


def _node(node: Node, books: Books, mine: Sequence[Task], everybody: int) -> NodeView:
    free = books.free(node.id)
    workers = tuple(_worker(task, node.id) for task in mine if node.id in nodes_of(task))
    return NodeView(
        id=node.id,
        name=node.name,
        cpus=node.resources.cpus,
        cpus_free=round(max(0.0, free.cpus), 6),
        gpus=node.resources.gpus,
        gpus_free=round(max(0.0, free.gpus), 6),
        gpu_type=node.gpu_type,
        labels=dict(node.labels),
        draining=node.draining,
        leaves_in_seconds=node.leaves_in,
        workers=workers,
        others=everybody - sum(worker.replicas for worker in workers),
    )


def _worker(task: Task, node_id: str) -> WorkerView:
    return WorkerView(
        job_id=task.run.job_id,
        task=task.run.task,
        kind=task.kind,
        attempt=task.run.attempt,
        status=task.state,
        replicas=nodes_of(task).count(node_id),
        moving=task.state is TaskState.RUNNING and task.stop_by is not None,
    )

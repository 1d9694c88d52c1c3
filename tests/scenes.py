"""Scenes for decide(): jobs of small networks, nodes, and what is decided of them."""

from collections.abc import Iterable
from typing import Any

from dbserve.contracts.cluster import Capacity, Node, Resources
from dbserve.contracts.job import JobSpec
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import Intent, JobStatus, Run, TaskState
from dbserve.lifecycle import new_tasks
from dbserve.scheduling import Action, Launch, Scene, decide
from dbserve.store.jobs import new_record
from tests.jobs import small_plan, small_spec

NOW = 1000.0


def cluster_of(*nodes: Resources) -> Capacity:
    return Capacity(tuple(Node(f"n{place}", f"host{place}", held) for place, held in enumerate(nodes)))


TWO_CPUS = cluster_of(Resources(2.0, 0.0))


def a_job(
    job_id: str = "j1",
    *,
    intent: Intent = Intent.RUN,
    status: JobStatus = JobStatus.RUNNING,
    owner: str = "",
    spec: JobSpec | None = None,
    **tasks: dict[str, object],
) -> JobOutline:
    """A job of two blocks, an assembly and an evaluation; keywords change tasks (block_0={...})."""
    spec = spec or small_spec()
    plan = small_plan(spec)
    fresh = {task.run.task: task for task in new_tasks(job_id, plan, spec, now=0.0)}
    for name, changes in tasks.items():
        key = name if name in fresh else name.replace("_", "-")
        fresh[key] = fresh[key].model_copy(update={"cluster": "c1", **changes})
    record = new_record(job_id, spec, plan, owner=owner, now=0.0).model_copy(update={"intent": intent})
    return JobOutline(record=record, status=status, tasks=fresh, progress={})


def run_of(job_id: str, task: str, attempt: int = 1) -> Run:
    return Run(job_id=job_id, task=task, attempt=attempt)


def decided(
    jobs: Iterable[JobOutline], alive: Iterable[Run] = (), capacity: Capacity = TWO_CPUS, **scene: Any
) -> list[Action]:
    """Every worker that lives was asked for by this reconciler, unless `asked` says otherwise."""
    alive = set(alive)
    known = {"jobs": list(jobs), "alive": alive, "capacity": capacity, "cluster": "c1", "now": NOW, "asked": alive}
    return list(decide(Scene(**(known | scene))))


def launched(actions: Iterable[Action]) -> list[Run]:
    return [action.run for action in actions if isinstance(action, Launch)]


def on_gpus(count: float) -> JobSpec:
    return small_spec(resources={"gpus_per_block": count})


RUNNING: dict[str, object] = {"state": TaskState.RUNNING}
SUCCEEDED: dict[str, object] = {"state": TaskState.SUCCEEDED}

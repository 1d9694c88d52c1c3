"""A job's snapshot as the tests need it, made by the real planner and the real state machine's derivations."""

from typing import Any

from dbserve.contracts.job import JobSpec
from dbserve.contracts.snapshot import JobSnapshot
from dbserve.contracts.status import CheckpointRef, Intent, MemoryBytes, Progress, Run, Task, TaskState
from dbserve.lifecycle import job_reason, job_state, new_tasks
from dbserve.store.jobs import new_record
from tests.jobs import small_plan, small_spec

JOB_ID = "j1"
NOW = 1_700_000_000.0


def baselines_spec(**changes: Any) -> JobSpec:
    return small_spec(**{"evaluation": {"baselines": ["end_to_end", "shallow_ensemble"]}, **changes})


def snapshot(spec: JobSpec | None = None, *, intent: Intent = Intent.RUN, **tasks: dict[str, Any]) -> JobSnapshot:
    """Keywords change tasks, `__` standing for a dash: block__0={"state": ..., "progress": {...}, "attempt": 2}."""
    spec = spec or baselines_spec()
    plan = small_plan(spec)
    fresh = {task.run.task: task for task in new_tasks(JOB_ID, plan, spec, now=NOW)}
    progress: dict[str, Progress] = {}
    for key, changes in tasks.items():
        name = key.replace("__", "-")
        run = Run(job_id=JOB_ID, task=name, attempt=changes.pop("attempt", 1))
        if (told := changes.pop("progress", None)) is not None:
            total = plan.task(name).steps
            progress[name] = Progress.model_validate({"run": run, "total": total, "heartbeat_at": NOW, **told})
        fresh[name] = fresh[name].model_copy(update={"run": run, **changes})
    current: list[Task] = list(fresh.values())
    status, (reason, message) = job_state(current, intent), job_reason(current, intent)
    return JobSnapshot(
        record=new_record(JOB_ID, spec, plan, owner="", now=NOW).model_copy(update={"intent": intent}),
        status=status,
        reason=reason,
        message=message,
        spec=spec,
        plan=plan,
        tasks=fresh,
        progress=progress,
    )


def every_task(spec: JobSpec | None = None, **changes: Any) -> dict[str, dict[str, Any]]:
    """Keywords for snapshot() that change every task of the job."""
    names = (task.name for task in small_plan(spec or baselines_spec()).tasks)
    return {name.replace("-", "__"): dict(changes) for name in names}


def running(step: int, samples_per_second: float | None = None, **progress: Any) -> dict[str, Any]:
    told = {"step": step, "samples_per_second": samples_per_second, **progress}
    return {"state": TaskState.RUNNING, "node": "n1", "started_at": NOW, "progress": told}


def checkpoint(step: int, attempt: int = 1) -> CheckpointRef:
    return CheckpointRef(step=step, path="p", sha256="0" * 64, attempt=attempt, at=NOW)


def memory(total: int) -> MemoryBytes:
    return MemoryBytes(parameters=0, gradients=0, optimizer=0, activations=total)

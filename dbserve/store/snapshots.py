"""What Redis answers becomes a JobSnapshot. Pure."""

from collections.abc import Mapping, Sequence

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.snapshot import JobSnapshot
from dbserve.contracts.status import Intent, JobRecord, JobStatus, Progress, Task
from dbserve.lifecycle import job_reason, job_state
from dbserve.store import keys


def as_snapshot(
    head: Sequence[str], raw_tasks: Mapping[str, str], raw_progress: Mapping[str, str], spec: JobSpec, plan: JobPlan
) -> JobSnapshot:
    """From (record, intent, finished_at) of the job's hash and the raw tasks and progress."""
    record, intent, finished_at = JobRecord.model_validate_json(head[0]), Intent(head[1]), head[2]
    tasks = {task.name: Task.model_validate_json(raw_tasks[task.name]) for task in plan.tasks}
    current = list(tasks.values())
    reason, message = job_reason(current, intent)
    return JobSnapshot(
        record=record.model_copy(update={"intent": intent, "finished_at": float(finished_at) if finished_at else None}),
        status=job_state(current, intent),
        reason=reason,
        message=message,
        spec=spec,
        plan=plan,
        tasks=tasks,
        progress={
            name: Progress.model_validate_json(raw)
            for name, task in tasks.items()
            if (raw := raw_progress.get(keys.progress_field(task.run))) is not None
        },
    )


def matches(snapshot: JobSnapshot, status: JobStatus | None, labels: Mapping[str, str]) -> bool:
    """Whether a listing with these filters shows the job."""
    return (status is None or snapshot.status is status) and all(
        snapshot.record.labels.get(key) == value for key, value in labels.items()
    )

"""What Redis answers becomes a JobOutline. Pure."""

from collections.abc import Mapping, Sequence

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.snapshot import JobOutline, JobSnapshot
from dbserve.contracts.status import Intent, JobRecord, JobStatus, Progress, Task
from dbserve.lifecycle import job_reason, job_state
from dbserve.store import keys
from dbserve.store.connection import read_tasks


def as_outline(head: Sequence[str], raw_tasks: str, raw_progress: Mapping[str, str]) -> JobOutline:
    """From (record, intent, finished_at, ...) of the job's hash, the array of its tasks, and the raw progress."""
    record, intent, finished_at = JobRecord.model_validate_json(head[0]), Intent(head[1]), head[2]
    tasks = read_tasks(raw_tasks)
    current = list(tasks.values())
    reason, message = job_reason(current, intent)
    return JobOutline(
        record=record.model_copy(update={"intent": intent, "finished_at": float(finished_at) if finished_at else None}),
        status=job_state(current, intent),
        reason=reason,
        message=message,
        tasks=tasks,
        progress=current_progress(tasks, raw_progress),
    )


def current_progress(tasks: Mapping[str, Task], raw: Mapping[str, str]) -> dict[str, Progress]:
    """What each task's current attempt has told."""
    if not raw:
        return {}
    return {
        name: _dated(told)
        for name, task in tasks.items()
        if (told := raw.get(keys.progress_field(task.run))) is not None
    }


def _dated(told: str) -> Progress:
    """ "<unix seconds> <progress>": the heartbeat is dated by the store; the first schema had it by the worker."""
    at, space, progress = told.partition(" ")
    if not space or at.startswith("{"):
        return Progress.model_validate_json(told)
    return Progress.model_validate_json(progress).model_copy(update={"heartbeat_at": float(at)})


def in_full(outline: JobOutline, spec: JobSpec, plan: JobPlan) -> JobSnapshot:
    """The outline with what the job was asked for."""
    return JobSnapshot(**dict(outline), spec=spec, plan=plan)


def matches(outline: JobOutline, status: JobStatus | None, labels: Mapping[str, str]) -> bool:
    """Whether a listing with these filters shows the job."""
    return (status is None or outline.status is status) and all(
        outline.record.labels.get(key) == value for key, value in labels.items()
    )

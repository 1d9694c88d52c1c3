"""What Redis answers becomes a JobOutline. Pure."""

import logging
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.snapshot import JobOutline, JobSnapshot, ListedJob, Standing
from dbserve.contracts.status import Intent, JobRecord, JobStatus, Progress, Task
from dbserve.contracts.work import Work, sum_of
from dbserve.lifecycle import job_reason, job_state
from dbserve.store import keys
from dbserve.store.connection import read_tasks

log = logging.getLogger(__name__)


def as_outline(head: Sequence[str], raw_tasks: str, raw_progress: Mapping[str, str]) -> JobOutline:
    """From (record, intent, finished_at, ...) of the job's hash, the array of its tasks, and the raw progress."""
    record, tasks = _record(head), read_tasks(raw_tasks)
    current = list(tasks.values())
    reason, message = job_reason(current, record.intent)
    return JobOutline(
        record=record,
        status=job_state(current, record.intent),
        reason=reason,
        message=message,
        tasks=tasks,
        progress=current_progress(tasks, raw_progress),
        past=past_work(tasks, raw_progress),
    )


def current_progress(tasks: Mapping[str, Task], raw: Mapping[str, str]) -> dict[str, Progress]:
    """What each task's current attempt has told."""
    if not raw:
        return {}
    found = {name: _dated(raw.get(keys.progress_field(task.run))) for name, task in tasks.items()}
    return {name: progress for name, progress in found.items() if progress is not None}


def past_work(tasks: Mapping[str, Task], raw: Mapping[str, str]) -> dict[str, Work]:
    """What each task's ended attempts did together, where they told anything."""
    found = {name: past_work_of(raw.get(keys.past_field(name)), raw.get(keys.last_field(name))) for name in tasks}
    return {name: work for name, work in found.items() if work is not None}


def past_work_of(past: str | None, last: str | None) -> Work | None:
    """The sum of the older ones, and what the last one had told. None: neither is there."""
    works = [Work.model_validate_json(past)] if past is not None else []
    works += [progress.work] if (progress := _dated(last)) is not None else []
    return sum_of(works) if works else None


def _dated(told: str | None) -> Progress | None:
    """ "<unix seconds> <progress>": the heartbeat is dated by the store; the first schema had it by the worker.

    None where nothing was told, or what this version cannot read: progress is history, and must hold up nobody.
    """
    if told is None:
        return None
    at, space, progress = told.partition(" ")
    try:
        if not space or at.startswith("{"):
            return Progress.model_validate_json(told)
        return Progress.model_validate_json(progress).model_copy(update={"heartbeat_at": float(at)})
    except ValidationError as unreadable:
        log.debug("a progress that cannot be read is passed over: %s", unreadable)
        return None


def in_full(outline: JobOutline, spec: JobSpec, plan: JobPlan) -> JobSnapshot:
    """The outline with what the job was asked for."""
    return JobSnapshot(**dict(outline), spec=spec, plan=plan)


def as_listed(head: Sequence[str]) -> ListedJob:
    """From (record, intent, finished_at, standing) of the job's hash."""
    return ListedJob(record=_record(head), standing=Standing.model_validate_json(head[3]))


def matches(job: ListedJob, status: JobStatus | None, labels: Mapping[str, str]) -> bool:
    """Whether a listing with these filters shows the job."""
    return (status is None or job.standing.status is status) and all(
        job.record.labels.get(key) == value for key, value in labels.items()
    )


def _record(head: Sequence[str]) -> JobRecord:
    """With the intent as it stands, and the end, if there was one."""
    record, intent, finished_at = JobRecord.model_validate_json(head[0]), Intent(head[1]), head[2]
    return record.model_copy(update={"intent": intent, "finished_at": float(finished_at) if finished_at else None})

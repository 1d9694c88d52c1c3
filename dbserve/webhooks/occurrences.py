"""What of a change deserves to be told to webhooks. Pure."""

from collections.abc import Iterator, Mapping

from dbserve.contracts.status import (
    TERMINAL_JOB,
    CheckpointFailed,
    Crashed,
    Held,
    Intent,
    JobRecord,
    JobStatus,
    Reason,
    Restored,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.contracts.webhook import Occurrence, Topic
from dbserve.contracts.work import CheckpointStage
from dbserve.lifecycle import job_reason, job_state

_ENDS: Mapping[JobStatus, Topic] = {
    JobStatus.SUCCEEDED: Topic.JOB_SUCCEEDED,
    JobStatus.FAILED: Topic.JOB_FAILED,
    JobStatus.CANCELLED: Topic.JOB_CANCELLED,
}


def occurrences(
    record: JobRecord,
    before: Mapping[str, Task],
    after: Mapping[str, Task],
    intent: Intent,
    *,
    at: float,
    event: TaskEvent | None = None,
) -> Iterator[Occurrence]:
    """What happened to a job between `before` and `after`: all its tasks, and `intent` as it is now.

    `event` is what moved one of them; None: a wish of the user's moved any number.
    """
    status = job_state(list(after.values()), intent)

    def told(topic: Topic, **more: object) -> Occurrence:
        return Occurrence.model_validate(
            {
                "topic": topic,
                "at": at,
                "job_id": record.id,
                "job_name": record.name,
                "project": record.project,
                "labels": record.labels,
                "job_status": status,
                **more,
            }
        )

    if event is not None:
        name = event.run.task
        for topic, more in _of_a_task(before[name], after[name], event):
            yield told(topic, task=name, attempt=event.run.attempt, **more)
    if status in TERMINAL_JOB and job_state(list(before.values()), record.intent) not in TERMINAL_JOB:
        reason, message = job_reason(list(after.values()), intent)
        yield told(_ENDS[status], reason=reason, message=message)


def _of_a_task(before: Task, after: Task, event: TaskEvent) -> Iterator[tuple[Topic, dict[str, object]]]:
    match event:
        case Crashed(reason=reason, message=message):
            topic = Topic.BLOCK_FAILED if after.state is TaskState.FAILED else Topic.BLOCK_RESTARTED
            yield topic, {"reason": reason, "message": message}
        case Held(reason=Reason.UNSCHEDULABLE, message=message):
            yield Topic.BLOCK_UNSCHEDULABLE, {"reason": Reason.UNSCHEDULABLE, "message": message}
        case CheckpointFailed(step=step, message=message) if not before.failed_saves:  # a full disk is told once
            yield (
                Topic.CHECKPOINT_FAILED,
                {"reason": Reason.STORAGE_ERROR, "message": message, "step": step, "stage": CheckpointStage.SAVE},
            )
        case Restored(lost=lost):
            for ref in lost:
                more = {"message": ref.message, "step": ref.step, "stage": CheckpointStage.RESTORE}
                yield Topic.CHECKPOINT_FAILED, {"reason": Reason.CHECKPOINT_INVALID, **more}
        case _:
            return

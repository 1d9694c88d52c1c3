"""A snapshot as the REST API shows it. Pure."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from dbserve.contracts.card import ArchitectureCard
from dbserve.contracts.plan import TaskKind
from dbserve.contracts.snapshot import JobOutline, JobSnapshot, ListedJob, ModelRecord, Standing
from dbserve.contracts.status import TERMINAL_JOB, Intent, JobStatus, LoggedEvent, LogLine, TaskState
from dbserve.contracts.views import (
    ArchitectureView,
    BlockView,
    CheckpointView,
    CourseView,
    EventView,
    JobLinks,
    JobMetricsView,
    JobSummary,
    JobView,
    LogView,
    ModelSummary,
    ModelView,
    PointView,
    ProgressView,
    TaskCheckpointView,
    TaskView,
)
from dbserve.contracts.work import Point, thinned
from dbserve.errors import BlockNotFound
from dbserve.progress import conditions, eta_seconds, peak_bytes, step_of, task_eta_seconds


def job_summary(job: ListedJob | JobOutline) -> JobSummary:
    """Without its spec and plan (a job that does not run), it has no estimate of the time that is left."""
    if isinstance(job, ListedJob):
        stands, progress = job.standing, _saved(job.standing)
    else:
        stands, progress = job, _progress(job)
    return JobSummary(
        id=job.record.id,
        name=job.record.name,
        labels=job.record.labels,
        architecture=job.record.architecture,
        status=stands.status,
        reason=stands.reason,
        message=stands.message,
        created_at=utc(job.record.created_at),
        finished_at=when(job.record.finished_at),
        progress=progress,
    )


def job_view(snapshot: JobSnapshot) -> JobView:
    tasks = tuple(task_view(snapshot, task.name) for task in snapshot.plan.tasks)
    return JobView(
        **dict(job_summary(snapshot)),
        blocks=tuple(task for task in tasks if task.kind is TaskKind.BLOCK),
        tasks=tasks,
        memory_ratio=snapshot.plan.memory_ratio,
        contract_hash=snapshot.plan.contract_hash,
        warnings=snapshot.plan.warnings,
        spec=snapshot.spec,
        links=_links(snapshot),
    )


def task_view(snapshot: JobSnapshot, name: str) -> TaskView:
    task, total, step = snapshot.tasks[name], snapshot.plan.task(name).steps, step_of(snapshot, name)
    progress = snapshot.progress.get(name)
    waits = task.state is TaskState.PENDING and task.not_before > 0
    return TaskView(
        name=name,
        kind=task.kind,
        index=task.index,
        status=task.state,
        attempt=task.run.attempt,
        max_attempts=task.max_attempts,
        reason=task.reason,
        message=task.message,
        conditions=conditions(snapshot, task, time.time()),
        node=task.node,
        step=step,
        total=total,
        percent=_percent(step, total, done=task.state is TaskState.SUCCEEDED),
        eta_seconds=task_eta_seconds(snapshot, name),
        loss=progress.loss if progress else None,
        samples_per_second=progress.samples_per_second if progress else None,
        memory_peak=peak_bytes(progress.memory) if progress else None,
        heartbeat_at=when(progress.heartbeat_at) if progress else None,
        retry_at=utc(task.not_before) if waits else None,
    )


def block_views(snapshot: JobSnapshot) -> tuple[BlockView, ...]:
    """The blocks that this job trains, block 0 first."""
    return tuple(block_view(snapshot, task.index) for task in snapshot.plan.tasks if task.kind is TaskKind.BLOCK)


def block_view(snapshot: JobSnapshot, index: int) -> BlockView:
    """Raises BlockNotFound when the job does not train a block of this index."""
    names = [task.name for task in snapshot.plan.tasks if task.kind is TaskKind.BLOCK and task.index == index]
    if not names:
        raise BlockNotFound(f"job {snapshot.record.id} trains no block {index}; it cuts {len(snapshot.plan.blocks)}")
    task, plan, progress = snapshot.tasks[names[0]], snapshot.plan.blocks[index], snapshot.progress.get(names[0])
    return BlockView(
        **dict(task_view(snapshot, names[0])),
        layers=plan.layers,
        sigma_min=plan.sigma_min,
        sigma_max=plan.sigma_max,
        train_sigma_min=plan.train_sigma_min,
        train_sigma_max=plan.train_sigma_max,
        parameters=plan.parameters,
        memory_predicted=plan.memory,
        memory_measured=progress.memory if progress else None,
        grad_norm=progress.grad_norm if progress else None,
        learning_rate=progress.learning_rate if progress else None,
        samples_total=progress.samples_total if progress else 0,
        data_wait_seconds_total=progress.work.data_wait_seconds if progress else 0.0,
        last_step_at=when(progress.last_step_at) if progress else None,
        last_checkpoint=CheckpointView.model_validate(task.checkpoints[-1].model_dump()) if task.checkpoints else None,
        restarts=task.restarts,
        gpu=task.gpu,
        pid=task.pid,
        started_at=when(task.started_at),
        finished_at=when(task.finished_at),
    )


def metrics_view(snapshot: JobSnapshot, courses: Mapping[str, Sequence[Point]], most: int) -> JobMetricsView:
    """`most` points of each task, of what its attempts have told."""
    return JobMetricsView(
        job_id=snapshot.record.id,
        tasks=tuple(
            CourseView(
                name=task.name,
                kind=task.kind,
                index=task.index,
                total=task.steps,
                memory_predicted=snapshot.plan.network_of(task).memory.total,
                points=tuple(PointView.model_validate(point.model_dump()) for point in thinned(points, most)),
            )
            for task in snapshot.plan.tasks
            if (points := courses.get(task.name)) is not None
        ),
    )


def event_view(event: LoggedEvent) -> EventView:
    return EventView.model_validate(event.model_dump())


def log_view(line: LogLine) -> LogView:
    return LogView.model_validate(line.model_dump())


def model_summary(model: ModelRecord) -> ModelSummary:
    return ModelSummary(
        id=model.id,
        job_id=model.job_id,
        name=model.name,
        version=model.version,
        created_at=utc(model.created_at),
        contract_hash=model.contract_hash,
        download=f"/v1/models/{model.id}/download",
    )


def model_view(model: ModelRecord) -> ModelView:
    return ModelView(**dict(model_summary(model)), path=model.path, manifest=model.manifest)


def architecture_view(card: ArchitectureCard) -> ArchitectureView:
    properties = card.options_schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    defaults = {name: rule["default"] for name, rule in known.items() if isinstance(rule, dict) and "default" in rule}
    return ArchitectureView(kind=card.kind, summary=card.summary, options_schema=card.options_schema, defaults=defaults)


def checkpoint_views(outline: JobOutline) -> tuple[TaskCheckpointView, ...]:
    """Every checkpoint that a task of the job could go on from, in the plan's order, oldest first."""
    return tuple(
        TaskCheckpointView.model_validate({"task": name, **ref.model_dump()})
        for name, task in outline.tasks.items()
        for ref in task.checkpoints
    )


def _saved(standing: Standing) -> ProgressView:
    done, total = standing.steps_saved, standing.steps
    eta = 0.0 if standing.status is JobStatus.SUCCEEDED else None
    return ProgressView(step=done, total=total, percent=_percent(done, total), eta_seconds=eta)


def _progress(outline: JobOutline) -> ProgressView:
    step = sum(step_of(outline, name) for name in outline.tasks)
    total = sum(task.steps for task in outline.tasks.values())
    eta = 0.0 if outline.status is JobStatus.SUCCEEDED else None
    if isinstance(outline, JobSnapshot):
        eta = eta_seconds(outline)
    return ProgressView(step=step, total=total, percent=_percent(step, total), eta_seconds=eta)


def _percent(step: int, total: int, *, done: bool = False) -> float:
    return round(100.0 * step / total, 1) if total else 100.0 * done


def _links(snapshot: JobSnapshot) -> JobLinks:
    here, intent = f"/v1/jobs/{snapshot.record.id}", snapshot.record.intent
    done = {task.kind for task in snapshot.tasks.values() if task.state is TaskState.SUCCEEDED}
    ended = snapshot.status in TERMINAL_JOB
    goes_on = not ended and intent is not Intent.CANCEL
    lost = any(task.state in {TaskState.FAILED, TaskState.CANCELLED} for task in snapshot.tasks.values())
    return JobLinks(
        self=here,
        blocks=f"{here}/blocks",
        events=f"{here}/events",
        logs=f"{here}/logs",
        metrics=f"{here}/metrics",
        live=f"{here}/live",
        checkpoints=f"{here}/checkpoints",
        cancel=None if ended else f"{here}/cancel",
        pause=f"{here}/pause" if goes_on and intent is Intent.RUN else None,
        resume=f"{here}/resume" if goes_on and intent is Intent.PAUSE else None,
        retry=f"{here}/retry" if lost and (ended or goes_on) else None,
        report=f"{here}/report" if TaskKind.EVALUATION in done else None,
        model=f"/v1/models/{snapshot.record.id}" if TaskKind.ASSEMBLY in done else None,
    )


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def when(seconds: float | None) -> datetime | None:
    return None if seconds is None else utc(seconds)

"""Families of jobs."""

from collections import Counter as Tally
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from dbserve.contracts.plan import TRAINED, TaskKind
from dbserve.contracts.snapshot import JobOutline, JobSnapshot
from dbserve.contracts.status import JobStatus, TaskState
from dbserve.contracts.work import SAVE_BOUNDS, CheckpointStage, sum_of
from dbserve.metrics.durations import add_durations
from dbserve.progress import eta_seconds, measured_memory_ratio, work_of


def job_families(jobs: Sequence[JobOutline], begun: Sequence[JobSnapshot]) -> Iterator[Metric]:
    """Of all these jobs together, and of each that has begun."""
    yield _counted("dbserve_jobs", "Jobs that run or ended lately.", JobStatus, [job.status for job in jobs])
    states = [task.state for job in jobs for task in job.tasks.values() if task.kind is TaskKind.BLOCK]
    yield _counted("dbserve_blocks", "Blocks of the jobs that run or ended lately.", TaskState, states)
    yield from _of_each(begun)
    yield from _checkpoints(begun)


def _counted(name: str, meaning: str, statuses: type[JobStatus] | type[TaskState], found: Sequence[str]) -> Metric:
    tally = Tally(found)
    family = GaugeMetricFamily(name, meaning, labels=("status",))
    for status in statuses:
        family.add_metric((status.value,), tally[status])
    return family


def _of_each(begun: Sequence[JobSnapshot]) -> Iterator[Metric]:
    info = GaugeMetricFamily("dbserve_job_info", "What a job is.", labels=("job_id", "name", "architecture"))
    eta = GaugeMetricFamily(
        "dbserve_job_eta_seconds", "Until all training has ended, where a task has told its speed.", labels=("job_id",)
    )
    ratio = GaugeMetricFamily(
        "dbserve_job_memory_ratio", "Bytes of the largest block / end-to-end, in training.", labels=("job_id", "kind")
    )
    for job in begun:
        info.add_metric((job.record.id, job.record.name, job.record.architecture), 1)
        if (seconds := eta_seconds(job)) is not None:
            eta.add_metric((job.record.id,), seconds)
        ratio.add_metric((job.record.id, "predicted"), job.plan.memory_ratio)
        if (measured := measured_memory_ratio(job)) is not None:
            ratio.add_metric((job.record.id, "measured"), measured)
    yield from (info, eta, ratio)


def _checkpoints(begun: Sequence[JobSnapshot]) -> Iterator[Metric]:
    saved = HistogramMetricFamily(
        "dbserve_checkpoint_save_duration_seconds",
        "From a state in memory to a checkpoint that counts.",
        labels=("job_id",),
    )
    failed = CounterMetricFamily(
        "dbserve_checkpoint_failures",
        "Tries to save that failed (save), checkpoints not begun while one was being saved (overrun), not whole when "
        "read back (restore).",
        labels=("job_id", "stage"),
    )
    for job in begun:
        together = sum_of(work_of(job, task.name) for task in job.plan.tasks if task.kind in TRAINED)
        add_durations(saved, (job.record.id,), together.save_seconds, SAVE_BOUNDS)
        for stage in CheckpointStage:
            failed.add_metric((job.record.id, stage.value), together.failed_checkpoints.get(stage, 0))
    yield from (saved, failed)

"""Where things lie under the artefact root. Paths in the store are relative to it, so that the root may move."""

from pathlib import PurePosixPath

from dbserve.contracts.status import Run


def job_directory(job_id: str) -> PurePosixPath:
    return PurePosixPath("jobs", job_id)


def task_directory(job_id: str, task: str) -> PurePosixPath:
    return job_directory(job_id) / task


def checkpoint_directory(run: Run, step: int) -> PurePosixPath:
    """Scoped by attempt: two attempts never write to the same place."""
    return task_directory(run.job_id, run.task) / f"attempt-{run.attempt}" / f"step-{step:08d}"


def model_directory(model_id: str) -> PurePosixPath:
    return PurePosixPath("models", model_id)

"""Where things lie under the artefact root. Paths in the store are relative to it, so that the root may move."""

import secrets
from pathlib import PurePosixPath

from dbserve.contracts.status import Run
from dbserve.errors import StorageError

Place = str | PurePosixPath  # relative to the root, with slashes


def job_directory(job_id: str) -> PurePosixPath:
    return PurePosixPath("jobs", job_id)


def task_directory(job_id: str, task: str) -> PurePosixPath:
    return job_directory(job_id) / task


def attempt_directory(run: Run) -> PurePosixPath:
    """Scoped by attempt: two attempts never write to the same place."""
    return task_directory(run.job_id, run.task) / f"attempt-{run.attempt}"


def new_checkpoint_directory(run: Run, step: int) -> PurePosixPath:
    """Another at every call: no name is written twice, even where a store that lost writes counts an attempt again."""
    return attempt_directory(run) / f"step-{step:08d}-{secrets.token_hex(4)}"


def attempt_of(name: str) -> int | None:
    """The attempt whose directory has this name; None: no attempt's."""
    prefix, _, number = name.partition("-")
    return int(number) if prefix == "attempt" and number.isascii() and number.isdecimal() else None


def model_directory(model_id: str) -> PurePosixPath:
    return PurePosixPath("models", model_id)


def inside(place: Place) -> PurePosixPath:
    """The place, once it is sure to lie under the root. Raises StorageError."""
    path = PurePosixPath(place)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise StorageError(f"{str(place)!r} does not lie under the artefact root")
    return path


def home_of(place: Place) -> PurePosixPath:
    """The job's or the model's directory that the place belongs to."""
    return PurePosixPath(*inside(place).parts[:2])

"""The artefact store: checkpoints and models, in a directory or in object storage, whole or invisible.

    jobs/<job>/<task>/attempt-<n>/step-<step>-<random>/   a checkpoint: manifest.json last
    models/<model>/                                       a model:      model.json last

Knows bytes and names only; what is in a checkpoint is workers.checkpoint's, and which one counts is the store's.
"""

from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dbserve.artefacts.local import LocalArtefacts
from dbserve.artefacts.places import (
    Place,
    attempt_directory,
    attempt_of,
    job_directory,
    model_directory,
    new_checkpoint_directory,
    task_directory,
)
from dbserve.artefacts.protocol import Artefacts, StoredFile

__all__ = [
    "Artefacts",
    "LocalArtefacts",
    "Place",
    "StoredFile",
    "attempt_directory",
    "attempt_of",
    "job_directory",
    "model_directory",
    "new_checkpoint_directory",
    "open_artefacts",
    "task_directory",
]


@lru_cache(maxsize=8)
def open_artefacts(location: str) -> Artefacts:
    """The store at an absolute path, or at a URI such as s3://bucket/prefix?region=eu-west-1. Connects on first use.

    Options of an S3 URI: region, scheme, endpoint_override (host:port of another S3-speaking server).
    """
    if "://" not in location:
        return LocalArtefacts(Path(location))
    if location.startswith("file://"):
        return LocalArtefacts(Path(unquote(urlsplit(location).path)))
    from dbserve.artefacts.objects import ObjectArtefacts  # late: pyarrow's file systems take a moment to load

    return ObjectArtefacts(location)

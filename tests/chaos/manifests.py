"""The checkpoints that lie in an artefact store, and whether each is whole: bytes and digests, without torch."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbserve.artefacts import Artefacts, job_directory

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Found:
    """A directory where a checkpoint may lie. `sha256` is of its manifest; None: there is none."""

    path: str  # relative to the artefact root, as a CheckpointRef has it
    sha256: str | None
    damage: str | None = None  # the first thing that is wrong with it


def found_checkpoints(artefacts: Artefacts, job_id: str) -> list[Found]:
    """Everything under the attempts of the job's tasks, half-written directories too."""
    home, found = job_directory(job_id), list[Found]()
    for task in artefacts.names(home):
        for attempt in artefacts.names(home / task):
            for name in artefacts.names(home / task / attempt):
                place = home / task / attempt / name
                with artefacts.fetch(place) as directory:
                    found.append(_look(str(place), directory))
    return found


def _look(path: str, directory: Path) -> Found:
    manifest = directory / MANIFEST
    if not manifest.is_file():
        return Found(path, None, f"{MANIFEST} is missing")
    raw = manifest.read_bytes()
    sha256 = hashlib.sha256(raw).hexdigest()
    try:
        files: dict[str, dict[str, Any]] = json.loads(raw)["files"]
    except (ValueError, KeyError, TypeError):
        return Found(path, sha256, f"{MANIFEST} is no manifest")
    for name, said in files.items():
        file = directory / name
        if not file.is_file():
            return Found(path, sha256, f"{name} is missing")
        if hashlib.sha256(file.read_bytes()).hexdigest() != said["sha256"]:
            return Found(path, sha256, f"the bytes of {name} are others")
    return Found(path, sha256)

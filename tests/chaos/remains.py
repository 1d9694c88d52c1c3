"""What a soak leaves behind, and must not: processes, zombies, files in the artefact store."""

import contextlib
import os
import time
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import psutil

from tests.acceptance.conftest import Service

MARK = "SOAK_MARK"  # in the environment of the service and of all that it starts
REAPED_SECONDS = 5.0  # a dead child may stay unasked for


def marked_processes(mark: str) -> list[str]:
    """Living processes that carry the mark in their environment, other than this one."""
    wanted = f"{MARK}={mark}".encode()
    found: list[str] = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{entry.name} {command[:120]}")
    return found


def zombies(service: Service) -> list[str]:
    """Dead descendants of the service that nobody has asked for in all of REAPED_SECONDS."""
    seen = _zombies(service)
    deadline = time.monotonic() + REAPED_SECONDS
    while seen and time.monotonic() < deadline:
        time.sleep(0.2)
        now = _zombies(service)
        seen = {pid: name for pid, name in seen.items() if pid in now}
    return [f"{pid} {name}" for pid, name in seen.items()]


def _zombies(service: Service) -> dict[int, str]:
    found: dict[int, str] = {}
    for process in service.descendants():
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                found[process.pid] = process.name()
    return found


def unknown_directories(artefacts: Path, known: Container[str]) -> list[str]:
    """Directories of jobs and models that the store does not know."""
    return [
        f"{kind}/{home.name} belongs to no job"
        for kind in ("jobs", "models")
        for home in _children(artefacts / kind)
        if home.name not in known
    ]


def everything_below(directory: Path) -> list[str]:
    """All names there are, relative to the directory."""
    return [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*"))]


def _children(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def as_bad(columns: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Only those in which there is something."""
    return {column: found for column, each in columns.items() if (found := tuple(each))}

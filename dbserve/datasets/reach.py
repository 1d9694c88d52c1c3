"""What this process may read for a job, held against what a name leads to on this machine's disk.

A process has one reach, set by its composition root before the first job, as it has one umask: every way of opening a
shard asks here, so none can be forgotten. The control plane asks when a job is submitted, and a worker asks again.
"""

import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dbserve.admission import AT_HOME, LOCAL, Allowed, Location, Unclear, locate
from dbserve.errors import DataInvalid

SETTING = "DBSERVE_DATA_ALLOW"

_allowed: Allowed = AT_HOME


def limit_reach(allowed: Allowed, *, own: Path) -> None:
    """From now on this process reads `allowed` alone, and the data sets that it writes itself below `own`."""
    global _allowed
    _allowed = allowed.with_local(str(own.absolute() / "builtin"))


def reach() -> Allowed:
    """What this process may read."""
    return _allowed


def admit(uri: str, *, pointer: str, allowed: Allowed | None = None) -> Location:
    """Where a URI or a path leads, if it may be read: by `allowed`, else by what this process may.

    Of a local path, which comes out absolute, it is what its links lead to that counts. Whether there is anything, is
    not asked: who may not read must not learn what there is. Raises DataInvalid at `pointer`.
    """
    try:
        place = locate(uri)
    except Unclear as unclear:
        raise DataInvalid(f"cannot read what this names: {unclear}", pointer) from None
    if place.scheme == LOCAL:
        try:
            place = place._replace(path=str(Path(place.path).expanduser().absolute()))
        except RuntimeError:  # of expanduser
            raise DataInvalid(f"cannot read {uri}: there is no such user on this machine", pointer) from None
    rules = _allowed if allowed is None else allowed
    if not _permits(rules, place):
        raise DataInvalid(f"cannot read {uri}: this service reads {rules} alone ({SETTING} says what)", pointer)
    return place


@contextmanager
def open_local(place: Location, *, pointer: str) -> Generator[IO[bytes]]:
    """A regular file that admit() let in, if it still is what was let in: a link may have been turned since.

    Raises DataInvalid, OSError.
    """
    # without waiting: opening a pipe would, until somebody writes
    descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataInvalid(f"{place.path} is no file", pointer)
        if not _permits(_allowed, place._replace(path=_opened(descriptor, place.path))):
            raise DataInvalid(f"cannot read {place.path}: it leads elsewhere now", pointer)
        yield file


def _permits(rules: Allowed, place: Location) -> bool:
    if place.scheme != LOCAL:
        return rules.permits(place)
    real = place._replace(path=os.path.realpath(place.path))
    return rules.with_local(*map(os.path.realpath, rules.local_roots())).permits(real)


def _opened(descriptor: int, path: str) -> str:
    """Where an open file lies, as the kernel knows it; where it does not tell, what the path leads to."""
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except OSError:
        return os.path.realpath(path)

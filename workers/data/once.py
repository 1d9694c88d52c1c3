"""What is made once per node: the first process makes a directory under a lock, the others wait and read it.

<home>/<key>/           whole, and only read
<home>/<key>.lock       held (flock) while one process writes and the others wait
<home>/<key>.partial/   what is being written; renamed when whole
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dbserve.datasets.shards import shard_version

_STAT_THREADS = 8


def key_of(shards: Sequence[str], *others: object, pointer: str) -> str:
    """Digests the shards' uris, sizes and etags or times of modification (one that changed is another key), and the
    JSON of `others`."""
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        versions = list(pool.map(partial(shard_version, pointer=pointer), shards))
    return hashlib.sha256(json.dumps([versions, *others]).encode()).hexdigest()[:32]


def made_once(entry: Path, *, whole: Callable[[Path], bool], make: Callable[[Path], None]) -> Path:
    """`entry`, made by `make` into an empty directory unless it is there and `whole`. Raises OSError, and what make
    raises; nothing is left of it then."""
    if whole(entry):
        return entry
    entry.parent.mkdir(parents=True, exist_ok=True)
    with _locked(entry.with_suffix(".lock")):
        if not whole(entry):
            _make(entry, make)
    return entry


def _make(entry: Path, make: Callable[[Path], None]) -> None:
    building = entry.with_suffix(".partial")
    for left_behind in (building, entry):  # by a process or a machine that died; the lock is ours
        shutil.rmtree(left_behind, ignore_errors=True)
    building.mkdir()
    try:
        make(building)
        building.rename(entry)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold the file's lock; the kernel releases it when the process ends, however it ends."""
    with path.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield

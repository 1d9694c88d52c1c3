"""Directories on the node that are needed for a moment: what goes to object storage, or has come from it.

They lie under the temporary directory (TMPDIR) and are removed when they are no longer needed; those of a process that
was killed, by the next one that needs any. A lock, which the kernel drops with its holder, tells them apart.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from dbserve.errors import StorageError


@contextmanager
def scratch_directory() -> Generator[Path]:
    """An empty directory of this process alone. Raises StorageError when none can be made."""
    try:
        home = _home()
        with _locked(home):  # nobody sweeps between the making of a directory and its lock
            _sweep(home)
            directory = Path(tempfile.mkdtemp(dir=home))
            held = os.open(directory, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        raise StorageError(f"cannot make a directory under {tempfile.gettempdir()}: {error}") from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)


def _home() -> Path:
    home = Path(tempfile.gettempdir()) / f"dbserve-scratch-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.is_symlink() or home.stat().st_uid != os.getuid():
        raise PermissionError(f"{home} belongs to somebody else")
    return home


def _sweep(home: Path) -> None:
    for left in home.iterdir():
        with suppress(OSError), _locked(left, fcntl.LOCK_NB):  # held: its process lives
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(directory: Path, how: int = 0) -> Generator[None]:
    """Raises BlockingIOError when `how` is LOCK_NB and another holds it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)

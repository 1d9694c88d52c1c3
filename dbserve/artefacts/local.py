"""Artefacts in a directory: of this machine, or of a file system that all nodes share."""

import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from dbserve.artefacts.places import Place, home_of, inside
from dbserve.artefacts.protocol import CHUNK, StoredFile
from dbserve.errors import StorageError


class LocalArtefacts:
    """Staged beside its target, synced, and renamed once."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def location(self) -> str:
        return str(self._root)

    @contextmanager
    def whole(self, place: Place, *, last: str) -> Generator[Path]:
        """Files and directories are synced before the rename, the parent after it; `last` needs no care of its own."""
        target = self._at(place)
        building = target.parent / f".{target.name}.{uuid.uuid4().hex}.partial"
        try:
            _make_durable_directory(target.parent)
            building.mkdir()
            yield building
            for path in [*building.iterdir(), building]:
                _sync(path)
            building.rename(target)
            _sync(target.parent)
        except OSError as error:
            raise StorageError(f"cannot write {target}: {error}") from error
        finally:
            shutil.rmtree(building, ignore_errors=True)

    @contextmanager
    def fetch(self, place: Place) -> Generator[Path]:
        """The directory itself."""
        directory, home = self._at(place), self._at(home_of(place))
        if not self._exists(directory) and not self._exists(home):
            raise StorageError(f"nothing of {home} is there: is it another machine's disk, or not mounted?")
        yield directory

    def names(self, place: Place) -> tuple[str, ...]:
        directory = self._at(place)
        try:
            return tuple(sorted(path.name for path in directory.iterdir()))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StorageError(f"cannot read {directory}: {error}") from error

    def files(self, place: Place) -> tuple[StoredFile, ...]:
        """Links are left out, and what lies behind a linked directory: they could lead outside."""
        directory = self._at(place).resolve()
        if not directory.is_relative_to(self._root.resolve()) or not (self._exists(directory) and directory.is_dir()):
            raise StorageError(f"there is no directory {place} under the artefact root {self._root}")
        try:
            found = sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
            return tuple(
                StoredFile(path.relative_to(directory).as_posix(), path.stat().st_size)
                for path in found
                if path.resolve().is_relative_to(directory)
            )
        except OSError as error:
            raise StorageError(f"cannot read {directory}: {error}") from error

    def read(self, place: Place) -> Generator[bytes]:
        path = self._at(place)
        try:
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}") from error

    def remove(self, place: Place) -> None:
        directory = self._at(place)
        try:
            shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"cannot remove {directory}: {error}") from error

    def prepare(self) -> None:
        try:
            _make_durable_directory(self._root)
        except OSError as error:
            raise StorageError(f"cannot make the artefact root {self._root}: {error}") from error

    def check(self) -> None:
        if not self._root.is_dir():
            raise StorageError("the artefact root is not a directory that this process can see")

    def _at(self, place: Place) -> Path:
        return self._root / inside(place)

    def _exists(self, path: Path) -> bool:
        """A directory that cannot be looked at is not one that is missing."""
        try:
            path.stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}") from error
        return True


def _make_durable_directory(directory: Path) -> None:
    """With its parents; each new name is synced, or a power cut could take a directory with all that is in it."""
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in made:
        _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

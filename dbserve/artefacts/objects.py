"""Artefacts in object storage: whatever pyarrow.fs, called only here as it ships no types, knows (s3, gs, abfs)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.fs  # pyright: ignore[reportMissingTypeStubs]

from dbserve.artefacts.places import Place, home_of, inside
from dbserve.artefacts.protocol import CHUNK, StoredFile
from dbserve.artefacts.scratch import scratch_directory
from dbserve.errors import ConfigInvalid, StorageError
from dbserve.failpoints import failpoint

_fs = cast("Any", pyarrow.fs)
_NOT_A_LOCATION = cast("tuple[type[Exception], ...]", (cast("Any", pyarrow).ArrowException, ValueError))
_FAILURES = (*_NOT_A_LOCATION, OSError)


class ObjectArtefacts:
    """An object appears whole or not at all, but a directory does not: its last file tells that the others are there.

    What a failed upload left behind stays until retention removes it: another attempt may be writing beside it.
    """

    def __init__(self, uri: str) -> None:
        """Connects on first use. Credentials belong into the environment (AWS_ACCESS_KEY_ID, ...); see location."""
        self._uri = uri

    @property
    def location(self) -> str:
        """Without user, password and query."""
        parts = urlsplit(self._uri)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @contextmanager
    def whole(self, place: Place, *, last: str) -> Generator[Path]:
        target = self._at(place)
        with scratch_directory() as staged:
            try:
                yield staged
            except OSError as error:
                raise StorageError(f"cannot stage {place} in {staged}: {error}") from error
            with self._saying(f"cannot write {place}"):
                for path in sorted(staged.iterdir()):
                    if path.name != last:
                        self._send(path, f"{target}/{path.name}")
                failpoint("checkpoint.content")
                self._send(staged / last, f"{target}/{last}")

    @contextmanager
    def fetch(self, place: Place) -> Generator[Path]:
        """A copy in a scratch directory of this node."""
        source = self._at(place)
        found = self._under(source)
        if not found and not self._under(self._at(home_of(place))):
            self.check()
            raise StorageError(f"nothing of {home_of(place)} is in {self.location}")
        with scratch_directory() as local:
            for file in found:
                path = local / file.name
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("wb") as copy:
                        for chunk in self.read(inside(place) / file.name):
                            copy.write(chunk)
                except OSError as error:
                    raise StorageError(f"cannot keep a copy of {place} in {local}: {error}") from error
            yield local

    def names(self, place: Place) -> tuple[str, ...]:
        with self._saying(f"cannot list {place}"):
            selector = _fs.FileSelector(self._at(place), allow_not_found=True)
            found = cast("list[Any]", self._files.get_file_info(selector))
        return tuple(sorted(str(info.base_name) for info in found))

    def files(self, place: Place) -> tuple[StoredFile, ...]:
        found = self._under(self._at(place))
        if not found:
            self.check()
            raise StorageError(f"there is no directory {place} in {self.location}")
        return found

    def read(self, place: Place) -> Generator[bytes]:
        with self._saying(f"cannot read {place}"), self._files.open_input_stream(self._at(place)) as stream:
            while chunk := cast(bytes, stream.read(CHUNK)):
                yield chunk

    def remove(self, place: Place) -> None:
        with self._saying(f"cannot remove {place}"):
            try:
                self._files.delete_dir(self._at(place))
            except FileNotFoundError:
                return

    def prepare(self) -> None:
        """Nothing: a bucket is made by those who pay for it."""

    def check(self) -> None:
        bucket = PurePosixPath(self._root).parts[0]
        with self._saying("the artefact store does not answer"):
            info = self._files.get_file_info(bucket)
        if info.type == _fs.FileType.NotFound:
            raise StorageError(f"{self.location}: there is no bucket {bucket!r}")

    def _under(self, path: str) -> tuple[StoredFile, ...]:
        with self._saying(f"cannot list {path}"):
            selector = _fs.FileSelector(path, recursive=True, allow_not_found=True)
            found = cast("list[Any]", self._files.get_file_info(selector))
        kept = (info for info in found if info.type == _fs.FileType.File)
        return tuple(sorted((_stored(info, path) for info in kept), key=lambda file: file.name))

    def _send(self, path: Path, target: str) -> None:
        _fs.copy_files(str(path), target, source_filesystem=_fs.LocalFileSystem(), destination_filesystem=self._files)

    @contextmanager
    def _saying(self, what: str) -> Generator[None]:
        """pyarrow's errors, which are of many kinds, as StorageError. They name bucket and key, not the credentials."""
        try:
            yield
        except _FAILURES as error:
            raise StorageError(f"{what}: {error}") from error

    def _at(self, place: Place) -> str:
        below = inside(place)  # before anything is asked of the store
        return f"{self._root}/{below}"

    @property
    def _root(self) -> str:
        return self._opened[1]

    @property
    def _files(self) -> Any:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """pyarrow's file system, and the root in it. Raises ConfigInvalid when it knows no such location."""
        try:
            files, root = cast("tuple[Any, str]", _fs.FileSystem.from_uri(self._uri))
        except _NOT_A_LOCATION:  # its message may repeat the credentials
            raise ConfigInvalid(f"artifacts: pyarrow cannot open {self.location} with the options given") from None
        except OSError as error:  # where the region of a bucket is asked for
            raise StorageError(f"{self.location} does not answer: {error}") from error
        return files, root.rstrip("/")


def _stored(info: Any, directory: str) -> StoredFile:
    name = str(inside(str(info.path).removeprefix(f"{directory}/")))
    return StoredFile(name, int(info.size))

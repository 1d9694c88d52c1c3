"""A tar stream of a model becomes a directory: whole, or not there."""

import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dbserve.errors import StorageError


def unpack(chunks: Iterator[bytes], directory: Path, name: str) -> Path:
    """Writes the stream's files, all of which lie under `name`, to directory/name and returns that path.

    Raises FileExistsError when it is there already, StorageError when the stream is not such an archive.
    """
    target = directory / name
    if target.exists():
        raise FileExistsError(f"{target} is there already")
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=directory) as scratch:
        try:
            with tarfile.open(fileobj=io.BufferedReader(_Stream(chunks)), mode="r|") as tar:
                for member in tar:
                    _write(tar, member, Path(scratch), name)
        except tarfile.TarError as error:
            raise StorageError(f"the download is not a whole archive: {error}") from None
        inside = Path(scratch) / name
        if not inside.is_dir():
            raise StorageError("the download holds no model")
        return inside.rename(target)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, scratch: Path, name: str) -> None:
    path = PurePosixPath(member.name)
    content = tar.extractfile(member) if member.isreg() else None
    if content is None or path.is_absolute() or ".." in path.parts or path.parts[0] != name:
        raise StorageError(f"the download holds {member.name!r}, which is no file of the model")
    target = scratch / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


class _Stream(io.RawIOBase):
    """Chunks as a file to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # pyright: ignore[reportArgumentType]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        taken, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(taken)] = taken
        return len(taken)

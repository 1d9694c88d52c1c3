"""A model directory as a tar stream, made while it is sent."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dbserve.errors import StorageError

CHUNK = 256 * 1024


@dataclass(frozen=True)
class Archive:
    """The regular files of one directory under `name`. Links are left out: they could lead outside."""

    name: str
    members: tuple[tuple[Path, tarfile.TarInfo], ...]

    @property
    def size(self) -> int:
        """Bytes of the stream, known before it starts, so that a client sees when one was cut short."""
        return sum(len(_header(member)) + _padded(member.size) for _, member in self.members) + 2 * tarfile.BLOCKSIZE

    def chunks(self) -> Iterator[bytes]:
        """Raises StorageError when a file is no longer what it was: the stream then breaks, and its length tells."""
        for path, member in self.members:
            yield _header(member)
            left = member.size
            with path.open("rb") as file:
                while chunk := file.read(min(CHUNK, left)):
                    left -= len(chunk)
                    yield chunk
            if left:
                raise StorageError(f"{path.name} became shorter while it was read")
            yield bytes(_padded(member.size) - member.size)
        yield bytes(2 * tarfile.BLOCKSIZE)


def archive(root: Path, relative: str, name: str, *, at: float) -> Archive:
    """What `relative` under the artefact root holds. `at` (unix seconds) dates every member.

    Raises StorageError when the directory is not there, or does not lie under the root.
    """
    directory = (root / relative).resolve()
    if not directory.is_relative_to(root.resolve()) or not directory.is_dir():
        raise StorageError(f"the files of {name} are not under this server's artefact root")
    found = sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    inside = [path for path in found if path.resolve().is_relative_to(directory)]  # no linked directory on the way
    return Archive(name, tuple((path, _member(path, f"{name}/{path.relative_to(directory)}", at)) for path in inside))


def _member(path: Path, name: str, at: float) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = path.stat().st_size
    member.mode = 0o644
    member.mtime = int(at)
    return member


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(format=tarfile.GNU_FORMAT)  # files may be larger than ustar's 8 GiB


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

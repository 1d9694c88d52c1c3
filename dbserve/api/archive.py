"""A model directory as a tar stream, made while it is sent."""

import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import PurePosixPath

from dbserve.artefacts import Artefacts, Place
from dbserve.errors import StorageError


@dataclass(frozen=True)
class Archive:
    """The files of one directory of the artefact store, under `name`."""

    artefacts: Artefacts
    name: str
    members: tuple[tuple[PurePosixPath, tarfile.TarInfo], ...]

    @property
    def size(self) -> int:
        """Bytes of the stream, known before it starts, so that a client sees when one was cut short."""
        return sum(len(_header(member)) + _padded(member.size) for _, member in self.members) + 2 * tarfile.BLOCKSIZE

    def chunks(self) -> Iterator[bytes]:
        """Raises StorageError when a file is no longer what it was: the stream then breaks, and its length tells."""
        for place, member in self.members:
            yield _header(member)
            left = member.size
            with closing(self.artefacts.read(place)) as pieces:
                for piece in pieces:
                    yield piece[:left]
                    left -= min(left, len(piece))
                    if not left:
                        break
            if left:
                raise StorageError(f"{place.name} became shorter while it was read")
            yield bytes(_padded(member.size) - member.size)
        yield bytes(2 * tarfile.BLOCKSIZE)


def archive(artefacts: Artefacts, directory: Place, name: str, *, at: float) -> Archive:
    """What lies in a directory of the artefact store. `at` (unix seconds) dates every member.

    Raises StorageError when it is not there, or does not lie under the root.
    """
    files = artefacts.files(directory)
    return Archive(
        artefacts,
        name,
        tuple((PurePosixPath(directory) / file.name, _member(f"{name}/{file.name}", file.size, at)) for file in files),
    )


def _member(name: str, size: int, at: float) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mode = 0o644
    member.mtime = int(at)
    return member


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(format=tarfile.GNU_FORMAT)  # files may be larger than ustar's 8 GiB


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

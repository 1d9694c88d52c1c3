"""What every artefact store can do, wherever it keeps its files."""

from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dbserve.artefacts.places import Place

CHUNK = 1024 * 1024  # bytes read at a time


@dataclass(frozen=True)
class StoredFile:
    name: str  # relative to the directory that was asked for, with slashes
    size: int  # bytes


class Artefacts(Protocol):
    """Directories of files that are whole or invisible. Places are relative to the root.

    Every method raises StorageError when the store cannot be reached, is full, or refuses; a place outside the root is
    refused too.
    """

    @property
    def location(self) -> str:
        """Where it is, for people: without credentials."""
        ...

    def whole(self, place: Place, *, last: str) -> AbstractContextManager[Path]:
        """An empty local directory; what the body leaves in it becomes the directory `place`, which must not exist yet.

        The file `last` becomes visible last, once all others are durable: with it the directory is whole. When the body
        raises, nothing becomes visible. Its own OSErrors become StorageErrors.
        """
        ...

    def fetch(self, place: Place) -> AbstractContextManager[Path]:
        """The directory as local files, to read only, while the context lasts. Empty or missing where it is not there.

        Raises StorageError also when nothing of the whole job or model is there: a store that was lost from sight, or
        another node's disk, is not a damaged checkpoint.
        """
        ...

    def names(self, place: Place) -> tuple[str, ...]:
        """What lies directly in a directory, leftovers included; nothing where it is not there."""
        ...

    def files(self, place: Place) -> tuple[StoredFile, ...]:
        """Every file under a directory, by name, links left out. Raises StorageError where it is not there."""
        ...

    def read(self, place: Place) -> Generator[bytes]:
        """A file's bytes, piece by piece."""
        ...

    def remove(self, place: Place) -> None:
        """Removes a directory and everything under it; it may be gone already."""
        ...

    def prepare(self) -> None:
        """Makes the root where that is ours to make: a local directory. A bucket is not."""
        ...

    def check(self) -> None:
        """Raises StorageError, saying what is missing, unless the root is there."""
        ...

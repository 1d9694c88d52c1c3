"""Parquet shards, local or on an object store: finding them, opening them, telling whether one has changed."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import IO, Any, Literal, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from dbserve.admission import LOCAL, WEB, Allowed, Location
from dbserve.datasets.parquet import PARQUET_ERRORS, Shard, parquet_shard
from dbserve.datasets.reach import admit, open_local
from dbserve.datasets.web import open_buffered, open_web
from dbserve.errors import DataInvalid

Role = Literal["train", "test"]

_GLOB = re.compile(r"[*?\[]")
_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
_NOT: dict[Role, tuple[str, ...]] = {  # what a directory may hold for other ends, by how the names begin
    "train": ("test-", "val-", "valid-", "validation-"),
    "test": ("train-",),
}


def find_shards(uri: str, *, role: Role, pointer: str, allowed: Allowed | None = None) -> tuple[str, ...]:
    """The shards a uri names, sorted: absolute local paths or full urls.

    A directory stands for the *.parquet files in it; where their names start with "train-" or "test-", for those of
    `role`. Files of held-out rows (test-, val-, valid-, validation-) are never trained on. Raises DataInvalid at
    `pointer` when nothing is there, or when any of it may not be read: by `allowed`, else by this process.
    """
    place = admit(uri, pointer=pointer, allowed=allowed)
    if place.scheme in WEB:
        with _explained(f"{uri} cannot be read", pointer), open_web(place, pointer=pointer):
            return (place.url,)
    with _explained(f"{uri} cannot be read", pointer):
        filesystem, path = _filesystem(place)
        if filesystem.isfile(path):  # first: a file's name may hold a bracket
            found, empty = [path], ""
        elif _GLOB.search(path):
            found, empty = sorted(cast("list[str]", filesystem.glob(path))), "no file matches"
            found = [name for name in found if not filesystem.isdir(name)]
        elif filesystem.isdir(path):
            names = cast("list[str]", filesystem.ls(path, detail=False))
            found = _of_role(sorted(name for name in names if name.endswith(".parquet")), role)
            empty = f"no {role} shard (*.parquet) lies in the directory"
        else:
            found, empty = [], "no such file or directory:"
    if not found:
        raise DataInvalid(f"{empty} {uri if place.scheme != LOCAL else path}", pointer)
    shards = tuple(_absolute(name, place.scheme) for name in found)
    for shard in shards:  # links among them may lead elsewhere
        admit(shard, pointer=pointer, allowed=allowed)
    return shards


def shard_version(uri: str, *, pointer: str) -> dict[str, str]:
    """What changes when the shard's bytes change: its size, and its etag or time of modification."""
    place = admit(uri, pointer=pointer)
    with _explained(f"shard {uri} cannot be read", pointer):
        if place.scheme in WEB:
            with open_web(place, pointer=pointer) as file:
                return {"uri": uri, "size": str(file.size), "version": file.version}
        filesystem, path = _filesystem(place)
        info = cast("dict[str, object]", filesystem.info(path))
    version = next((f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key) is not None), "")
    return {"uri": uri, "size": str(info.get("size")), "version": version}


def read_file(uri: str, *, most: int, pointer: str) -> bytes:
    """A whole file of at most `most` bytes. Raises DataInvalid when it is missing, unreadable or larger."""
    with _explained(f"{uri} cannot be read", pointer), _opened(uri, pointer) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise DataInvalid(f"{uri} is larger than {most:,} bytes", pointer)
    return content


def absolute_uri(uri: str, *, pointer: str) -> str:
    """The uri from wherever it is read: an absolute local path or a full url."""
    place = admit(uri, pointer=pointer)
    return place.path if place.scheme == LOCAL else place.url


@contextmanager
def open_shard(uri: str, *, pointer: str) -> Generator[Shard]:
    """One shard, opened; the footer is read. Raises DataInvalid naming the shard when it is missing or not parquet."""
    with (
        _explained(f"shard {uri} cannot be read", pointer),
        _opened(uri, pointer) as stream,
        parquet_shard(uri, stream) as shard,
    ):
        yield shard


@contextmanager
def _opened(uri: str, pointer: str) -> Generator[IO[bytes]]:
    """The one way in which anything is opened that a job names."""
    place = admit(uri, pointer=pointer)
    if place.scheme == LOCAL:
        with open_local(place, pointer=pointer) as file:
            yield file
    elif place.scheme in WEB:
        with open_buffered(place, pointer=pointer) as file:
            yield file
    else:
        filesystem, path = _filesystem(place)
        with filesystem.open(path, "rb") as file:
            yield file


def _of_role(paths: list[str], role: Role) -> list[str]:
    own = [path for path in paths if PurePosixPath(path).name.startswith(f"{role}-")]
    return own or [path for path in paths if not PurePosixPath(path).name.startswith(_NOT[role])]


def _filesystem(place: Location) -> tuple[Any, str]:
    """(fsspec file system, path on it), of this one scheme: fsspec's own reading of a url would follow chains in it."""
    kind = cast("Any", fsspec.get_filesystem_class(place.scheme))  # pyright: ignore[reportUnknownMemberType]
    if place.scheme == LOCAL:
        return kind(), place.path
    return kind(**kind._get_kwargs_from_urls(place.url)), cast("str", kind._strip_protocol(place.url))


def _absolute(path: str, scheme: str) -> str:
    return path if scheme == LOCAL else f"{scheme}://{path.lstrip('/')}"


@contextmanager
def _explained(failure: str, pointer: str) -> Generator[None]:
    """Turn whatever a storage driver or the parquet reader raises into DataInvalid."""
    try:
        yield
    except DataInvalid:
        raise
    except ImportError as error:
        raise DataInvalid(f"{failure}: its driver is not installed ({error})", pointer) from error
    except PARQUET_ERRORS as error:
        raise DataInvalid(f"{failure}: {_first_line(error)}", pointer) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Parquet shards, local or on an object store: finding them, opening them, telling whether one has changed."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from dbserve.datasets.parquet import PARQUET_ERRORS, Shard, parquet_shard
from dbserve.errors import DataInvalid

Role = Literal["train", "test"]

# Object stores and the local disk; not http, ssh or chained protocols, with which a job file could reach anywhere.
PROTOCOLS = ("file", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
_URL = re.compile(r"^(?P<protocol>[A-Za-z][A-Za-z0-9+.:-]*)://")
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


def find_shards(uri: str, *, role: Role, pointer: str) -> tuple[str, ...]:
    """The shards a uri names, sorted: absolute local paths or full urls.

    A directory stands for the *.parquet files in it; where their names start with "train-" or "test-", for those of
    `role`. Files of held-out rows (test-, val-, valid-, validation-) are never trained on. Raises DataInvalid at
    `pointer` when nothing is there.
    """
    filesystem, path, protocol = _filesystem(uri, pointer)
    with _explained(f"{uri} cannot be read", pointer):
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
        raise DataInvalid(f"{empty} {uri if protocol != 'file' else path}", pointer)
    return tuple(_absolute(name, protocol) for name in found)


def shard_version(uri: str, *, pointer: str) -> dict[str, str]:
    """What changes when the shard's bytes change: its size, and its etag or time of modification."""
    filesystem, path, _ = _filesystem(uri, pointer)
    with _explained(f"shard {uri} cannot be read", pointer):
        info = cast("dict[str, object]", filesystem.info(path))
    version = next((f"{key}={info[key]}" for key in _VERSION_KEYS if info.get(key) is not None), "")
    return {"uri": uri, "size": str(info.get("size")), "version": version}


def read_file(uri: str, *, most: int, pointer: str) -> bytes:
    """A whole file of at most `most` bytes. Raises DataInvalid when it is missing, unreadable or larger."""
    filesystem, path, _ = _filesystem(uri, pointer)
    with _explained(f"{uri} cannot be read", pointer), filesystem.open(path, "rb") as stream:
        content = cast("bytes", stream.read(most + 1))
    if len(content) > most:
        raise DataInvalid(f"{uri} is larger than {most:,} bytes", pointer)
    return content


def absolute_uri(uri: str, *, pointer: str) -> str:
    """The uri from wherever it is read: an absolute local path or a full url."""
    _, path, protocol = _filesystem(uri, pointer)
    return _absolute(path, protocol)


@contextmanager
def open_shard(uri: str, *, pointer: str) -> Generator[Shard]:
    """One shard, opened; the footer is read. Raises DataInvalid naming the shard when it is missing or not parquet."""
    filesystem, path, protocol = _filesystem(uri, pointer)
    with _explained(f"shard {uri} cannot be read", pointer):
        if protocol == "file":
            with parquet_shard(uri, path) as shard:
                yield shard
        else:
            with filesystem.open(path, "rb") as stream, parquet_shard(uri, stream) as shard:
                yield shard


def _of_role(paths: list[str], role: Role) -> list[str]:
    own = [path for path in paths if PurePosixPath(path).name.startswith(f"{role}-")]
    return own or [path for path in paths if not PurePosixPath(path).name.startswith(_NOT[role])]


def _filesystem(uri: str, pointer: str) -> tuple[Any, str, str]:
    """(fsspec file system, path on it, protocol). A uri without a protocol is a local path."""
    match = _URL.match(uri)
    if match is None:
        uri, protocol = str(Path(uri).expanduser().absolute()), "file"
    else:
        protocol = match["protocol"].lower()
    if protocol not in PROTOCOLS:
        known = ", ".join(f"{name}://" for name in PROTOCOLS)
        raise DataInvalid(f"cannot read {uri}: give a local path, builtin:digits or one of {known}", pointer)
    with _explained(f"{uri} cannot be read", pointer):
        filesystem, path = cast("tuple[Any, str]", fsspec.url_to_fs(uri))  # pyright: ignore[reportUnknownMemberType]
    return filesystem, path, protocol


def _absolute(path: str, protocol: str) -> str:
    return path if protocol == "file" else f"{protocol}://{path.lstrip('/')}"


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

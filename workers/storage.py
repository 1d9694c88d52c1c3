"""Files that must be trusted later: tensors with metadata, and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
from pydantic import BaseModel
from torch import Tensor

from dbserve.errors import CheckpointInvalid, StorageError

LARGEST_DOCUMENT = 64 << 20  # bytes: of what is parsed whole


class FileDigest(BaseModel, frozen=True):
    """A file's bytes, as a manifest names them."""

    sha256: str
    size: int


def digest(path: Path) -> FileDigest:
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileDigest(sha256=sha256, size=path.stat().st_size)


def check_digest(path: Path, expected: FileDigest) -> None:
    """Raises CheckpointInvalid, naming the file, when it is missing or its bytes are others."""
    try:
        size = path.stat().st_size
        if size != expected.size:
            raise CheckpointInvalid(f"{path}: size is {size} bytes, the manifest says {expected.size}")
        if digest(path).sha256 != expected.sha256:
            raise CheckpointInvalid(f"{path}: sha256 is not the manifest's; its bytes were changed")
    except FileNotFoundError as error:
        raise CheckpointInvalid(f"{path} is missing") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def read_document(path: Path) -> bytes:
    """A manifest or a summary. Raises CheckpointInvalid when it is larger than any is, and what opening a file does."""
    with path.open("rb") as stream:
        content = stream.read(LARGEST_DOCUMENT + 1)
    if len(content) > LARGEST_DOCUMENT:
        raise CheckpointInvalid(f"{path} is larger than {LARGEST_DOCUMENT:,} bytes")
    return content


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file, its bytes a function of what it holds. Raises StorageError when the disk cannot take it."""
    save_file = cast("Any", safetensors.torch).save_file
    try:
        save_file(dict(tensors), path, metadata={"format": "pt", **metadata})
        _sort_metadata(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"cannot write {path}: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Raises CheckpointInvalid when the file is missing or no safetensors file."""
    try:
        with cast("Any", safetensors).safe_open(path, framework="pt") as file:
            return cast("dict[str, str]", file.metadata() or {})
    except (FileNotFoundError, safetensors.SafetensorError) as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors, on the CPU. Raises CheckpointInvalid when the file is no safetensors file."""
    try:
        return cast("dict[str, Tensor]", cast("Any", safetensors.torch).load_file(path))
    except (FileNotFoundError, safetensors.SafetensorError) as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def _sort_metadata(path: Path) -> None:
    """Puts the metadata in order, which safetensors writes as its hash table has them: another order each time.

    The file begins with the length of its header (8 bytes, little-endian), then the header: JSON, padded with spaces.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = cast("dict[str, Any]", json.loads(file.read(length)))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))

"""Files that somebody made to harm: refused by type, in little memory, and never by a crash."""

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbserve.conversion.weights import stored_tensors
from dbserve.errors import CheckpointInvalid, ConfigInvalid, StorageError
from workers import storage
from workers.checkpoint import MANIFEST, read_manifest
from workers.storage import read_document, read_metadata, read_tensors

MOST = 64 << 20  # bytes that reading a small file may take, whatever it says of itself


def tensor(dtype: str = "F32", shape: Any = (2,), at: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


def laid_out(header: bytes | Any, data: bytes = b"x" * 8, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


HOSTILE = {
    "empty": b"",
    "cut within its length": b"\2\0\0",
    "a length of all there is": laid_out(b"{}", length=2**64 - 1),
    "a length of a terabyte": laid_out(b"{}", length=2**40),
    "a length past its end": laid_out({"a": tensor()}, length=5000),
    "a length of nothing": laid_out(b"", length=0),
    "no object": laid_out(b"[]"),
    "no JSON": laid_out(b"{nonsense"),
    "no text": laid_out(b"\xff" * 40),
    "deep": laid_out(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "deep arrays": laid_out(b"[" * 200_000),
    "data that are missing": laid_out({"a": tensor()}, b"x" * 7),
    "data that nobody names": laid_out({"a": tensor()}, b"x" * 9),
    "overlapping": laid_out({"a": tensor(), "b": tensor(at=(4, 12))}, b"x" * 12),
    "one over the other": laid_out({"a": tensor(), "b": tensor()}),
    "a hole": laid_out({"a": tensor(), "b": tensor(at=(12, 20))}, b"x" * 20),
    "backwards": laid_out({"a": tensor(at=(8, 0))}),
    "negative offsets": laid_out({"a": tensor(at=(-8, 0))}),
    "offsets past the end": laid_out({"a": tensor(at=(0, 2**62))}),
    "a shape larger than memory": laid_out({"a": tensor(shape=(2**62, 4))}),
    "a shape that overflows": laid_out({"a": tensor(shape=(2**63, 2**63))}),
    "a negative shape": laid_out({"a": tensor(shape=(-2,))}),
    "a shape of words": laid_out({"a": tensor(shape="ab")}),
    "another size than its shape": laid_out({"a": tensor(shape=(3,))}),
    "another dtype": laid_out({"a": tensor("F64")}),
    "an unknown dtype": laid_out({"a": tensor("OBJECT")}),
    "no dtype": laid_out({"a": {"shape": [2], "data_offsets": [0, 8]}}),
    "metadata of numbers": laid_out({"__metadata__": {"run": 1}, "a": tensor()}),
    "metadata that are none": laid_out({"__metadata__": ["a"], "a": tensor()}),
    "a pickle": b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("read", [read_tensors, read_metadata])
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_of_tensors_is_no_checkpoint(
    tmp_path: Path, read: Callable[[Path], object], content: bytes
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointInvalid, match=r"a\.safetensors"):
        read(path)


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_source_is_refused_or_seen_as_it_is(tmp_path: Path, content: bytes) -> None:
    """The control plane reads headers alone: what it makes of one is shapes, or a refusal."""
    (tmp_path / "model.safetensors").write_bytes(content)
    tracemalloc.start()
    try:
        found = stored_tensors(tmp_path)
        assert all(type(size) is int and size >= 0 for one in found.values() for size in one.shape)
    except ConfigInvalid:
        pass
    finally:
        assert tracemalloc.get_traced_memory()[1] < MOST
        tracemalloc.stop()


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "U8", "F8_E4M3", "F4", "C64", "", "f32"]),
        "shape": st.lists(st.integers(-2, 2**64) | st.integers(0, 4), max_size=4),
        "data_offsets": st.lists(st.integers(-2, 2**64) | st.integers(0, 64), min_size=1, max_size=3),
    }
)
_HEADER = st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), _TENSOR | _JSON, max_size=4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=_HEADER | _JSON | st.binary(max_size=60), data=st.binary(max_size=64), off=st.integers(-9, 9))
def test_whatever_a_header_says_it_is_read_or_refused(tmp_path: Path, header: Any, data: bytes, off: int) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(laid_out(text, data, length=max(0, len(text) + off) if off % 3 == 0 else len(text)))
    for read in (read_tensors, read_metadata):
        try:
            found = read(path)
        except CheckpointInvalid:
            continue
        assert isinstance(found, dict)
    try:
        stored_tensors(tmp_path)
    except ConfigInvalid:
        return


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_JSON | st.binary(max_size=200))
def test_whatever_a_manifest_says_it_is_read_or_refused(tmp_path: Path, content: Any) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(CheckpointInvalid, match=MANIFEST):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text", [b"[" * 200_000, b'{"files":' * 50_000, b'{"run":"' + b"x" * 1000, b"\xff\xfe", b"null"]
)
def test_a_manifest_that_is_deep_or_none_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(CheckpointInvalid, match=MANIFEST):
        read_manifest(tmp_path)


def test_a_document_larger_than_any_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LARGEST_DOCUMENT", 1000)
    path = tmp_path / MANIFEST
    with path.open("wb") as file:
        file.truncate(1 << 34)  # sparse: of that size without taking the room
    tracemalloc.start()
    with pytest.raises(CheckpointInvalid, match="larger than 1,000 bytes"):
        read_document(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_manifest_that_is_no_file_is_no_crash(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(StorageError):
        read_manifest(tmp_path)

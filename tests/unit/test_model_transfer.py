"""A model directory on its way: packed by the server, unpacked by the client."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbserve.api.archive import Archive, archive
from dbserve.artefacts import LocalArtefacts
from dbserve.download import unpack
from dbserve.errors import StorageError

FILES = {"model.json": b"{}", "block-0.safetensors": bytes(range(256)) * 3000, "deep/er/empty": b""}


def a_model(root: Path) -> Path:
    for name, content in FILES.items():
        path = root / "models" / "j1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def packed_from(root: Path, relative: str, name: str, *, at: float) -> Archive:
    return archive(LocalArtefacts(root), relative, name, at=at)


def held(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_what_was_packed_comes_out_again_and_its_length_was_known(tmp_path: Path) -> None:
    packed = packed_from(a_model(tmp_path / "root"), "models/j1", "j1", at=1_700_000_000.0)
    stream = b"".join(packed.chunks())
    assert len(stream) == packed.size
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        assert sorted(tar.getnames()) == sorted(f"j1/{name}" for name in FILES)
    pieces = (stream[start : start + 1000] for start in range(0, len(stream), 1000))
    assert held(unpack(pieces, tmp_path / "out", "j1")) == FILES


@pytest.mark.parametrize("relative", ["../outside", "/etc", "models/j2", "models/j1/model.json", ""])
def test_nothing_but_a_directory_below_the_root_is_packed(tmp_path: Path, relative: str) -> None:
    root = a_model(tmp_path / "root")
    (tmp_path / "outside").mkdir()
    with pytest.raises(StorageError):
        packed_from(root, relative, "j1", at=0.0)


def test_links_are_not_followed_out_of_the_model(tmp_path: Path) -> None:
    root = a_model(tmp_path / "root")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("secret")
    (root / "models" / "j1" / "file").symlink_to(tmp_path / "secrets" / "key")
    (root / "models" / "j1" / "directory").symlink_to(tmp_path / "secrets")
    stream = b"".join(packed_from(root, "models/j1", "j1", at=0.0).chunks())
    assert b"secret" not in stream.replace(b"safetensors", b"")
    (root / "models" / "j2").symlink_to(tmp_path / "secrets")
    with pytest.raises(StorageError):
        packed_from(root, "models/j2", "j2", at=0.0)


def test_a_file_that_shrinks_breaks_the_stream_instead_of_filling_it_up(tmp_path: Path) -> None:
    root = a_model(tmp_path / "root")
    packed = packed_from(root, "models/j1", "j1", at=0.0)
    (root / "models" / "j1" / "block-0.safetensors").write_bytes(b"short")
    with pytest.raises(StorageError, match="shorter"):
        b"".join(packed.chunks())


def packed_by_hand(*members: tuple[tarfile.TarInfo, bytes]) -> Iterator[bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    yield out.getvalue()


def a_link(name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member


HOSTILE = [
    *(tarfile.TarInfo(name) for name in ("../evil", "/evil", "j1/../../evil", "j2/x")),
    a_link("j1/x", "/etc/passwd"),
]


@pytest.mark.parametrize("member", HOSTILE, ids=lambda member: member.name)
def test_a_hostile_archive_writes_nothing(tmp_path: Path, member: tarfile.TarInfo) -> None:
    with pytest.raises(StorageError):
        unpack(packed_by_hand((member, b"")), tmp_path / "out", "j1")
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


@pytest.mark.parametrize("stream", [b"", b"not a tar" * 200, None])
def test_half_an_archive_leaves_nothing_behind(tmp_path: Path, stream: bytes | None) -> None:
    if stream is None:
        whole = b"".join(packed_from(a_model(tmp_path / "root"), "models/j1", "j1", at=0.0).chunks())
        stream = whole[: len(whole) // 2]
    with pytest.raises(StorageError):
        unpack(iter([stream]), tmp_path / "out", "j1")
    assert not list((tmp_path / "out").iterdir())


def test_a_model_that_is_there_already_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "j1").mkdir()
    with pytest.raises(FileExistsError):
        unpack(iter([]), tmp_path, "j1")

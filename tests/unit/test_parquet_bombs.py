"""Shards that are small and would be large: refused by type, before the memory is taken."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dbserve.contracts.job import DataSpec
from dbserve.datasets import inspect, parquet
from dbserve.datasets.shards import open_shard
from dbserve.errors import DataInvalid
from tests.shards import encoded, pixels, write_shard
from workers.data import open_dataset

ROWS = 4096


def repeated(path: Path, value: bytes | str, rows: int = ROWS, column: str = "image") -> Path:
    """A shard whose one value is stored once."""
    kind = pa.string() if isinstance(value, str) else pa.binary()
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value], kind))
    table = pa.table({column: values, "label": pa.array([0, 1] * (rows // 2), pa.int32())})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 28, store_schema=False)
    assert path.stat().st_size < 20_000
    return path


def refused(uri: Path, cache_dir: Path, modality: Any = "images", **more: Any) -> str:
    with pytest.raises(DataInvalid) as error:
        inspect(DataSpec(uri=str(uri), **more), modality=modality, cache_dir=cache_dir)
    return str(error.value)


def test_a_kilobyte_that_stands_for_gigabytes_of_text_is_refused(tmp_path: Path) -> None:
    path = repeated(tmp_path / "a.parquet", "x" * (1 << 20), column="text")
    assert "bytes that stand for" in refused(path, tmp_path / "cache", "text")


def test_a_kilobyte_that_stands_for_gigabytes_of_images_is_refused(tmp_path: Path) -> None:
    path = repeated(tmp_path / "a.parquet", bytes(1 << 20))
    with open_shard(str(path), pointer="/data/uri") as shard, pytest.raises(DataInvalid, match="stand for"):
        for _ in shard.batches("image", "label", ROWS):
            pass


def test_values_that_repeat_are_read_in_parts_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_BATCH_BYTES", 1000)
    monkeypatch.setattr(parquet, "MOST_GROWTH", 1 << 30)
    texts = [f"{'ab' * 50}{number % 7}" for number in range(100)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with open_shard(str(tmp_path / "a.parquet"), pointer="/data/uri") as shard:
        parts = list(shard.texts("text", 64))
    assert [text for part in parts for text in part] == texts
    assert max(sum(map(len, part)) for part in parts) <= 1000


def test_a_value_that_is_too_long_by_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_BATCH_BYTES", 1000)
    monkeypatch.setattr(parquet, "MOST_GROWTH", 1 << 30)
    path = repeated(tmp_path / "a.parquet", "x" * 1001, rows=4, column="text")
    assert "longer than 1,000 bytes" in refused(path, tmp_path / "cache", "text")


def test_images_in_a_struct_are_held_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_BATCH_BYTES", 100_000)
    monkeypatch.setattr(parquet, "MOST_GROWTH", 10)
    values = pa.array([{"bytes": bytes(10_000), "path": "a"}] * 100)
    table = pa.table({"image": values, "label": pa.array([0, 1] * 50)})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    shard = open_shard(str(tmp_path / "a.parquet"), pointer="/data/uri")
    with shard as opened, pytest.raises(DataInvalid, match="stand"):
        for _ in opened.batches("image", "label", ROWS):
            pass


@pytest.mark.parametrize(
    ("name", "most", "said"), [("MOST_ROWS", 19, "at most 19"), ("MOST_CHUNK_BYTES", 64, "the most is 64")]
)
def test_a_shard_that_says_it_is_too_large_is_refused_by_its_footer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int, said: str
) -> None:
    path = write_shard(tmp_path / "a.parquet", pixels(20), [0, 1] * 10)
    monkeypatch.setattr(parquet, name, most)
    assert said in refused(path, tmp_path / "cache")


def test_values_that_grow_out_of_each_other_are_refused(tmp_path: Path) -> None:
    """DELTA_BYTE_ARRAY: each begins with the one before it, which takes no room."""
    table = pa.table({"text": ["x" * 100_000] * 100})
    encoding = {"text": "DELTA_BYTE_ARRAY"}
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, column_encoding=encoding)
    assert "DELTA_BYTE_ARRAY" in refused(tmp_path / "a.parquet", tmp_path / "cache", "text")


@pytest.mark.parametrize("cut", [0, 3, 4, 8, 11, 50, -1, -4, -8, -9, -50])
def test_a_shard_that_is_cut_is_refused(tmp_path: Path, cut: int) -> None:
    whole = write_shard(tmp_path / "a.parquet", pixels(20), [0, 1] * 10).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:cut])
    assert "a.parquet" in refused(tmp_path / "a.parquet", tmp_path / "cache")


@pytest.mark.parametrize("length", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_footer_of_another_length_than_it_says_is_refused(tmp_path: Path, length: int) -> None:
    whole = write_shard(tmp_path / "a.parquet", pixels(20), [0, 1] * 10).read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:-8] + struct.pack("<I", length) + b"PAR1")
    assert "a.parquet" in refused(tmp_path / "a.parquet", tmp_path / "cache")


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that says it is of this size and has next to no pixels."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    whole = b"\x89PNG\r\n\x1a\n"
    for name, content in (header, *chunks, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        whole += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return whole


def gif() -> bytes:
    stream = io.BytesIO()
    Image.new("P", (4, 6)).save(stream, "GIF")
    return stream.getvalue()


BOMBS = {
    "a size of gigapixels": png(65_535, 65_535),
    "a side beyond the most": png(8193, 1),
    "no size": png(0, 0),
    "another format": gif(),
    "a script": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n(id) run\n",
    "no image": b"nonsense",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_an_image_that_would_be_huge_or_is_of_another_kind_is_refused_when_it_is_planned(
    tmp_path: Path, content: bytes
) -> None:
    path = write_shard(tmp_path / "a.parquet", [content] * 20, [0, 1] * 10)
    refused(path, tmp_path / "cache")


@pytest.mark.parametrize("content", [*BOMBS.values(), png(4, 6, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))))])
def test_and_by_the_worker_before_its_pixels_are_there(tmp_path: Path, content: bytes) -> None:
    """One among good ones: the plan has seen the first alone."""
    images = [*encoded(pixels(30, (6, 4, 3))), content]
    path = write_shard(tmp_path / "a.parquet", images, [0, 1, 2] * 10 + [0])
    data = DataSpec(uri=str(path))
    facts = inspect(data, modality="images", cache_dir=tmp_path / "cache")
    with pytest.raises(DataInvalid, match="row 30"):
        open_dataset(facts, data, cache_dir=tmp_path / "cache")


def test_a_bomb_is_met_within_a_gigabyte_of_memory(tmp_path: Path) -> None:
    """In a process that cannot have more: refused, not killed."""
    repeated(tmp_path / "a.parquet", "x" * (1 << 24), column="text")
    program = """
import resource, sys
from pathlib import Path
from dbserve.contracts.job import DataSpec
from dbserve.datasets import inspect
from dbserve.errors import DataInvalid
inspect(DataSpec(uri="builtin:digits"), modality="images", cache_dir=Path(sys.argv[2]))  # everything is imported
held = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 30), held + (1 << 30)))
try:
    inspect(DataSpec(uri=sys.argv[1]), modality="text", cache_dir=Path(sys.argv[2]))
except DataInvalid as refused:
    print("refused:", refused)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "a.parquet"), str(tmp_path / "cache")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "bytes that stand for" in said

"""The road from real shards to batches. DBSERVE_SHARED_DATA names their directory; by default ../shared/data."""

import hashlib
import io
import os
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dbserve.contracts.job import DataSpec
from dbserve.datasets import inspect
from dbserve.datasets.split import shuffled_order
from workers.data import Dataset, open_dataset

SHARED = Path(os.environ.get("DBSERVE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def directory(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{path} is absent: set DBSERVE_SHARED_DATA to the directory that holds {name}")
    return path


def opened(uri: Path, test_uri: Path | None, cache_dir: Path) -> Dataset:
    spec = DataSpec(uri=str(uri), test_uri=None if test_uri is None else str(test_uri))
    return open_dataset(inspect(spec, modality="images", cache_dir=cache_dir), spec, cache_dir=cache_dir)


@pytest.mark.timeout(300)
def test_cifar10s_jpegs_are_decoded_in_seconds_and_opened_again_at_once(tmp_path: Path) -> None:
    home = directory("cifar10")
    began = time.monotonic()
    data = opened(home, home, tmp_path)
    decoding = time.monotonic() - began
    began = time.monotonic()
    opened(home, home, tmp_path)
    assert time.monotonic() - began < 1.0
    assert decoding < 120, "tens of seconds even on a busy machine"
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert np.bincount(data.test.targets).tolist() == [1000] * 10
    shard = pq.read_table(home / "test-00000-of-00002.parquet")
    for row in (0, 17, 4999):
        with Image.open(io.BytesIO(shard["image"][row].as_py())) as image:
            place = int(np.flatnonzero(shuffled_order(10_000) == row)[0])
            assert np.array_equal(data.test.inputs[place], np.asarray(image.convert("RGB")))
            assert data.test.targets[place] == shard["label"][row].as_py()


def test_fashion_mnists_raw_pixels_arrive_as_they_lie_in_the_shards(tmp_path: Path) -> None:
    home = directory("fashion_mnist")
    data = opened(home, home, tmp_path)
    assert data.train.inputs.shape == (54_000, 28, 28, 1)
    shards = [pq.read_table(path) for path in sorted(home.glob("test-*.parquet"))]
    stored = b"".join(value for shard in shards for value in shard["image"].to_pylist())
    pixels = np.frombuffer(stored, dtype=np.uint8).reshape(10_000, 28, 28, 1)
    found = data.test.inputs[np.argsort(shuffled_order(10_000))]
    assert hashlib.sha256(found.tobytes()).digest() == hashlib.sha256(pixels.tobytes()).digest()


def test_held_out_rows_are_never_trained_on(tmp_path: Path) -> None:
    data = opened(directory("cifar10_lossless4k"), None, tmp_path)
    parts = [{image.tobytes() for image in split.inputs} for split in (data.train, data.validation, data.test)]
    assert [len(part) for part in parts] == [len(data.train), len(data.validation), len(data.test)]
    assert parts[0].isdisjoint(parts[1])
    assert parts[0].isdisjoint(parts[2])
    assert parts[1].isdisjoint(parts[2])

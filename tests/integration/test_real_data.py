"""The road from real shards to batches. DBSERVE_SHARED_DATA names their directory; by default ../shared/data."""

import contextlib
import hashlib
import io
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dbserve.contracts.job import Augmentation, DataSpec
from dbserve.datasets import inspect
from dbserve.datasets.split import shuffled_order
from dbserve.datasets.vocabulary import Codec, codec_of
from workers.data import Dataset, Split, batches, open_dataset

SHARED = Path(os.environ.get("DBSERVE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def directory(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"{path} is absent: set DBSERVE_SHARED_DATA to the directory that holds {name}")
    return path


def opened(uri: Path, test_uri: Path | None, cache_dir: Path, image_size: int | None = None) -> Dataset:
    spec = DataSpec(uri=str(uri), test_uri=None if test_uri is None else str(test_uri), image_size=image_size)
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


def test_fashion_mnist_at_half_its_size_is_the_mean_of_four_pixels(tmp_path: Path) -> None:
    home = directory("fashion_mnist")
    found = opened(home / "test-*.parquet", None, tmp_path, image_size=14)
    whole = opened(home / "test-*.parquet", None, tmp_path)
    assert found.test.inputs.shape == (2_000, 14, 14, 1)
    means = whole.test.inputs.reshape(2_000, 14, 2, 14, 2).mean(axis=(2, 4))
    assert np.abs(found.test.inputs[..., 0] - means).max() <= 1.0
    assert np.array_equal(found.test.targets, whole.test.targets)


def read(home: Path, cache_dir: Path, **more: Any) -> tuple[Dataset, Codec]:
    spec = DataSpec.model_validate({"uri": str(home), **more})
    facts = inspect(spec, modality="text", cache_dir=cache_dir)
    assert facts.vocabulary is not None
    return open_dataset(facts, spec, cache_dir=cache_dir), codec_of(facts.vocabulary)


def spelled(codec: Codec, *splits: Split) -> str:
    return "".join(codec.decode(split.tokens) for split in splits if split.tokens is not None)


def test_tinyshakespeare_is_read_as_it_was_written(tmp_path: Path) -> None:
    home = directory("tinyshakespeare")
    data, codec = read(home, tmp_path, test_uri=str(home))
    assert len({token for split in (data.train, data.test) for token in split.inputs.reshape(-1).tolist()}) <= 65
    text = spelled(codec, data.train, data.validation, data.test)
    assert text.encode() == (home / "input.txt").read_bytes()
    assert len(data.test) == 111_540 // 128


@pytest.mark.parametrize("vocabulary", ["characters", "bytes"])
def test_a_novel_can_be_read_back_from_the_windows_of_a_batch(tmp_path: Path, vocabulary: str) -> None:
    home = directory("gutenberg7_text8style")
    data, codec = read(home, tmp_path, test_uri=str(home), vocabulary=vocabulary, sequence_length=64)
    text = spelled(codec, data.train, data.validation)
    digest = "9ffcaa11df7e1700697afd0bc90c6b1b911a4198c37ba204cae034a13ca6f4ba"  # of the data set's own description
    assert hashlib.sha256(text.encode()).hexdigest() == digest
    stream = batches(data.train, batch_size=32, seed=1, task="block-0", start_step=7, augment=Augmentation())
    with contextlib.closing(stream):
        assert all(codec.decode(window) in text for window in next(stream).inputs.tolist())

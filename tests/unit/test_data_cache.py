import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dbserve.contracts.job import DataSpec
from dbserve.datasets import inspect
from dbserve.datasets.split import shuffled_order
from dbserve.errors import DataInvalid, StorageError
from tests.shards import cycle, encoded, pixels, write_shard
from workers.data import Dataset, cache, open_dataset

PROCESSES = multiprocessing.get_context("forkserver")  # real processes that need not each import torch
PROCESSES.set_forkserver_preload(["workers.data"])


def opened(uri: Path, cache_dir: Path, **more: Any) -> Dataset:
    spec = DataSpec(uri=str(uri), **more)
    return open_dataset(inspect(spec, modality="images", cache_dir=cache_dir), spec, cache_dir=cache_dir)


def everything(data: Dataset) -> np.ndarray[Any, Any]:
    return np.concatenate([split.inputs for split in (data.test, data.validation, data.train)])


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6, 1)])
def test_every_pixel_and_label_survives_in_the_fixed_order(
    tmp_path: Path, raw: bool, shape: tuple[int, int, int]
) -> None:
    images = pixels(500, shape)
    stored = images if raw else encoded(images)
    for index, rows in enumerate((slice(0, 300), slice(300, 500))):
        write_shard(tmp_path / f"d/{index}.parquet", stored[rows], cycle(500)[rows])
    data = opened(tmp_path / "d", tmp_path / "cache")
    order = shuffled_order(500)
    assert np.array_equal(everything(data), images[order])
    assert np.array_equal(data.test.targets, np.array(cycle(500))[order][: len(data.test)])
    assert (len(data.train), len(data.validation), len(data.test)) == (360, 40, 100)


def test_raw_images_may_lie_in_a_column_of_variable_width(tmp_path: Path) -> None:
    images = pixels(30)
    shard = write_shard(
        tmp_path / "a.parquet",
        [image.tobytes() for image in images],
        cycle(30),
        image_encoding="raw uint8 HWC",
        image_shape="[4, 6, 3]",
    )
    assert np.array_equal(everything(opened(shard, tmp_path / "cache")), images[shuffled_order(30)])


def test_the_arrays_are_mapped_and_cannot_be_written_to(tmp_path: Path) -> None:
    data = opened(write_shard(tmp_path / "a.parquet", pixels(30), cycle(30)), tmp_path / "cache")
    with pytest.raises(ValueError, match="read-only"):
        data.train.inputs[0] = 0
    assert any("images.u8" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_other_fractions_share_the_decoded_rows(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.parquet", pixels(100), cycle(100))
    opened(shard, tmp_path / "cache")
    data = opened(shard, tmp_path / "cache", test_fraction=0.5, validation_fraction=0.0)
    assert (len(data.train), len(data.validation), len(data.test)) == (50, 0, 50)
    assert len(list((tmp_path / "cache/decoded").glob("*.lock"))) == 1


def test_a_shard_that_changed_is_decoded_anew(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.parquet", pixels(30), cycle(30))
    before = everything(opened(shard, tmp_path / "cache"))
    write_shard(shard, pixels(30, seed=1), cycle(30))
    os.utime(shard, ns=(1, 1))
    assert not np.array_equal(everything(opened(shard, tmp_path / "cache")), before)


def test_shards_that_grew_since_the_plan_are_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.parquet", pixels(30), cycle(30))
    spec = DataSpec(uri=str(shard))
    facts = inspect(spec, modality="images", cache_dir=tmp_path)
    write_shard(shard, pixels(40), cycle(40))
    with pytest.raises(DataInvalid, match="other rows than when the job was planned"):
        open_dataset(facts, spec, cache_dir=tmp_path)


def broken_png(rows: int, at: int) -> list[bytes]:
    images = encoded(pixels(rows))
    images[at] = images[at][: len(images[at]) // 2]
    return images


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (broken_png(300, 270), "row 270: "),
        (
            [*encoded(pixels(280)), *encoded(pixels(20, (6, 4, 3)))],
            "row 280: image of 6x4 pixels, but the shards say 4x6",
        ),
        ([*encoded(pixels(299)), b""], "row 299: "),
        ([*encoded(pixels(299)), None], "holds 1 nulls"),
    ],
)
def test_a_bad_image_is_refused_with_shard_and_row_and_nothing_is_left(
    tmp_path: Path, images: list[bytes], said: str
) -> None:
    shard = write_shard(tmp_path / "a.parquet", images, cycle(300))
    with pytest.raises(DataInvalid) as caught:
        opened(shard, tmp_path / "cache")
    assert str(shard) in str(caught.value)
    assert said in str(caught.value)
    assert [path.suffix for path in (tmp_path / "cache/decoded").iterdir()] == [".lock"]


def test_a_label_that_went_out_of_range_after_the_plan_is_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.parquet", pixels(30), cycle(30))
    spec = DataSpec(uri=str(shard))
    facts = inspect(spec, modality="images", cache_dir=tmp_path)
    write_shard(shard, pixels(30), [*cycle(29), 3])
    with pytest.raises(DataInvalid, match="row 29: label 3"):
        open_dataset(facts, spec, cache_dir=tmp_path)


def test_a_cache_that_lost_bytes_is_made_again(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.parquet", pixels(30), cycle(30))
    before = everything(opened(shard, tmp_path / "cache")).copy()
    (kept,) = (tmp_path / "cache/decoded").glob("*/images.u8")
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(everything(opened(shard, tmp_path / "cache")), before)


def test_a_cache_directory_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.parquet", pixels(30), cycle(30))
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(StorageError, match="cannot be kept"):
        opened(shard, tmp_path / "cache")


def _open_counting(shard: Path, cache_dir: Path, go: Any, decoded_by: Any) -> None:
    decode = cache.decode_shard

    def counted(*arguments: Any, **named: Any) -> None:
        decoded_by.put(os.getpid())
        decode(*arguments, **named)

    cache.decode_shard = counted
    go.wait()
    data = opened(shard, cache_dir)
    decoded_by.put(("sum", int(data.train.inputs.sum())))


def _decode_for_ever(shard: Path, cache_dir: Path, reached: Any) -> None:
    def hang(*_: Any, **__: Any) -> None:
        reached.set()
        signal.pause()

    cache.decode_shard = hang
    opened(shard, cache_dir)


@pytest.fixture
def started() -> Any:
    processes: list[Any] = []

    def start(target: Callable[..., None], *arguments: Any) -> Any:
        process = PROCESSES.Process(target=target, args=arguments)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def test_processes_that_open_a_data_set_at_once_decode_it_once(tmp_path: Path, started: Any) -> None:
    shard = write_shard(tmp_path / "a.parquet", encoded(pixels(2000)), cycle(2000))
    go, heard = PROCESSES.Event(), PROCESSES.Queue()
    workers = [started(_open_counting, shard, tmp_path / "cache", go, heard) for _ in range(3)]
    go.set()
    said = [heard.get(timeout=60) for _ in range(4)]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len([item for item in said if isinstance(item, int)]) == 1
    assert len({item for item in said if not isinstance(item, int)}) == 1


def test_a_process_killed_while_decoding_blocks_nobody(tmp_path: Path, started: Any) -> None:
    shard = write_shard(tmp_path / "a.parquet", pixels(30), cycle(30))
    reached = PROCESSES.Event()
    victim = started(_decode_for_ever, shard, tmp_path / "cache", reached)
    assert reached.wait(60)
    victim.kill()
    began = time.monotonic()
    data = opened(shard, tmp_path / "cache")
    assert time.monotonic() - began < 30
    assert np.array_equal(everything(data), pixels(30)[shuffled_order(30)])
    assert not list((tmp_path / "cache/decoded").glob("*.partial"))

"""Images that are resized, arrays of floats, and the columns that Hugging Face datasets writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dbserve.contracts.job import Augmentation, DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.datasets import inspect
from dbserve.datasets.split import shuffled_order
from dbserve.errors import DataInvalid
from tests.shards import cycle, encoded, pixels, write_shard
from workers.data import Dataset, batches, normalise, open_dataset

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def spec_of(uri: Path, **more: Any) -> DataSpec:
    return DataSpec.model_validate({"uri": str(uri), **more})


def look(uri: Path, tmp_path: Path, **more: Any) -> DataFacts:
    return inspect(spec_of(uri, **more), modality="images", cache_dir=tmp_path / "cache")


def opened(uri: Path, tmp_path: Path, **more: Any) -> Dataset:
    return open_dataset(look(uri, tmp_path, **more), spec_of(uri, **more), cache_dir=tmp_path / "cache")


def refused(uri: Path, tmp_path: Path, **more: Any) -> DataInvalid:
    with pytest.raises(DataInvalid) as caught:
        opened(uri, tmp_path, **more)
    return caught.value


def everything(data: Dataset) -> np.ndarray[Any, Any]:
    """All rows as the shards hold them."""
    joined = np.concatenate([split.inputs for split in (data.test, data.validation, data.train)])
    return joined[np.argsort(shuffled_order(len(joined)))]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_resized_pixel_is_the_mean_of_the_area_it_covers(tmp_path: Path, raw: bool, channels: int) -> None:
    images = pixels(30, (6, 8, channels))
    shard = write_shard(tmp_path / "a.parquet", images if raw else encoded(images), cycle(30))
    assert look(shard, tmp_path, image_size=2).image_shape == (2, 2, channels)
    means = images.reshape(30, 2, 3, 2, 4, channels).mean(axis=(2, 4))
    found = everything(opened(shard, tmp_path, image_size=2)).astype(float)
    assert found.shape == (30, 2, 2, channels)
    assert np.abs(found - means).max() <= 1.0


@pytest.mark.parametrize("raw", [True, False])
def test_images_of_their_own_size_are_resized_to_themselves(tmp_path: Path, raw: bool) -> None:
    images = pixels(30, (5, 5, 3))
    shard = write_shard(tmp_path / "a.parquet", images if raw else encoded(images), cycle(30))
    assert np.array_equal(everything(opened(shard, tmp_path, image_size=5)), images)


def test_images_of_many_sizes_may_be_resized_to_one(tmp_path: Path) -> None:
    some = [*encoded(pixels(20, (4, 6, 3))), *encoded(pixels(20, (9, 5, 3)))]
    write_shard(tmp_path / "d/a.parquet", some, cycle(40))
    write_shard(tmp_path / "d/b.parquet", encoded(pixels(20, (7, 7, 3))), cycle(20))
    assert everything(opened(tmp_path / "d", tmp_path, image_size=4)).shape == (60, 4, 4, 3)


def test_raw_shards_of_two_sizes_may_be_resized_to_one(tmp_path: Path) -> None:
    write_shard(tmp_path / "d/a.parquet", pixels(20, (4, 6, 3)), cycle(20))
    write_shard(tmp_path / "d/b.parquet", pixels(20, (8, 8, 3)), cycle(20))
    assert everything(opened(tmp_path / "d", tmp_path, image_size=4)).shape == (40, 4, 4, 3)


def test_grey_and_coloured_shards_do_not_become_one_by_resizing(tmp_path: Path) -> None:
    write_shard(tmp_path / "d/a.parquet", pixels(20, (4, 4, 3)), cycle(20))
    write_shard(tmp_path / "d/b.parquet", pixels(20, (4, 4, 1)), cycle(20))
    assert "image_shape differs" in str(refused(tmp_path / "d", tmp_path, image_size=4))


def test_another_size_is_another_entry_of_the_cache(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.parquet", pixels(30, (6, 6, 3)), cycle(30))
    sizes = [
        opened(shard, tmp_path, **size).train.inputs.shape[1] for size in ({}, {"image_size": 6}, {"image_size": 3})
    ]
    assert sizes == [6, 6, 3]
    assert len(list((tmp_path / "cache/decoded").glob("*.lock"))) == 3


def latents(rows: int, shape: tuple[int, int, int] = (4, 5, 7)) -> Any:
    return np.random.default_rng(0).standard_normal((rows, *shape), dtype=np.float32)


@pytest.mark.parametrize("variable", [True, False])
def test_float32_arrays_arrive_as_they_were_written(tmp_path: Path, variable: bool) -> None:
    arrays = latents(50)
    shard = write_shard(tmp_path / "a.parquet", arrays, cycle(50), image_type=pa.binary() if variable else None)
    facts = look(shard, tmp_path)
    assert (facts.encoding, facts.image_shape) == ("float32", (4, 5, 7))
    data = opened(shard, tmp_path)
    assert np.array_equal(everything(data), arrays)
    stream = batches(data.train, batch_size=4, seed=0, task="t", start_step=0, augment=Augmentation())
    batch = next(stream)
    stream.close()
    assert (batch.inputs.dtype, tuple(batch.inputs.shape)) == (torch.float32, (4, 7, 4, 5))
    assert torch.equal(normalise(batch.inputs), batch.inputs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_is_refused_with_shard_and_row(tmp_path: Path, bad: float) -> None:
    arrays = latents(300)
    arrays[270, 1, 2, 3] = bad
    shard = write_shard(tmp_path / "a.parquet", arrays, cycle(300))
    assert f"{shard}, row 270: a value is NaN or infinite" in str(refused(shard, tmp_path))


@pytest.mark.parametrize(("key", "value"), [("image_size", 4), ("augment", {"flip": True})])
def test_float32_arrays_are_neither_resized_nor_augmented(tmp_path: Path, key: str, value: object) -> None:
    shard = write_shard(tmp_path / "a.parquet", latents(30), cycle(30))
    assert refused(shard, tmp_path, **{key: value}).pointer == f"/data/{key}"


@pytest.mark.parametrize(("channels", "fits"), [(1, True), (64, True), (65, False)])
def test_float32_arrays_have_up_to_64_channels(tmp_path: Path, channels: int, fits: bool) -> None:
    shard = write_shard(tmp_path / "a.parquet", latents(30, (2, 2, channels)), cycle(30))
    if fits:
        assert look(shard, tmp_path).image_shape == (2, 2, channels)
    else:
        assert "1 to 64 channels" in str(refused(shard, tmp_path))


def test_float32_arrays_of_another_length_than_stated_are_refused(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.parquet", latents(30), cycle(30), image_shape="[4, 5, 6]")
    error = refused(shard, tmp_path)
    assert error.pointer == "/data/image_column"
    assert "560 bytes a row, but shape [4, 5, 6] takes 480" in str(error)


def test_images_as_hugging_face_datasets_writes_them_are_read(tmp_path: Path) -> None:
    images = pixels(30, (4, 6, 3))
    rows: Any = [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(encoded(images))]
    shard = write_shard(tmp_path / "a.parquet", rows, cycle(30), image_type=STRUCT, image_encoding=None)
    assert look(shard, tmp_path).image_shape == (4, 6, 3)
    assert np.array_equal(everything(opened(shard, tmp_path)), images)


@pytest.mark.parametrize("row", [None, {"bytes": None, "path": "elsewhere.png"}])
def test_an_image_that_lies_elsewhere_is_refused(tmp_path: Path, row: object) -> None:
    rows: Any = [*({"bytes": data, "path": None} for data in encoded(pixels(29))), row]
    shard = write_shard(tmp_path / "a.parquet", rows, cycle(30), image_type=STRUCT, image_encoding=None)
    assert "holds 1 nulls" in str(refused(shard, tmp_path))


def test_a_struct_without_bytes_is_no_image(tmp_path: Path) -> None:
    path_only = pa.struct([("path", pa.string())])
    shard = write_shard(tmp_path / "a.parquet", [{"path": "a.png"}] * 30, cycle(30), image_type=path_only)  # type: ignore[list-item]
    assert refused(shard, tmp_path).pointer == "/data/image_column"

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.datasets import inspect
from dbserve.datasets.digits import digit_shards
from dbserve.datasets.split import SplitSizes, shuffled_order, split_sizes
from dbserve.errors import DataInvalid
from tests.shards import cycle, encoded, pixels, write_shard


def look(uri: str | Path, tmp_path: Path, **more: Any) -> DataFacts:
    return inspect(DataSpec(uri=str(uri), **more), modality="images", cache_dir=tmp_path / "cache")


def refused(uri: str | Path, tmp_path: Path, **more: Any) -> DataInvalid:
    with pytest.raises(DataInvalid) as caught:
        look(uri, tmp_path, **more)
    return caught.value


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two training shards of 20 rows, one test shard of 10."""
    for index in range(2):
        write_shard(tmp_path / f"d/train-{index}.parquet", pixels(20, seed=index), cycle(20))
    write_shard(tmp_path / "d/test-0.parquet", pixels(10, seed=9), cycle(10))
    return tmp_path / "d"


def test_the_digits_are_written_once_and_inspected(tmp_path: Path) -> None:
    facts = look("builtin:digits", tmp_path)
    written = [Path(shard).stat().st_mtime_ns for shard in facts.train_shards]
    assert facts.train_rows + facts.validation_rows + facts.test_rows == 1797
    assert facts.image_shape == (8, 8, 1)
    assert facts.class_names == tuple("0123456789")
    assert look("builtin:digits", tmp_path) == facts
    assert [Path(shard).stat().st_mtime_ns for shard in facts.train_shards] == written


def test_a_directory_of_named_splits_gives_each_uri_its_own(shards: Path, tmp_path: Path) -> None:
    facts = look(shards, tmp_path, test_uri=str(shards), validation_fraction=0.25)
    assert [Path(shard).name for shard in facts.train_shards] == ["train-0.parquet", "train-1.parquet"]
    assert [Path(shard).name for shard in facts.test_shards] == ["test-0.parquet"]
    assert (facts.train_rows, facts.validation_rows, facts.test_rows) == (30, 10, 10)


def test_a_directory_without_named_splits_is_all_training_rows(tmp_path: Path) -> None:
    write_shard(tmp_path / "d/a.parquet", pixels(20), cycle(20))
    write_shard(tmp_path / "d/b.parquet", pixels(20), cycle(20))
    assert len(look(tmp_path / "d", tmp_path).train_shards) == 2


@pytest.mark.parametrize("uri", ["d", "d/train-*.parquet", "d/train-0.parquet", "./d/../d/train-[01].parquet"])
def test_a_relative_path_becomes_absolute_shards(
    shards: Path, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shards.parent)
    found = look(uri, tmp_path).train_shards
    assert all(Path(shard).is_absolute() and Path(shard).is_file() for shard in found)


def test_shards_on_an_object_store_keep_their_url(shards: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/bucket/{path.name}": path.read_bytes() for path in shards.iterdir()})
    facts = look("memory://bucket/train-*.parquet", tmp_path, test_uri="memory://bucket")
    assert facts.train_shards == ("memory://bucket/train-0.parquet", "memory://bucket/train-1.parquet")
    assert facts.test_shards == ("memory://bucket/test-0.parquet",)


def test_without_names_the_classes_run_to_the_largest_label(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", pixels(20), [0, 4] * 10, label_names=None)
    assert look(path, tmp_path).class_names == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize(("shape", "seen"), [((5, 7, 3), (5, 7, 3)), ((5, 7), (5, 7, 1))])
def test_encoded_images_of_unstated_shape_are_measured(
    tmp_path: Path, shape: tuple[int, ...], seen: tuple[int, int, int]
) -> None:
    path = write_shard(tmp_path / "a.parquet", encoded(pixels(12, shape)), cycle(12))
    facts = look(path, tmp_path)
    assert facts.image_shape == seen
    assert facts.encoding == "encoded"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("builtin:digitz", "no builtin data set"),
        ("/nowhere", "no such file or directory"),
        ("/nowhere/*.parquet", "no file matches"),
        ("https://example.org/a.parquet", "cannot read https://"),
        ("simplecache::s3://bucket/a.parquet", "cannot read"),
    ],
)
@pytest.mark.parametrize("key", ["uri", "test_uri"])
def test_a_uri_that_names_nothing_is_refused_at_its_own_pointer(
    shards: Path, tmp_path: Path, uri: str, said: str, key: str
) -> None:
    error = refused(**{"uri": shards, key: uri}, tmp_path=tmp_path)
    assert error.pointer == f"/data/{key}"
    assert said in str(error)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert "no train shard" in str(refused(tmp_path / "d", tmp_path))


def bad(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "bad.parquet"
    images, labels = pixels(20), cycle(20)
    match kind:
        case "empty":
            return write_shard(path, images[:0], [])
        case "not parquet":
            path.write_bytes(b"not parquet at all")
        case "truncated":
            write_shard(path, images, labels)
            path.write_bytes(path.read_bytes()[:-20])
        case "text image":
            write_shard(path, ["a"] * 20, labels, image_type=pa.string())  # type: ignore[arg-type]
        case "unknown encoding":
            write_shard(path, encoded(images), labels, image_encoding="bmp")
        case "raw without shape":
            write_shard(path, images, labels, image_shape=None)
        case "other byte length":
            write_shard(path, images, labels, image_shape="[4, 7, 3]")
        case "two channels":
            write_shard(path, pixels(20, (4, 6, 2)), labels)
        case "shape of words":
            write_shard(path, images, labels, image_shape='["four", 6]')
        case "unreadable first image":
            write_shard(path, [b"no image"] * 20, labels)
        case "float label":
            write_shard(path, images, [0.5] * 20, label_type=pa.float32())
        case "null label":
            write_shard(path, images, [None, *labels[1:]])
        case "negative label":
            write_shard(path, images, [*labels[:7], -1, *labels[8:]])
        case "label beyond the names":
            write_shard(path, images, [*labels[:7], 3, *labels[8:]])
        case "one class":
            write_shard(path, images, [0] * 20, label_names='["cat"]')
        case "absurd label":
            write_shard(path, images, [10**9] * 20, label_names=None)
        case "names are no list":
            write_shard(path, images, labels, label_names='{"cat": 0}')
    return path


@pytest.mark.parametrize(
    ("kind", "pointer", "said"),
    [
        ("empty", "/data/uri", "holds no row"),
        ("not parquet", "/data/uri", "cannot be read"),
        ("truncated", "/data/uri", "cannot be read"),
        ("text image", "/data/image_column", "string"),
        ("unknown encoding", "/data/image_column", "'bmp' is not known"),
        ("raw without shape", "/data/image_column", "need their shape"),
        ("other byte length", "/data/image_column", "72 bytes a row"),
        ("two channels", "/data/image_column", "1 or 3 channels"),
        ("shape of words", "/data/uri", "image_shape"),
        ("unreadable first image", "/data/image_column", "row 0"),
        ("float label", "/data/label_column", "must be integers"),
        ("null label", "/data/label_column", "1 labels are null"),
        ("negative label", "/data/uri", "row 7: label -1"),
        ("label beyond the names", "/data/uri", "row 7: label 3 is not one of 0..2"),
        ("one class", "/data/label_column", "needs two"),
        ("absurd label", "/data/label_column", "more than"),
        ("names are no list", "/data/uri", "label_names"),
    ],
)
def test_a_bad_shard_is_refused_with_its_name_and_a_pointer(tmp_path: Path, kind: str, pointer: str, said: str) -> None:
    path = bad(tmp_path, kind)
    error = refused(path, tmp_path)
    assert error.pointer == pointer
    assert said in str(error)
    if kind not in ("one class", "absurd label"):
        assert str(path) in str(error)


@pytest.mark.parametrize("key", ["image_column", "label_column"])
def test_a_missing_column_is_refused_with_those_that_exist(shards: Path, tmp_path: Path, key: str) -> None:
    error = refused(shards, tmp_path, **{key: "nope"})
    assert error.pointer == f"/data/{key}"
    assert "it has image, label" in str(error)


def test_test_images_of_another_shape_are_refused_at_the_test_uri(shards: Path, tmp_path: Path) -> None:
    other = write_shard(tmp_path / "other.parquet", pixels(10, (6, 4, 3)), cycle(10))
    error = refused(shards, tmp_path, test_uri=str(other))
    assert error.pointer == "/data/test_uri"
    assert "image_shape differs" in str(error)


def test_a_shard_cannot_be_trained_on_and_tested_on(shards: Path, tmp_path: Path) -> None:
    error = refused(shards, tmp_path, test_uri=str(shards / "train-1.parquet"))
    assert error.pointer == "/data/test_uri"


@pytest.mark.parametrize(
    ("rows", "fractions", "pointer"),
    [
        (4, {"test_fraction": 0.1}, "/data/test_fraction"),
        (4, {"test_fraction": 0.25, "validation_fraction": 0.1}, "/data/validation_fraction"),
        (4, {"test_fraction": 0.95, "validation_fraction": 0.0}, "/data/test_fraction"),
    ],
)
def test_a_split_that_leaves_a_part_empty_is_refused(
    tmp_path: Path, rows: int, fractions: dict[str, float], pointer: str
) -> None:
    path = write_shard(tmp_path / "a.parquet", pixels(rows), cycle(rows))
    assert refused(path, tmp_path, **fractions).pointer == pointer


def test_parts_of_a_split_add_up_and_ignore_the_test_fraction_beside_a_test_set() -> None:
    assert split_sizes(100, test_rows=None, test_fraction=0.2, validation_fraction=0.1) == SplitSizes(72, 8, 20)
    assert split_sizes(100, test_rows=7, test_fraction=0.2, validation_fraction=0.1) == SplitSizes(90, 10, 7)
    assert split_sizes(100, test_rows=7, test_fraction=0.2, validation_fraction=0.0) == SplitSizes(100, 0, 7)


def test_the_held_out_rows_are_the_same_for_ever() -> None:
    """A change here would put yesterday's test rows into today's training rows."""
    assert shuffled_order(10).tolist() == [4, 2, 5, 0, 8, 3, 1, 7, 6, 9]
    assert np.array_equal(np.sort(shuffled_order(5000)), np.arange(5000))


def test_the_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    rows = [row for shard in digit_shards(tmp_path) for row in pq.read_table(shard).to_pylist()]
    expected = load_digits()
    images = np.rint(expected.images * 255 / 16).astype(np.uint8)
    assert [row["image"] for row in rows] == [each.tobytes() for each in images]
    assert [row["label"] for row in rows] == expected.target.tolist()


def test_many_writers_of_the_digits_at_once_leave_one_copy(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as writers:
        found = list(writers.map(look, ["builtin:digits"] * 4, [tmp_path] * 4))
    assert len({facts.model_dump_json() for facts in found}) == 1
    assert [path.name for path in (tmp_path / "cache/builtin").iterdir()] == ["digits"]


@pytest.mark.parametrize("builtin", [True, False], ids=["the digits", "shards"])
def test_inspecting_imports_neither_torch_nor_pillow_nor_scikit_learn_where_the_shards_state_their_shape(
    shards: Path, tmp_path: Path, builtin: bool
) -> None:
    uri = "builtin:digits" if builtin else str(shards)
    code = f"""
import sys
from pathlib import Path
from dbserve.contracts.job import DataSpec
from dbserve.datasets import inspect
inspect(DataSpec(uri={uri!r}), modality="images", cache_dir=Path({str(tmp_path)!r}))
heavy = {{"torch", "PIL", "sklearn"}} & set(sys.modules)
sys.exit(" ".join(heavy) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

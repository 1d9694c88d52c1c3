"""`builtin:digits`: scikit-learn's 1,797 real handwritten digits (8x8), written once as parquet shards."""

import gzip
import importlib.util
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dbserve.datasets.parquet import write_raw_images
from dbserve.errors import DataInvalid

URI = "builtin:digits"
_FILE = "datasets/data/digits.csv.gz"
_SHARDS = 2
_METADATA = {
    "image_encoding": "raw uint8 HW",
    "image_shape": "[8, 8]",
    "label_names": json.dumps([str(digit) for digit in range(10)]),
}


def digit_shards(cache_dir: Path, *, pointer: str = "/data/uri") -> tuple[str, ...]:
    """The digits' shards under `cache_dir`, written on first use. Safe to call from many processes at once.

    Pixels are 0..16 in the source and pixel * 255 / 16, rounded, in the shards. Raises DataInvalid when scikit-learn
    is not installed.
    """
    home = cache_dir.absolute() / "builtin" / "digits"
    paths = [home / f"train-{shard:05d}-of-{_SHARDS:05d}.parquet" for shard in range(_SHARDS)]
    if not home.is_dir():
        _write_once(home, [path.name for path in paths], pointer)
    return tuple(str(path) for path in paths)


def _write_once(home: Path, names: list[str], pointer: str) -> None:
    images, labels = _load(pointer)
    home.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
    try:
        for name, rows in zip(names, np.array_split(np.arange(len(labels)), _SHARDS), strict=True):
            write_raw_images(building / name, images[rows], labels[rows], _METADATA)
        try:
            building.rename(home)
        except OSError:  # another process was first: its shards are the same bytes
            if not home.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _load(pointer: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """From scikit-learn's file, without its code: a control plane may have that one file and neither it nor SciPy."""
    spec = importlib.util.find_spec("sklearn")
    homes = (spec.submodule_search_locations if spec else None) or []
    files = [file for home in homes if (file := Path(home) / _FILE).is_file()]
    if not files:
        raise DataInvalid("builtin:digits needs scikit-learn: pip install 'dbserve[control]'", pointer)
    with gzip.open(files[0], "rt", encoding="ascii") as lines:
        rows = np.loadtxt(lines, delimiter=",")  # (1797, 65): pixels 0..16 row by row, and the digit
    pixels, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    return np.rint(pixels * 255 / 16).astype(np.uint8), labels.astype(np.int64)

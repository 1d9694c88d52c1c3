"""`builtin:digits`: scikit-learn's 1,797 real handwritten digits (8x8), written once as parquet shards."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dbserve.datasets.parquet import write_raw_images
from dbserve.errors import DataInvalid

URI = "builtin:digits"
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
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]
    except ImportError as error:
        raise DataInvalid("builtin:digits needs scikit-learn: pip install 'dbserve[worker]'", pointer) from error
    digits = cast("Any", load_digits())
    pixels = cast("NDArray[np.float64]", digits.images)  # (1797, 8, 8), 0..16
    return np.rint(pixels * 255 / 16).astype(np.uint8), cast("NDArray[np.int64]", digits.target).astype(np.int64)

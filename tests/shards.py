"""Parquet shards for tests, good and bad in every way a user's may be."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image


def pixels(rows: int, shape: tuple[int, ...] = (4, 6, 3), seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), dtype=np.uint8)


def encoded(images: NDArray[np.uint8], kind: str = "PNG") -> list[bytes]:
    """PNG is lossless, so decoded pixels can be compared."""
    streams = [io.BytesIO() for _ in images]
    for image, stream in zip(images, streams, strict=True):
        Image.fromarray(image.squeeze()).save(stream, kind)
    return [stream.getvalue() for stream in streams]


def write_shard(
    path: Path,
    images: NDArray[Any] | list[bytes],
    labels: Any,
    *,
    image_type: pa.DataType | None = None,
    label_type: pa.DataType | None = None,
    **metadata: str | None,
) -> Path:
    """Raw images from an array, encoded ones from bytes. Metadata is what fits, unless replaced; None leaves it out."""
    said: dict[str, str | None] = {"label_names": json.dumps(["cat", "dog", "owl"])}
    if isinstance(images, np.ndarray):
        said |= {"image_encoding": f"raw {images.dtype} HWC", "image_shape": json.dumps(list(images.shape[1:]))}
        image_type = image_type or pa.binary(images[:1].nbytes or int(np.prod(images.shape[1:])))
        values = [image.tobytes() for image in images]
    else:
        said |= {"image_encoding": "png"}
        values = images
    said |= metadata
    arrays = [pa.array(values, image_type or pa.binary()), pa.array(labels, label_type or pa.int32())]
    schema = pa.schema(
        [("image", arrays[0].type), ("label", arrays[1].type)],
        metadata={name: value for name, value in said.items() if value is not None},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), path)
    return path


def cycle(rows: int, classes: int = 3) -> list[int]:
    return [row % classes for row in range(rows)]


def write_text(
    path: Path, texts: list[str | None], *, column: str = "text", text_type: pa.DataType | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: pa.array(texts, text_type or pa.string())}), path)
    return path


def write_word_tokenizer(path: Path, words: list[str]) -> Path:
    """A Hugging Face tokenizer.json of whole words, the unknown one first; written out: no library is needed."""
    vocabulary = {word: token for token, word in enumerate(["[UNK]", *words])}
    content = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    path.write_text(json.dumps(content))
    return path

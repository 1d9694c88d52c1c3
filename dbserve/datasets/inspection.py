"""inspect(): what the shards themselves say, so that a job can be planned or refused before anything is decoded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from dbserve.admission import BUILTIN, Allowed
from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts
from dbserve.datasets import digits
from dbserve.datasets.images import image_facts
from dbserve.datasets.reach import admit
from dbserve.datasets.shards import Role, find_shards
from dbserve.datasets.text import text_facts
from dbserve.datasets.vocabulary import TOKENIZER
from dbserve.errors import ConfigInvalid, DataInvalid

Modality = Literal["images", "text"]

_KEYS: dict[Modality, tuple[str, ...]] = {
    "images": ("image_column", "label_column", "image_size", "augment"),
    "text": ("text_column", "vocabulary", "tokenizer", "sequence_length"),
}


def inspect(data: DataSpec, *, modality: Modality, cache_dir: Path, allowed: Allowed | None = None) -> DataFacts:
    """What a job's data are, of the modality its architecture is made for.

    Of images footers, schema metadata and labels are read, text is read whole, once a shard (see
    dbserve.datasets.text). `builtin:digits` is written under `cache_dir` first. `allowed`: what the job may name; None:
    what this process may read. Raises ConfigInvalid at a key of the other modality, DataInvalid at the key whose data
    are not as it says, StorageError.
    """
    _only_keys_of(modality, data)
    find = partial(locate, cache_dir=cache_dir, allowed=allowed)
    train = find(data.uri, role="train", pointer="/data/uri")
    test: tuple[str, ...] = ()
    if data.test_uri is not None:
        test = find(data.test_uri, role="test", pointer="/data/test_uri")
        if shared := sorted(set(train) & set(test)):
            raise DataInvalid(f"{shared[0]} is both a training shard and a test shard", "/data/test_uri")
    if data.tokenizer is not None:
        admit(data.tokenizer, pointer=TOKENIZER, allowed=allowed)
    if modality == "text":
        return text_facts(data, train, test, cache_dir=cache_dir)
    return image_facts(data, train, test)


def locate(uri: str, *, role: Role, pointer: str, cache_dir: Path, allowed: Allowed | None = None) -> tuple[str, ...]:
    """The shards behind a uri, `builtin:` ones included. Raises DataInvalid at `pointer`."""
    if uri == digits.URI:
        return digits.digit_shards(cache_dir, pointer=pointer)
    if uri.startswith(BUILTIN):
        raise DataInvalid(f"no builtin data set {uri!r}; there is {digits.URI}", pointer)
    return find_shards(uri, role=role, pointer=pointer, allowed=allowed)


def _only_keys_of(modality: Modality, data: DataSpec) -> None:
    """A key of the other modality would be passed over in silence: refused, unless it says what it says anyway."""
    other: Modality = "images" if modality == "text" else "text"
    for key in _KEYS[other]:
        if getattr(data, key) != DataSpec.model_fields[key].default:
            raise ConfigInvalid(f"{key} is of {other}, but the architecture takes {modality}", f"/data/{key}")

"""Files of JSON beside a job's data, just larger than they may be: refused by type, before they are parsed."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from dbserve.contracts.plan import Vocabulary
from dbserve.conversion import read_source, stored_tensors, weights
from dbserve.conversion.sources import MAX_JSON_BYTES, POINTER, read_json
from dbserve.datasets import vocabulary
from dbserve.datasets.vocabulary import MAX_TOKENIZER_BYTES, TOKENIZER, codec_of, tokenizer_vocabulary
from dbserve.errors import ConfigInvalid, DataInvalid
from tests.networks import LLAMA, write_config
from tests.shards import write_word_tokenizer
from tests.unit import test_conversion as conversion

MAX_HEADER: int = weights._MAX_HEADER  # pyright: ignore[reportPrivateUsage]


def sparse(path: Path, size: int, begin: bytes = b"") -> Path:
    """A file of that size, almost none of which takes room on the disk."""
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(size)
    return path


def planned_with(path: Path) -> object:
    return codec_of(Vocabulary(kind="tokenizer", size=2, tokenizer=str(path), sha256="0" * 64))


@pytest.mark.parametrize("read", [lambda path: tokenizer_vocabulary(str(path)), planned_with], ids=["plan", "worker"])
def test_a_tokenizer_larger_than_any_is_refused_by_its_size(tmp_path: Path, read: Callable[[Path], object]) -> None:
    assert MAX_TOKENIZER_BYTES <= 64 << 20
    with pytest.raises(DataInvalid, match="is larger than 67,108,864 bytes") as error:
        read(sparse(tmp_path / "tokenizer.json", MAX_TOKENIZER_BYTES + 1))
    assert error.value.pointer == TOKENIZER


def test_a_tokenizer_of_many_short_tokens_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"[" + b"0," * vocabulary.MAX_TOKENIZER_COMMAS + b"0]")
    with pytest.raises(DataInvalid, match="is not a tokenizer") as error:
        tokenizer_vocabulary(str(path))
    path.write_bytes(b"[" + b"0," * (vocabulary.MAX_TOKENIZER_COMMAS + 1) + b"0]")
    with pytest.raises(DataInvalid, match="lists more than 2,000,000 tokens") as error:
        tokenizer_vocabulary(str(path))
    assert error.value.pointer == TOKENIZER

    write_word_tokenizer(path, ["to", "be", "or", "not"])  # and one for what is unknown
    monkeypatch.setattr(vocabulary, "MAX_TOKENS", 5)
    assert tokenizer_vocabulary(str(path)).size == 5
    monkeypatch.setattr(vocabulary, "MAX_TOKENS", 4)
    with pytest.raises(DataInvalid, match="knows 5 tokens; at most 4"):
        tokenizer_vocabulary(str(path))


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", lambda directory: read_source(str(directory))),
        ("model.safetensors.index.json", stored_tensors),
    ],
)
def test_settings_and_indices_larger_than_any_are_refused_by_their_size(
    tmp_path: Path, name: str, read: Callable[[Path], object]
) -> None:
    assert MAX_JSON_BYTES <= 16 << 20
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        read_json(sparse(tmp_path / "as-large-as-may-be.json", MAX_JSON_BYTES))
    sparse(tmp_path / name, MAX_JSON_BYTES + 1)
    with pytest.raises(ConfigInvalid, match="is larger than 16,777,216 bytes") as error:
        read(tmp_path)
    assert error.value.pointer == POINTER


def test_a_header_of_tensors_larger_than_any_is_not_read(tmp_path: Path) -> None:
    assert MAX_HEADER <= 16 << 20
    for length, reason in ((MAX_HEADER, "cannot be read"), (MAX_HEADER + 1, "is no safetensors file")):
        sparse(tmp_path / "model.safetensors", 8 + length, length.to_bytes(8, "little"))
        with pytest.raises(ConfigInvalid, match=reason) as error:
            stored_tensors(tmp_path)
        assert error.value.pointer == POINTER


def test_a_networks_own_tokenizer_is_read_no_further_than_one_may_be_long(tmp_path: Path) -> None:
    sparse(write_config(tmp_path, LLAMA) / "tokenizer.json", 8 * MAX_TOKENIZER_BYTES)
    tracemalloc.start()
    try:
        assert conversion.refused("llama", tmp_path, conversion.vocabulary(kind="tokenizer")).pointer == TOKENIZER
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_TOKENIZER_BYTES
    finally:
        tracemalloc.stop()

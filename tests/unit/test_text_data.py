import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dbserve.contracts.job import DataSpec
from dbserve.contracts.plan import DataFacts, Vocabulary
from dbserve.datasets import inspect
from dbserve.datasets.vocabulary import bytes_vocabulary, characters_vocabulary, codec_of, tokenizer_vocabulary
from dbserve.errors import ConfigInvalid, ContractMismatch, DataInvalid, StorageError
from tests.shards import write_text, write_word_tokenizer
from workers.data import Dataset, open_dataset

SENTENCE = "to be, or not to be: that is the question. "


def look(uri: str | Path, tmp_path: Path, **more: Any) -> DataFacts:
    spec = DataSpec.model_validate({"uri": str(uri), "sequence_length": 8, **more})
    return inspect(spec, modality="text", cache_dir=tmp_path / "cache")


def refused(uri: str | Path, tmp_path: Path, **more: Any) -> ConfigInvalid:
    with pytest.raises(ConfigInvalid) as caught:
        look(uri, tmp_path, **more)
    return caught.value


def opened(uri: str | Path, tmp_path: Path, **more: Any) -> Dataset:
    spec = DataSpec.model_validate({"uri": str(uri), "sequence_length": 8, **more})
    return open_dataset(look(uri, tmp_path, **more), spec, cache_dir=tmp_path / "cache")


def stream_of(data: Dataset) -> list[int]:
    """What lies on the disk: the parts in their order."""
    parts = [split.tokens for split in (data.train, data.validation, data.test)]
    return np.concatenate([part for part in parts if part is not None]).tolist()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two training shards and a test shard; rows of uneven length, one of them empty."""
    write_text(tmp_path / "d/train-0.parquet", [SENTENCE, "", "or not to be" * 5])
    write_text(tmp_path / "d/train-1.parquet", [SENTENCE * 20], text_type=pa.large_string())
    write_text(tmp_path / "d/test-0.parquet", [SENTENCE * 2])
    return tmp_path / "d"


JOINED = SENTENCE + "or not to be" * 5 + SENTENCE * 20


def test_characters_are_tokens_in_sorted_order_and_shards_one_stream(shards: Path, tmp_path: Path) -> None:
    facts = look(shards, tmp_path)
    symbols = sorted(set(JOINED))
    assert facts.vocabulary is not None
    assert list(facts.vocabulary.symbols) == symbols
    assert facts.vocabulary.size == len(symbols)
    assert facts.vocabulary.sha256 == hashlib.sha256(json.dumps(symbols, separators=(",", ":")).encode()).hexdigest()
    assert stream_of(opened(shards, tmp_path)) == [symbols.index(character) for character in JOINED]


def test_bytes_are_tokens_of_their_own_value(tmp_path: Path) -> None:
    text = "naïve café, 東京 " * 20
    shard = write_text(tmp_path / "a.parquet", [text[:50], text[50:]])
    facts = look(shard, tmp_path, vocabulary="bytes")
    assert facts.vocabulary is not None
    assert (facts.vocabulary.kind, facts.vocabulary.size) == ("bytes", 256)
    assert bytes(stream_of(opened(shard, tmp_path, vocabulary="bytes"))) == text.encode()


def test_the_facts_of_text_hold_no_image(shards: Path, tmp_path: Path) -> None:
    facts = look(shards, tmp_path)
    assert (facts.encoding, facts.image_shape, facts.class_names, facts.sequence_length) == ("text", None, (), 8)


def test_held_out_parts_are_the_stretches_at_the_end_of_the_stream(shards: Path, tmp_path: Path) -> None:
    data = opened(shards, tmp_path, test_fraction=0.25, validation_fraction=0.2)
    symbols, tokens = sorted(set(JOINED)), len(JOINED)
    test = round(tokens * 0.25)
    validation = round((tokens - test) * 0.2)
    cuts = {"test": (tokens - test, tokens), "validation": (tokens - test - validation, tokens - test)}
    for name, (start, stop) in cuts.items():
        split = getattr(data, name)
        spelled = "".join(symbols[token] for token in split.inputs.reshape(-1))
        assert spelled == JOINED[start : start + (stop - start) // 8 * 8]
        assert len(split) == (stop - start) // 8


def test_a_test_text_of_its_own_is_a_stream_of_its_own(shards: Path, tmp_path: Path) -> None:
    data = opened(shards, tmp_path, test_uri=str(shards))
    symbols = sorted(set(JOINED))
    assert data.test.tokens is not None
    assert "".join(symbols[token] for token in data.test.tokens) == SENTENCE * 2
    assert data.train.tokens is not None
    assert data.validation.tokens is not None
    assert len(data.train.tokens) + len(data.validation.tokens) == len(JOINED)


def test_the_rows_of_the_plan_are_the_rows_of_the_data_set(shards: Path, tmp_path: Path) -> None:
    for length in (2, 7, 8, 40):
        facts = look(shards, tmp_path, sequence_length=length)
        data = opened(shards, tmp_path, sequence_length=length)
        found = (len(data.train), len(data.validation), len(data.test))
        assert found == (facts.train_rows, facts.validation_rows, facts.test_rows)
        assert data.test.inputs.shape == (len(data.test), length)


@pytest.mark.parametrize("name", ["val-0", "valid-0", "validation-0", "test-0"])
def test_shards_of_held_out_text_are_never_trained_on(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / "d/part-0.parquet", [SENTENCE * 10])
    write_text(tmp_path / f"d/{name}.parquet", [SENTENCE * 10])
    assert [Path(shard).stem for shard in look(tmp_path / "d", tmp_path).train_shards] == ["part-0"]


def test_a_directory_whose_held_out_shards_are_called_val_is_tested_on_them(tmp_path: Path) -> None:
    write_text(tmp_path / "d/train-0.parquet", [SENTENCE * 10])
    write_text(tmp_path / "d/val-0.parquet", [SENTENCE * 10])
    facts = look(tmp_path / "d", tmp_path, test_uri=str(tmp_path / "d"))
    assert [Path(shard).stem for shard in facts.test_shards] == ["val-0"]


def test_a_character_that_training_never_saw_is_named_with_shard_and_row(shards: Path, tmp_path: Path) -> None:
    test = write_text(tmp_path / "other.parquet", [SENTENCE] * 5000 + ["to be é"])
    error = refused(shards, tmp_path, test_uri=str(test))
    assert error.pointer == "/data/test_uri"
    assert f"{test}, row 5000: character 'é' (U+00E9)" in str(error)


@pytest.mark.parametrize(
    ("texts", "text_type", "pointer", "said"),
    [
        ([1, 2], pa.int32(), "/data/text_column", "'text' is int32"),
        ([b"a"], pa.binary(), "/data/text_column", "'text' is binary"),
        ([SENTENCE, None], None, "/data/text_column", "row 1: 'text' is null"),
        ([], None, "/data/uri", "holds no row"),
        (["a" * 100], None, "/data/uri", "1 distinct characters"),
        (["", ""], None, "/data/uri", "0 distinct characters"),
    ],
)
def test_a_bad_text_shard_is_refused_at_its_pointer(
    tmp_path: Path, texts: list[Any], text_type: Any, pointer: str, said: str
) -> None:
    error = refused(write_text(tmp_path / "a.parquet", texts, text_type=text_type), tmp_path)
    assert error.pointer == pointer
    assert said in str(error)


def test_a_missing_text_column_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    error = refused(write_text(tmp_path / "a.parquet", [SENTENCE], column="body"), tmp_path)
    assert error.pointer == "/data/text_column"
    assert "it has body" in str(error)


@pytest.mark.parametrize(
    ("characters", "more", "pointer", "said"),
    [
        (40, {"test_fraction": 0.1}, "/data/test_fraction", "test_fraction 0.1 of 40 tokens holds 4 tokens"),
        (100, {"validation_fraction": 0.05}, "/data/validation_fraction", "of 80 tokens holds 4 tokens"),
        (30, {"test_fraction": 0.8, "validation_fraction": 0.0}, "/data/sequence_length", "30 tokens"),
        (200, {"sequence_length": 300}, "/data/test_fraction", "not one window of 300"),
    ],
)
def test_a_part_that_holds_no_window_is_refused_with_the_numbers(
    tmp_path: Path, characters: int, more: dict[str, Any], pointer: str, said: str
) -> None:
    error = refused(write_text(tmp_path / "a.parquet", ["ab" * (characters // 2)]), tmp_path, **more)
    assert error.pointer == pointer
    assert said in str(error)


def test_a_test_text_shorter_than_a_window_is_refused_at_its_uri(shards: Path, tmp_path: Path) -> None:
    short = write_text(tmp_path / "short.parquet", ["to be"])
    assert refused(shards, tmp_path, test_uri=str(short)).pointer == "/data/test_uri"


@pytest.mark.parametrize(
    ("modality", "key", "value"),
    [
        ("text", "image_column", "picture"),
        ("text", "label_column", "class"),
        ("text", "image_size", 32),
        ("text", "augment", {"flip": True}),
        ("images", "text_column", "body"),
        ("images", "vocabulary", "bytes"),
        ("images", "tokenizer", "/tokenizer.json"),
        ("images", "sequence_length", 64),
    ],
)
def test_a_key_of_the_other_modality_is_refused_at_its_pointer(
    tmp_path: Path, modality: Any, key: str, value: object
) -> None:
    spec = DataSpec.model_validate({"uri": str(tmp_path), key: value})
    with pytest.raises(ConfigInvalid) as caught:
        inspect(spec, modality=modality, cache_dir=tmp_path)
    assert caught.value.pointer == f"/data/{key}"


def test_a_text_is_counted_once_and_again_when_it_changes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = look(shards, tmp_path)
    with monkeypatch.context() as only:
        only.setattr("dbserve.datasets.text.code_points", None)  # a second count would fail
        assert look(shards, tmp_path) == facts
    write_text(shards / "train-1.parquet", [SENTENCE * 20 + "!"])
    os.utime(shards / "train-1.parquet", ns=(1, 1))
    assert look(shards, tmp_path) != facts


def test_a_damaged_count_is_made_again(shards: Path, tmp_path: Path) -> None:
    facts = look(shards, tmp_path)
    for kept in (tmp_path / "cache/text").iterdir():
        kept.write_text("{")
    assert look(shards, tmp_path) == facts


def test_a_cache_directory_in_which_nothing_can_be_kept_is_a_storage_error(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(StorageError, match="cannot be kept"):
        look(shards, tmp_path)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    pytest.importorskip("tokenizers")
    return write_word_tokenizer(tmp_path / "tokenizer.json", ["to", "be", "or", "not"])


def test_a_tokenizers_tokens_are_those_of_its_file_row_by_row(tokenizer: Path, tmp_path: Path) -> None:
    shard = write_text(tmp_path / "a.parquet", ["to be or not to be", "", "be gone "] * 20)
    facts = look(shard, tmp_path, tokenizer=str(tokenizer))
    assert facts.vocabulary is not None
    assert (facts.vocabulary.kind, facts.vocabulary.size) == ("tokenizer", 5)
    assert facts.vocabulary.tokenizer == str(tokenizer)
    assert facts.vocabulary.sha256 == hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    assert stream_of(opened(shard, tmp_path, tokenizer=str(tokenizer))) == [1, 2, 3, 4, 1, 2, 2, 0] * 20


def test_a_tokenizer_that_changed_after_the_plan_is_refused_by_name(tokenizer: Path, tmp_path: Path) -> None:
    shard = write_text(tmp_path / "a.parquet", ["to be or not to be"] * 20)
    spec = DataSpec(uri=str(shard), tokenizer=str(tokenizer), sequence_length=8)
    facts = inspect(spec, modality="text", cache_dir=tmp_path)
    write_word_tokenizer(tokenizer, ["be", "to", "or", "not"])
    with pytest.raises(ContractMismatch, match="tokenizer") as caught:
        open_dataset(facts, spec, cache_dir=tmp_path)
    assert str(tokenizer) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"version": "1.0"}', b"\xff\xfe", b"[1, 2]"])
def test_a_file_that_is_no_tokenizer_is_refused(tokenizer: Path, tmp_path: Path, content: bytes) -> None:
    tokenizer.write_bytes(content)
    shard = write_text(tmp_path / "a.parquet", [SENTENCE])
    error = refused(shard, tmp_path, tokenizer=str(tokenizer))
    assert error.pointer == "/data/tokenizer"
    assert "is not a tokenizer.json" in str(error)


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    shard = write_text(tmp_path / "a.parquet", [SENTENCE])
    assert refused(shard, tmp_path, tokenizer="/nowhere/tokenizer.json").pointer == "/data/tokenizer"


def test_a_tokenizer_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    path = write_word_tokenizer(tmp_path / "tokenizer.json", ["to"])
    error = refused(write_text(tmp_path / "a.parquet", [SENTENCE]), tmp_path, tokenizer=str(path))
    assert error.pointer == "/data/tokenizer"
    assert "dbserve[hf]" in str(error)


@pytest.mark.parametrize("vocabulary", [characters_vocabulary("naïve "), bytes_vocabulary()])
def test_what_was_encoded_is_decoded_to_what_it_was(vocabulary: Vocabulary) -> None:
    codec = codec_of(vocabulary)
    assert codec.decode(codec.encode(["naïve ", "", "naïve"])) == "naïve naïve"


def test_what_a_tokenizer_encoded_is_decoded_to_its_words(tokenizer: Path) -> None:
    codec = codec_of(tokenizer_vocabulary(str(tokenizer)))
    assert codec.decode(codec.encode(["not to", "be"])).split() == ["not", "to", "be"]


def test_half_a_character_of_bytes_is_decoded_to_the_replacement_character() -> None:
    assert codec_of(bytes_vocabulary()).decode([0x61, 0xC3]) == "a\ufffd"


def test_the_width_of_a_token_follows_the_vocabulary(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    small = write_word_tokenizer(tmp_path / "small.json", [f"w{number}" for number in range((1 << 16) - 1)])
    large = write_word_tokenizer(tmp_path / "large.json", [f"w{number}" for number in range(1 << 16)])
    shard = write_text(tmp_path / "a.parquet", ["w0 w65534 w65535 "] * 40)
    narrow = opened(shard, tmp_path, tokenizer=str(small)).train.inputs
    wide = opened(shard, tmp_path, tokenizer=str(large)).train.inputs
    assert (narrow.dtype, sorted(set(narrow.reshape(-1)))) == (np.dtype("<u2"), [0, 1, 65535])
    assert (wide.dtype, sorted(set(wide.reshape(-1)))) == (np.dtype("<i4"), [1, 65535, 65536])


def test_the_stream_is_mapped_and_cannot_be_written_to(shards: Path, tmp_path: Path) -> None:
    data = opened(shards, tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        data.train.inputs[0] = 0
    assert any("tokens.u16" in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_stream_that_lost_bytes_is_written_again(shards: Path, tmp_path: Path) -> None:
    before = stream_of(opened(shards, tmp_path))
    (kept,) = (tmp_path / "cache/decoded").glob("*/tokens.u16")
    kept.write_bytes(kept.read_bytes()[:100])
    assert stream_of(opened(shards, tmp_path)) == before


def test_text_that_grew_since_the_plan_is_refused(shards: Path, tmp_path: Path) -> None:
    spec = DataSpec(uri=str(shards), sequence_length=8)
    facts = inspect(spec, modality="text", cache_dir=tmp_path)
    write_text(shards / "train-1.parquet", [SENTENCE * 30])
    with pytest.raises(DataInvalid, match="other rows than when the job was planned"):
        open_dataset(facts, spec, cache_dir=tmp_path)


def test_text_that_got_a_new_character_since_the_plan_is_refused_and_nothing_is_left(
    shards: Path, tmp_path: Path
) -> None:
    spec = DataSpec(uri=str(shards), sequence_length=8)
    facts = inspect(spec, modality="text", cache_dir=tmp_path)
    write_text(shards / "train-1.parquet", [SENTENCE, SENTENCE + "é"])
    with pytest.raises(DataInvalid, match=r"train-1.parquet, row 1: character 'é'"):
        open_dataset(facts, spec, cache_dir=tmp_path)
    assert [path.suffix for path in (tmp_path / "decoded").iterdir()] == [".lock"]

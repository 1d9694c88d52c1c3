"""A job as text: what is read, and what is refused where."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray._private.label_utils import LABEL_REGEX, validate_label_selector

from dbserve.contracts.job import JobSpec
from dbserve.errors import Fault, SpecInvalid
from dbserve.jobfile import MAX_FAULTS, parse_job, read_job

JOB: dict[str, Any] = {
    "name": "cifar-vit",
    "architecture": {"kind": "vit", "options": {"depth": 12}},
    "data": {"uri": "./shards/train-*.parquet", "test_uri": "s3://bucket/test"},
    "blocks": {"count": 3, "overlap": 0.05},
    "training": {"steps": 2000, "lr": 5e-4},
}
YAML = """\
name: cifar-vit
architecture: {kind: vit, options: {depth: 12}}
data: {uri: "./shards/train-*.parquet", test_uri: "s3://bucket/test"}
blocks: {count: 3, overlap: 0.05}
training: {steps: 2000, lr: 5e-4}   # PyYAML alone would read 5e-4 as a string
"""


def job(**changes: Any) -> bytes:
    return json.dumps({**JOB, **changes}).encode()


def json_with(old: str, new: str) -> bytes:
    text = json.dumps(JOB)
    assert old in text
    return text.replace(old, new).encode()


def faults_of(text: bytes, form: Any = "json") -> list[Fault]:
    with pytest.raises(SpecInvalid) as refused:
        parse_job(text, form)
    return list(refused.value.faults)


def test_json_and_yaml_of_the_same_job_are_the_same_job() -> None:
    assert parse_job(YAML.encode(), "yaml") == parse_job(job(), "json")
    assert parse_job(YAML.encode(), "yaml").digest() == parse_job(job(), "json").digest()


def test_a_default_that_is_written_out_makes_no_other_job() -> None:
    assert parse_job(job(labels={}), "json").digest() == parse_job(job(), "json").digest()
    assert parse_job(job(name="other"), "json").digest() != parse_job(job(), "json").digest()


def test_a_byte_order_mark_is_no_part_of_the_job() -> None:
    assert parse_job(b"\xef\xbb\xbf" + job(), "json") == parse_job(job(), "json")


@pytest.mark.parametrize(
    ("text", "place", "code"),
    [
        (job(trainign={}), "/trainign", "unknown_key"),
        (json_with('"depth"', '"depth": 1, "depth"'), "/architecture/options/depth", "duplicate_key"),
        (json_with("0.0005", "NaN"), "/training/lr", "not_finite"),
        (json_with("0.0005", "-Infinity"), "/training/lr", "not_finite"),
        (json_with("0.0005", "1e999"), "/training/lr", "not_finite"),
        (json_with('"depth": 12', '"depth": 1e999'), "/architecture/options/depth", "not_finite"),
        (json_with("0.0005", '"0.0005"'), "/training/lr", "float_type"),
        (json_with("2000", "2000.0"), "/training/steps", "int_type"),
        (json_with("2000", "true"), "/training/steps", "int_type"),
        (json_with("2000", "-1"), "/training/steps", "greater_than_equal"),
        (json_with("2000", "1" + "0" * 40), "/training/steps", "less_than_equal"),
        (json_with('"steps": 2000, ', ""), "/training/steps", "missing"),
        (json_with('"count": 3', '"count": 3, "layers": [4, 8]'), "/blocks", "value_error"),
        (json_with('"count": 3', '"count": 3, "train": [0, "x"]'), "/blocks/train/1", "int_type"),
        (json_with('"count": 3', '"count": 3, "train": "some"'), "/blocks/train", "literal_error"),
        (json_with('"count": 3', '"count": 3, "train": []'), "/blocks/train", "value_error"),
        (json_with('"count": 3', '"count": 3, "train": [1, 1]'), "/blocks/train", "value_error"),
        (json_with('"count": 3', '"count": 3, "partition": "explicit"'), "/blocks/edges", "missing"),
        (json_with('"count": 3', '"count": 1, "edges": [9.0, 1.0]'), "/blocks/edges", "value_error"),
        (json_with("2000", '2000, "warmup": 2001'), "/training/warmup", "value_error"),
        (json_with("2000", '2000, "batch_size": 32, "accumulate": 3'), "/training/accumulate", "value_error"),
        (job(noise={"sigma_min": 1e-300}), "/noise/sigma_min", "greater_than_equal"),
        (job(data={"uri": "x", "vocabulary": "bytes", "tokenizer": "y"}), "/data/tokenizer", "value_error"),
        (job(evaluation={"baselines": ["shallow", "shallow"]}), "/evaluation/baselines", "value_error"),
        (job(evaluation={"rows": 1}), "/evaluation/rows", "greater_than_equal"),
        (job(resources={"node_labels": {"a/b/c": "x"}}), "/resources/node_labels/a~1b~1c", "string_pattern_mismatch"),
        (job(resources={"node_labels": {"": "x"}}), "/resources/node_labels/", "string_pattern_mismatch"),
        (job(resources={"node_labels": {"zone": "a/b"}}), "/resources/node_labels/zone", "string_pattern_mismatch"),
        (job(resources={"gpus_per_block": 1.0, "gpu_type": "a/b"}), "/resources/gpu_type", "string_pattern_mismatch"),
        (job(labels={"a/b": 3}), "/labels/a~1b", "string_type"),
        (job(name="\ud800"), "/name", "malformed"),
        (job(**{"\ud800": 1}), "", "malformed"),
        (b"", "", "malformed"),
        (b"[1", "", "malformed"),
        (b"[]", "", "model_type"),
        (b"\xff\xfe", "", "malformed"),
        (b'{"a": ' + b"9" * 5000 + b"}", "", "too_large"),
        (b"[" * 100_000, "", "too_deep"),
        (job(x=json.loads("[" * 40 + "]" * 40)), "/x" + "/0" * 32, "too_deep"),
    ],
)  # fmt: skip
def test_a_fault_in_json_is_pointed_at(text: bytes, place: str, code: str) -> None:
    assert (place, code) in [(fault.pointer, fault.code) for fault in faults_of(text)]


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("name: a\nname: b\n", "/name", "twice"),
        ("a: &x [1]\nb: *x\n", "", "aliases"),
        ("a: !!python/object:os.system x\n", "", "tags"),
        ("a: 1\n---\nb: 2\n", "", "more than one"),
        ("a: .nan\n", "/a", "finite"),
        ("a: -.inf\n", "/a", "finite"),
        ("1: 2\n", "", "not a string"),
        ("a: [1\n", "", "not YAML"),
        ("a: \x00\n", "", "not YAML"),
        ('name: "\\ud800"\n', "", "not YAML"),
        ("[" * 100_000, "", "deeper"),
        ("a: [" + "1," * 60_000 + "1]", "", "nodes"),
        ("a: " + "9" * 5000, "", "digits"),
    ],
)
def test_a_fault_in_yaml_is_pointed_at(text: str, place: str, says: str) -> None:
    (fault,) = faults_of(text.encode(), "yaml")
    assert fault.pointer == place
    assert says in fault.message


@pytest.mark.parametrize(
    ("written", "meant"),
    [("no", "no"), ("2024-01-01", "2024-01-01"), ("12:30:45", "12:30:45"), ("0o17", "0o17"), ('"7"', "7")],
)
def test_a_plain_yaml_scalar_means_what_it_looks_like(written: str, meant: str) -> None:
    text = YAML.replace("name: cifar-vit", f"name: cifar-vit\nlabels: {{key: {written}}}")
    if ":" in meant:
        assert "/labels/key" in {fault.pointer for fault in faults_of(text.encode(), "yaml")}, "no number in base 60"
    else:
        assert parse_job(text.encode(), "yaml").labels == {"key": meant}


def refused_or_read(text: bytes, form: Any) -> None:
    """Anything but a SpecInvalid, or one that cannot be sent, is a failure."""
    with contextlib.suppress(SpecInvalid):
        try:
            parse_job(text, form)
        except SpecInvalid as refused:
            json.dumps(refused.faults, ensure_ascii=False).encode()
            raise


LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text())
TREE = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(st.binary() | st.text().map(str.encode))
def test_no_bytes_make_the_reader_fail(text: bytes) -> None:
    refused_or_read(text, "json")
    refused_or_read(text, "yaml")


@given(st.sampled_from(sorted(JOB)), TREE)
def test_no_value_makes_the_reader_fail(key: str, value: Any) -> None:
    text = json.dumps({**JOB, key: value}).encode()
    refused_or_read(text, "json")
    refused_or_read(text, "yaml")


def test_every_fault_is_told_at_once_and_a_misspelt_key_gets_a_hint() -> None:
    faults = faults_of(json_with('"steps"', '"stepz"'))
    assert {fault.pointer: fault.message for fault in faults} == {
        "/training/steps": "required, and not given",
        "/training/stepz": "unknown key; did you mean 'steps'?",
    }


def test_a_flood_of_faults_is_cut_off() -> None:
    assert len(faults_of(job(**{f"key{i}": i for i in range(5000)}))) == MAX_FAULTS


def test_what_was_handed_in_is_not_echoed() -> None:
    secret = "hunter2hunter2"
    for text in (job(name=f"!{secret}"), job(seed=secret), json_with("0.0005", f'"{secret}"'), f"x{secret}".encode()):
        assert secret not in str(faults_of(text))


def test_a_list_that_is_too_short_is_told_at_the_place_that_is_missing() -> None:
    (fault,) = faults_of(job(training={"steps": 1, "betas": [0.9]}))
    assert (fault.pointer, fault.code) == ("/training/betas/1", "missing")


def test_relative_uris_mean_files_next_to_the_job_file(tmp_path: Path) -> None:
    spec = read_job(YAML.encode(), form="yaml", directory=tmp_path)
    assert spec.data.uri == f"{tmp_path.resolve()}/shards/train-*.parquet"
    assert spec.data.test_uri == "s3://bucket/test"
    builtin = read_job(job(data={"uri": "builtin:digits"}), form="json", directory=tmp_path)
    assert builtin.data.uri == "builtin:digits"


def test_a_spec_that_was_read_reads_back_from_its_own_json() -> None:
    spec = parse_job(YAML.encode(), "yaml")
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


LABELS = st.text("aZ9._-/ ", max_size=8)


@given(LABELS, LABELS)
def test_labels_of_nodes_are_taken_if_ray_takes_them_in_a_request_for_nodes(key: str, value: str) -> None:
    spec = job(resources={"node_labels": {key: value}})
    try:
        parse_job(spec, "json")
    except SpecInvalid:
        prefix, slash, _ = key.rpartition("/")
        if not slash or LABEL_REGEX.fullmatch(prefix):  # of prefixes Ray takes what no node could have: a..b
            assert validate_label_selector({key: value}) is not None
    else:
        assert validate_label_selector({key: value}) is None

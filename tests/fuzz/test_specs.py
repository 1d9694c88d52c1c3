"""Jobs that nobody would write: planned, or refused with a place in the very document; never anything else."""

import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, cast

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbserve.cards import list_cards
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts, JobPlan
from dbserve.datasets.vocabulary import characters_vocabulary
from dbserve.errors import ConfigInvalid, SpecInvalid
from dbserve.jobfile import Format, parse_job
from dbserve.planner import load_card, plan_job
from tests.fuzz.schemas import values
from tests.jobs import FACTS

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(600)]

EXAMPLES = int(os.environ.get("DBSERVE_FUZZ_EXAMPLES", "15")) * 10
bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 500,  # the same jobs every time; a soak draws others each night
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)

TEXT = FACTS.model_copy(
    update={
        "image_shape": None,
        "class_names": (),
        "encoding": "text",
        "vocabulary": characters_vocabulary(" abc"),
        "sequence_length": 16,
    }
)
CUTS = ("count", "layers_per_block", "layers", "max_bytes_per_worker")


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """What the schema of jobs and that of an architecture allow, cut in one way."""
    tree: dict[str, Any] = draw(_JOBS)
    kind = draw(st.sampled_from(sorted(_OPTIONS)))
    tree["architecture"] = {"kind": kind, "options": draw(_OPTIONS[kind])}
    given_cuts = [name for name in CUTS if tree["blocks"].get(name) is not None]
    kept = draw(st.sampled_from(given_cuts)) if given_cuts else "count"
    tree["blocks"] = {name: value for name, value in tree["blocks"].items() if name not in CUTS or name == kept}
    tree["blocks"].setdefault("count", draw(st.integers(1, 8))) if kept == "count" else None
    if draw(st.booleans()):  # cut as it should be: most random ones are refused for nothing else
        layers = draw(st.integers(1, 4))
        tree["architecture"]["options"]["depth"] = layers * draw(st.integers(1, 4))
        tree["blocks"] = {"layers_per_block": layers}
    if tree["training"].get("warmup", 0) > tree["training"]["steps"]:
        tree["training"]["warmup"] = 0
    return tree


_JOBS = values(JobSpec.model_json_schema())
_OPTIONS = {card.kind: values(card.options_schema) for card in list_cards()}
BAD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 1e308, 10**400, float("nan"), float("-inf"), "", "\x00", "\ud800", "NaN", "🜁" * 300),
    *([], {}, [[]], {"": None}, {"a": {"b": 1}}, json.loads("[" * 40 + "]" * 40)),
)


@bounded
@given(jobs())
def test_any_job_that_the_schema_allows_is_planned_or_refused_at_a_place(tree: dict[str, Any]) -> None:
    planned_or_refused(tree)


@bounded
@given(jobs(), st.data())
def test_any_job_that_was_tampered_with_is_planned_or_refused_at_a_place(
    tree: dict[str, Any], data: st.DataObject
) -> None:
    for _ in range(data.draw(st.integers(1, 6))):
        tree = tampered(tree, data.draw)
    planned_or_refused(tree)


@bounded
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
def test_any_bytes_are_a_job_or_are_refused(text: bytes) -> None:
    for form in ("json", "yaml"):
        parsed(text, cast("Format", form))


@bounded
@given(jobs(), st.randoms(use_true_random=False))
def test_a_job_is_the_same_in_json_and_yaml_and_in_any_order_of_keys(tree: dict[str, Any], random: Any) -> None:
    text = json.dumps(tree).encode()
    spec = parsed(text, "json")
    shuffled = json.dumps(in_other_order(tree, random.shuffle)).encode()
    again, as_yaml = parsed(shuffled, "json"), parsed(yaml_of(tree), "yaml")
    if isinstance(spec, SpecInvalid):
        assert isinstance(again, SpecInvalid)
        assert isinstance(as_yaml, SpecInvalid)
        assert {fault.pointer for fault in spec.faults} == {fault.pointer for fault in as_yaml.faults}
        return
    assert isinstance(again, JobSpec)
    assert isinstance(as_yaml, JobSpec)
    assert spec == again == as_yaml
    assert spec.digest() == again.digest() == as_yaml.digest()
    first, other = planned(spec), planned(again)
    if isinstance(first, JobPlan):
        assert isinstance(other, JobPlan)
        assert (first.contract_hash, first) == (other.contract_hash, other)


def test_the_jobs_that_are_drawn_are_not_all_refused() -> None:
    """Or the tests above would hold little: at least a tenth comes to a plan."""
    outcomes: list[bool] = []

    @settings(bounded, max_examples=200, database=None, derandomize=True)
    @given(jobs())
    def draw(tree: dict[str, Any]) -> None:
        spec = parsed(json.dumps(tree).encode(), "json")
        outcomes.append(isinstance(spec, JobSpec) and isinstance(planned(spec), JobPlan))

    draw()
    assert sum(outcomes) >= len(outcomes) // 10, f"{sum(outcomes)} of {len(outcomes)}"


def planned_or_refused(tree: dict[str, Any]) -> None:
    spec = parsed(json.dumps(tree).encode(), "json")
    if isinstance(spec, SpecInvalid):
        assert spec.faults
        for fault in spec.faults:
            assert fault.message
            assert resolves(fault.pointer, tree), fault
        return
    plan = planned(spec)
    if isinstance(plan, ConfigInvalid):
        assert str(plan)
        written = spec.model_dump(mode="json")  # with what was left out
        assert resolves(plan.pointer, written), (plan.pointer, plan)
    else:
        assert plan.contract_hash == plan.contract.digest()
        assert JobPlan.model_validate_json(plan.model_dump_json()) == plan


def parsed(text: bytes, form: Format) -> JobSpec | SpecInvalid:
    try:
        return parse_job(text, form)
    except SpecInvalid as refused:
        return refused


def planned(spec: JobSpec) -> JobPlan | ConfigInvalid:
    try:
        card = load_card(spec.architecture.kind)
        facts: DataFacts = TEXT if card.modality == "text" else FACTS
        return plan_job(spec, card, facts)
    except ConfigInvalid as refused:
        return refused


def resolves(pointer: str, tree: Any) -> bool:
    """Whether a JSON pointer (RFC 6901) leads somewhere, or to a key that could be beside those that are there."""
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    for place, part in enumerate(parts):
        last = place == len(parts) - 1
        if isinstance(tree, dict):
            if part not in tree:
                return last
            tree = cast("dict[str, Any]", tree)[part]
        elif isinstance(tree, list):
            if not part.isdecimal() or int(part) >= len(cast("list[Any]", tree)):
                return last
            tree = cast("list[Any]", tree)[int(part)]
        else:
            return False
    return pointer == "" or pointer.startswith("/")


def tampered(tree: dict[str, Any], draw: Callable[[Any], Any]) -> dict[str, Any]:
    """One thing is changed: a value, a key that is not known, a key that is gone."""
    tree = deepcopy(tree)
    everywhere = [*places(tree)]
    in_lists = [path for path in everywhere if path and isinstance(path[-1], int)]
    where = draw(st.sampled_from(in_lists or everywhere) | st.sampled_from(everywhere))
    match draw(st.sampled_from(["replace", "add", "drop"])):
        case "replace" if where:
            inside(tree, where[:-1])[where[-1]] = draw(st.sampled_from(BAD))
        case "drop" if where:
            del inside(tree, where[:-1])[where[-1]]
        case _:
            mapping = inside(tree, where)
            if isinstance(mapping, dict):
                mapping[draw(st.sampled_from(["", "depht", "a/b~c", "__proto__", "🜁"]))] = draw(st.sampled_from(BAD))
    return tree


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children: Any = ()
    if isinstance(tree, dict):
        children = cast("dict[str, Any]", tree).items()
    elif isinstance(tree, list):
        children = enumerate(cast("list[Any]", tree))
    for key, value in children:
        yield from places(value, (*path, key))


def inside(tree: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def in_other_order(tree: Any, shuffle: Callable[[list[Any]], None]) -> Any:
    if isinstance(tree, dict):
        items = list(cast("dict[str, Any]", tree).items())
        shuffle(items)
        return {key: in_other_order(value, shuffle) for key, value in items}
    if isinstance(tree, list):
        return [in_other_order(value, shuffle) for value in cast("list[Any]", tree)]
    return tree


class _Dumper(yaml.SafeDumper):
    """Strings in quotes: PyYAML writes by YAML 1.1, where other words are numbers than in 1.2."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _quoted(dumper: yaml.SafeDumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Dumper.add_representer(str, _quoted)


def yaml_of(tree: Any) -> bytes:
    return cast("str", yaml.dump(tree, Dumper=_Dumper, allow_unicode=True)).encode()

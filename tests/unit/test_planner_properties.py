"""Whatever a job says, it becomes a plan that holds together, or is refused at a key that exists."""

from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts, JobPlan
from dbserve.errors import ConfigInvalid
from dbserve.planner import list_cards, load_card, plan_job
from tests.plans import CIFAR, TEXT
from workers.method.partition import block_of

KINDS = [card.kind for card in list_cards()]
SCHEMA = JobSpec.model_json_schema()
levels = st.floats(1e-3, 100.0)
shares = st.floats(0.01, 1.0)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@st.composite
def option_values(draw: st.DrawFn, rule: dict[str, Any]) -> Any:
    """A value that an option's schema may or may not accept."""
    if "enum" in rule:
        return draw(st.sampled_from(rule["enum"]))
    if "anyOf" in rule:
        return draw(st.none() | option_values(draw(st.sampled_from(rule["anyOf"]))))
    match rule.get("type"):
        case "integer":
            return draw(st.integers(0, 9) | st.sampled_from([16, 32, 64, 257, 10**9]))
        case "number":
            return draw(st.floats(0.0, 2.0))
        case "boolean":
            return draw(st.booleans())
        case _:
            return draw(st.none() | st.text(max_size=3))


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A job file of a known kind. Most parts are sensible, so that whole plans are reached as well as refusals."""
    kind = draw(st.sampled_from(KINDS))
    properties = cast(dict[str, dict[str, Any]], load_card(kind).options_schema["properties"])
    depth = draw(st.integers(1, 12))
    options: dict[str, Any] = {"depth": depth}
    for name in draw(st.lists(st.sampled_from(sorted(properties)), max_size=2)):
        options[name] = draw(option_values(properties[name]))
    count = draw(st.integers(1, 13))
    divisors = [number for number in range(1, depth + 1) if depth % number == 0]
    cut: dict[str, Any] = draw(
        st.fixed_dictionaries({"count": st.sampled_from([*divisors, count])})
        | st.fixed_dictionaries({"layers_per_block": st.sampled_from([*divisors, count])})
        | st.fixed_dictionaries({"layers": st.just([1] * depth) | st.lists(st.integers(1, 6), min_size=1, max_size=6)})
        | st.fixed_dictionaries({"max_bytes_per_worker": st.integers(1, 10**10)})
    )
    partition = draw(maybe(st.sampled_from(["equi_probability", "uniform_log", "equal_information", "explicit"])))
    if partition == "explicit":
        edges = draw(st.lists(levels | shares, min_size=2, max_size=6, unique=True))
        cut["edges"] = sorted(edges, reverse=True) if draw(st.booleans()) else edges
    noise = {name: draw(maybe(levels)) for name in draw(st.lists(st.sampled_from(["sigma_min", "sigma_max"])))}
    for name, values in (("p_mean", st.floats(-8.0, 8.0)), ("p_std", st.floats(0.05, 5.0))):
        if draw(st.integers(0, 4)) == 0:
            noise[name] = draw(values)
    steps, accumulate = draw(st.integers(1, 5000)), draw(st.sampled_from([1, 1, 2, 4]))
    return {
        "name": "any",
        "architecture": {"kind": kind, "options": options},
        "data": {"uri": "anywhere"},
        "blocks": cut
        | {
            "partition": partition,
            "overlap": draw(maybe(st.floats(0.0, 0.49))),
            "branch": draw(maybe(st.just({"steps": 3}))),
            "train": draw(
                st.just("all")
                | st.just("all")
                | st.just("all")
                | st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True)
            ),
        },
        "noise": noise,
        "training": {
            "steps": steps,
            "batch_size": accumulate * draw(st.sampled_from([1, 2, 8, 16, 32, 64, 128, 20_000])),
            "accumulate": accumulate,
            "optimizer": draw(st.sampled_from(["adamw", "muon"])),
            "lr": draw(maybe(st.just("scan") | st.just(0.1))),
            "precision": draw(st.sampled_from(["fp32", "bf16"])),
            "ema": draw(maybe(st.floats(0.0, 0.999))),
            "activation_checkpointing": draw(st.booleans()),
        },
        "evaluation": {
            "baselines": draw(
                st.lists(
                    st.sampled_from(["end_to_end", "shallow", "shallow_ensemble", "shallow_long", "data_parallel"]),
                    unique=True,
                )
            )
        },
    }


def in_document(document: Any, keys: list[str]) -> bool:
    for key in keys:
        if isinstance(document, dict) and key in document:
            document = cast(dict[str, Any], document)[key]
        elif isinstance(document, list | tuple) and key.isdigit() and int(key) < len(cast(list[Any], document)):
            document = cast(list[Any], document)[int(key)]
        else:
            return False
    return True


def in_schema(schema: dict[str, Any], root: dict[str, Any], keys: list[str]) -> bool:
    """Whether the keys lead somewhere in a JSON schema."""
    if "$ref" in schema:
        return in_schema(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root, keys)
    if not keys:
        return True
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        if in_schema(choice, root, keys):
            return True
    key, rest = keys[0], keys[1:]
    if key in schema.get("properties", {}):
        return in_schema(schema["properties"][key], root, rest)
    return key.isdigit() and isinstance(schema.get("items"), dict) and in_schema(schema["items"], root, rest)


def points_at_something(pointer: str, document: dict[str, Any]) -> bool:
    keys = [key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]]
    options = load_card(document["architecture"]["kind"]).options_schema
    return (
        in_document(document, keys)
        or in_schema(SCHEMA, SCHEMA, keys)
        or (keys[:2] == ["architecture", "options"] and in_schema(options, options, keys[2:]))
    )


def plan_or_refusal(spec: JobSpec, facts: DataFacts) -> JobPlan | ConfigInvalid:
    try:
        return plan_job(spec, load_card(spec.architecture.kind), facts)
    except ConfigInvalid as refusal:
        return refusal


def unrolled(plan: JobPlan) -> int:
    """Layers end to end: of a recurrent network, its core's as often as it takes steps."""
    options = cast(dict[str, int], plan.contract.options)
    if plan.contract.architecture != "recurrent":
        return options["depth"]
    return options["prelude"] + options["steps"] * options["core"] + options["coda"]


def check(plan: JobPlan) -> None:
    """What every plan is, whatever was asked for."""
    edges, cut, depth = plan.contract.edges, plan.contract.layers, cast(int, plan.contract.options["depth"])
    assert plan.end_to_end.layers[1] == unrolled(plan)
    assert len(edges) == len(cut) + 1 == len(plan.blocks) + 1
    assert all(high > low > 0 for high, low in pairwise(edges))
    assert (edges[0], edges[-1]) == (plan.contract.sigma_max, plan.contract.sigma_min)
    assert [layer for start, stop in cut for layer in range(start, stop)] == [*range(depth)]
    for block in plan.blocks:
        assert block_of(block.sigma_max, edges) == block.index
        low, high = block.train_sigma_min, block.train_sigma_max
        assert edges[-1] <= low <= block.sigma_min < block.sigma_max <= high <= edges[0]
    for network in (*plan.blocks, plan.end_to_end, plan.shallow):
        memory = network.memory
        assert network.parameters > 0
        assert memory.activations > 0
        assert memory.optimizer >= 4 * network.parameters
        assert memory.total == memory.parameters + memory.gradients + memory.optimizer + memory.activations
    assert plan.training.lr is not None
    assert plan.training.ema is not None
    seen: set[str] = set()
    for task in plan.tasks:
        assert {*task.needs, *task.after} <= seen, "a task comes after all it waits for, so there is no cycle"
        assert task.name not in seen
        assert (task.steps > 0) == (task.kind not in ("assembly", "evaluation"))
        seen.add(task.name)
    assert JobPlan.model_validate_json(plan.model_dump_json()) == plan


UNROLLED = {
    "name": "any",
    "architecture": {"kind": "recurrent", "options": {"depth": 4}},
    "data": {"uri": "anywhere"},
    "blocks": {"count": 1},
    "training": {"steps": 1, "batch_size": 1},
    "evaluation": {"baselines": []},
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents(), st.integers(0, 20))
@example(UNROLLED, 0)
def test_a_job_is_planned_whole_or_refused_at_a_key_that_exists(document: dict[str, Any], chance: int) -> None:
    try:
        spec = JobSpec.model_validate(document)
    except ValidationError:
        return  # the job file's own rules; tests/unit/test_jobfile.py
    held = "images" if chance == 7 else load_card(spec.architecture.kind).modality
    plan = plan_or_refusal(spec, CIFAR if held == "images" else TEXT)
    if isinstance(plan, JobPlan):
        event("planned")
        check(plan)
    else:
        event(f"refused at {plan.pointer}")
        assert points_at_something(plan.pointer, document), f"{plan.pointer}: {plan}"
        assert str(plan)


@pytest.mark.parametrize("pointer", ["/blocks/count", "/blocks/edges/3", "/architecture/options/depth", "/data/uri"])
def test_a_pointer_to_a_key_is_found(pointer: str) -> None:
    assert points_at_something(pointer, {"architecture": {"kind": "vit", "options": {}}})

"""Evaluation in less memory than a model takes: its networks are there in turn, and what is found out is the same."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from dbserve.contracts.plan import BASELINES, DataFacts, JobPlan
from dbserve.contracts.report import Comparison
from dbserve.datasets.vocabulary import characters_vocabulary
from dbserve.planner import load_card, plan_job
from tests.jobs import FACTS, small_plan, small_spec
from workers.data import Dataset, Split
from workers.evaluate import EXAMINATIONS, room_of
from workers.evaluation.residence import Chosen, InTurn, Room, Stored
from workers.evaluation.subject import Examined, Subject
from workers.models import architecture

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
LENGTH = 8
TEXT = FACTS.model_copy(
    update={
        "image_shape": None,
        "class_names": (),
        "encoding": "text",
        "vocabulary": characters_vocabulary(" abc"),
        "sequence_length": LENGTH,
    }
)


def test_whoever_was_asked_for_longest_ago_makes_room() -> None:
    loaded: list[str] = []
    networks = in_turn(Room(20), {"a": 10, "b": 10, "c": 10}, loaded.append)
    for name in ("a", "b", "a", "c", "a", "b"):
        assert networks[name] is networks[name]
    assert loaded == ["a", "b", "c", "b"]


def test_a_network_larger_than_the_room_is_there_alone() -> None:
    room = Room(20)
    networks = in_turn(room, {"small": 5, "large": 50, "other": 5}, lambda _: None)
    assert networks["small"] is not None
    assert networks["large"] is not None
    assert room.taken == 50
    assert networks["other"] is not None
    assert room.taken == 5


def test_what_has_made_room_is_no_longer_in_memory() -> None:
    networks = in_turn(Room(10), {"a": 10, "b": 10}, lambda _: None)
    a = weakref.ref(networks["a"])
    assert a() is not None
    assert networks["b"] is not None
    assert a() is None


def test_chosen_networks_are_looked_up_every_time_and_can_be_cut() -> None:
    loaded: list[str] = []
    chosen = Chosen(in_turn(Room(10), dict.fromkeys("abc", 10), loaded.append), ("c", "a", "b"))
    assert loaded == []
    assert len(chosen) == 3
    assert len(list(chosen[1:])) == 2
    assert chosen[0] is not None
    assert loaded == ["a", "b", "c"]


def test_the_room_of_an_evaluation_is_what_a_blocks_training_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.evaluate.LEAST_ROOM", 1)
    plan = small_plan(small_spec(training={"steps": 5, "batch_size": 4, "ema": 0.0}))
    assert room_of(plan) == 16 * max(block.parameters for block in plan.blocks)


@pytest.mark.parametrize("kind", ["vit", "dit", "mdm", "llama"])
def test_every_family_is_examined_alike_with_one_network_in_memory(kind: str) -> None:
    plan = plan_of(kind)
    networks = networks_of(plan)
    together, _ = examined_in(Room(1_000), plan, *networks)
    in_turn, most = examined_in(Room(1), plan, *networks)
    assert without_seconds(in_turn) == without_seconds(together)
    assert most <= 2  # the one that is loaded, and the one that whoever asks for it has in hand


def examined_in(
    room: Room, plan: JobPlan, blocks: Sequence[nn.Module], baselines: Mapping[str, nn.Module]
) -> tuple[Examined, int]:
    """What is found out with networks of one byte each, and how many of them were in memory at the same time."""
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    most = 0

    def load(network: nn.Module) -> nn.Module:
        nonlocal most
        loaded = deepcopy(network)
        alive.add(loaded)
        most = max(most, len(alive))
        return loaded

    names = tuple(f"block-{index}" for index in range(len(blocks)))
    of_blocks, of_baselines = (
        InTurn(room, {name: Stored(1, partial(load, network)) for name, network in networks.items()})
        for networks in (dict(zip(names, blocks, strict=True)), baselines)
    )
    return examined(plan, Chosen(of_blocks, names), of_baselines), most


def in_turn(room: Room, sizes: Mapping[str, int], loaded: Callable[[str], None]) -> InTurn:
    def load(name: str) -> nn.Module:
        loaded(name)
        return nn.Identity()

    return InTurn(room, {name: Stored(size, partial(load, name)) for name, size in sizes.items()})


def plan_of(kind: str) -> JobPlan:
    options: dict[str, Any] = {"depth": 3, "width": 16, "heads": 2} | ({} if is_text(kind) else {"patch": 4})
    spec = spec_of(kind, options)
    facts: DataFacts = TEXT if is_text(kind) else FACTS
    return plan_job(spec, load_card(kind), facts)


def spec_of(kind: str, options: dict[str, Any]) -> Any:
    return small_spec(
        architecture={"kind": kind, "options": options},
        data={"uri": "builtin:digits", "sequence_length": LENGTH} if is_text(kind) else {"uri": "builtin:digits"},
        blocks={"count": 3},
        evaluation={
            "baselines": ["end_to_end", "shallow_ensemble"],
            "batch_size": 8,
            "samples": 4,
            "sampling_steps": 4,
        },
    )


def is_text(kind: str) -> bool:
    return kind in ("mdm", "llama")


def networks_of(plan: JobPlan) -> tuple[tuple[nn.Module, ...], dict[str, nn.Module]]:
    torch.manual_seed(3)  # pyright: ignore[reportUnknownMemberType]
    contract, kind = plan.contract, architecture(plan.contract.architecture)
    blocks = tuple(kind.denoiser(contract, stop - start).eval() for start, stop in contract.layers)
    baselines = {
        task.name: kind.baseline(contract, plan.network_of(task).layers[1]).eval()
        for task in plan.tasks
        if task.kind in BASELINES
    }
    for network in (*blocks, *baselines.values()):
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)  # or fresh ones would all answer alike
    return blocks, baselines


class Given(Subject):
    """A subject whose baselines are those it is given."""

    given: Mapping[str, nn.Module]

    def baselines(self) -> Mapping[str, nn.Module]:
        return self.given


def examined(plan: JobPlan, blocks: Sequence[nn.Module], baselines: Mapping[str, nn.Module]) -> Examined:
    kind = plan.contract.architecture
    split = text if is_text(kind) else images
    subject = Given(
        spec=spec_of(kind, {}),
        plan=plan,
        data=Dataset(split(40, 1), split(10, 2), split(20, 3)),
        blocks=blocks,
        finals={},
        device=CPU,
    )
    object.__setattr__(subject, "given", baselines)
    with torch.inference_mode():
        return EXAMINATIONS[load_card(kind).family](subject)


def images(rows: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 255, (rows, 8, 8, 1)).astype(np.uint8)
    return Split(inputs=pictures, labels=random.integers(0, 10, rows).astype(np.int64))


def text(rows: int, seed: int) -> Split:
    return Split.of_text(np.random.default_rng(seed).integers(0, 4, rows * LENGTH).astype(np.uint16), LENGTH)


def without_seconds(found: Examined) -> Examined:
    """What was measured with a clock is never twice the same."""
    if not isinstance(found.quality, Comparison):
        return found
    contestants = tuple(
        one.model_copy(update={"values": {key: value for key, value in one.values.items() if key != "seconds"}})
        for one in found.quality.contestants
    )
    quality = found.quality.model_copy(update={"contestants": contestants})
    findings = tuple(said for said in found.findings if "layers in" not in said and " ms" not in said)
    return replace(cast(Any, found), quality=quality, findings=findings)

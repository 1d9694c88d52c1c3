"""What the training of one block has in memory: its own layers, once."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.networks import LLAMA, write_config, write_llama_weights
from tests.training import dataset, planned, run, spec_of
from tests.unit.test_conversion import TEXT
from tests.unit.test_conversion import planned as planned_from_source
from tests.unit.test_conversion import spec_of as spec_from_source
from workers import conversion
from workers.conversion import initial_weights
from workers.trainer import build_network, train_block

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("task", ["block-0", "block-1"])
def test_a_block_builds_no_parameter_but_its_own(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of()
    plan = planned(spec)
    made: list[int] = []
    register: Callable[..., None] = nn.Module.register_parameter

    def counting(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        made.append(0 if parameter is None else parameter.numel())
        register(module, name, parameter)

    monkeypatch.setattr(nn.Module, "register_parameter", counting)
    build_network(spec, plan, plan.task(task))
    assert sum(made) == plan.network_of(plan.task(task)).parameters


def test_what_a_training_begins_with_is_not_kept_beside_what_it_becomes() -> None:
    spec = spec_of()
    plan = planned(spec)
    begun: dict[str, torch.Tensor] = run(spec, "block-0")[0][1].weights
    kept = [weakref.ref(tensor) for tensor in begun.values()]
    steps = train_block(spec, plan, plan.task("block-0"), dataset(), initial_weights=begun)
    del begun
    next(steps)
    assert [ref() for ref in kept] == [None] * len(kept)


def test_what_a_training_resumes_from_is_not_kept_beside_what_it_becomes() -> None:
    spec = spec_of(training={"ema": 0.9})
    plan = planned(spec)
    state = run(spec, "block-0")[4][1]
    kept = [weakref.ref(tensor) for tensors in (state.weights, state.optimizer) for tensor in tensors.values()]
    steps = train_block(spec, plan, plan.task("block-0"), dataset(), state=state)
    del state
    assert next(steps).step == 6
    assert [ref() for ref in kept] == [None] * len(kept)


def test_a_block_reads_no_layer_of_the_source_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_config(tmp_path, LLAMA)
    write_llama_weights(directory)
    spec = spec_from_source("llama", directory, blocks={"count": 4})
    plan = planned_from_source(spec, TEXT)
    tensors: Any = conversion._Tensors  # pyright: ignore[reportPrivateUsage]
    get, asked = tensors.get, list[str]()

    def remembering(self: Any, name: str) -> Any:
        asked.append(name)
        return get(self, name)

    monkeypatch.setattr(tensors, "get", remembering)
    assert initial_weights(spec, plan, plan.task("block-2")) is not None
    layers = {name.split(".")[1] for name in asked if name.startswith("layers.")}
    assert layers == {"2"}, asked

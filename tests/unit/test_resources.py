"""What a job may ask of nodes, and what its tasks hold of it."""

from typing import Any

import pytest
from pydantic import ValidationError

from dbserve.contracts.job import ResourcesSpec
from dbserve.contracts.status import Task
from dbserve.errors import ConfigInvalid
from dbserve.lifecycle import new_tasks
from tests.jobs import small_plan, small_spec


def tasks_of(**changes: Any) -> dict[str, Task]:
    spec = small_spec(**changes)
    return {task.run.task: task for task in new_tasks("j1", small_plan(spec), spec, now=0.0)}


def test_a_job_that_uses_no_new_key_has_the_digest_that_older_versions_gave_it() -> None:
    """By it a repeated request is known, also across an upgrade."""
    assert small_spec().digest() == "fcf5ff4f5c83eb433865bea0d27e308f7885d4039bc9d59cf3df8db3ecba7f11"
    older = small_spec(resources={"cpus_per_block": 2.0, "gpus_per_block": 0.5})
    assert older.digest() == "ab34dace7bb1725e455eae145aeeb0fdf94e19fe2417e4f999514aa1f4249672"
    written_out = small_spec(resources={"replicas": 1, "node_labels": {}, "sharding": "none"})
    assert written_out.digest() == small_spec().digest()
    assert small_spec(resources={"replicas": 2}).digest() != small_spec().digest()


@pytest.mark.parametrize(
    ("asked", "where", "why"),
    [
        ({"replicas": 2, "min_replicas": 3}, "min_replicas", "more than replicas"),
        ({"replicas": 0}, "replicas", "greater than or equal to 1"),
        ({"sharding": "state"}, "sharding", "replicas must be more than 1"),
        ({"gpu_type": "A100"}, "gpu_type", "needs gpus_per_block"),
        ({"placement": "scatter"}, "placement", "'pack' or 'spread'"),
        ({"node_labels": {"a b": "c"}}, "node_labels", "match pattern"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_its_key(asked: dict[str, Any], where: str, why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ResourcesSpec.model_validate(asked)
    [error] = refused.value.errors()
    assert error["loc"][0] == where
    assert why in error["msg"]


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"resources": {"replicas": 33}}, "/resources/replicas"),
        (
            {"resources": {"replicas": 9}, "training": {"steps": 20, "batch_size": 32, "accumulate": 4}},
            "/resources/replicas",
        ),
        ({"resources": {"gpus_per_block": 1.5}}, "/resources/gpus_per_block"),
    ],
)
def test_replicas_without_a_row_and_a_gpu_and_a_half_are_refused(changes: dict[str, Any], pointer: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        small_plan(small_spec(**changes))
    assert refused.value.pointer == pointer


def test_what_is_trained_has_replicas_and_what_is_not_has_one() -> None:
    asked = {"replicas": 4, "min_replicas": 2, "gpus_per_block": 1.0, "gpu_type": "A100", "placement": "pack"}
    tasks = tasks_of(resources=asked, evaluation={"baselines": ["end_to_end", "data_parallel"]})
    counts = {name: (task.replicas, task.min_replicas, task.gpus) for name, task in tasks.items()}
    assert counts == {
        "block-0": (4, 2, 1.0),
        "block-1": (4, 2, 1.0),
        "end_to_end": (4, 2, 1.0),
        "data_parallel": (1, 1, 2.0),
        "assembly": (1, 1, 0.0),
        "evaluation": (1, 1, 1.0),
    }
    assert tasks["block-0"].gpu_type == tasks["evaluation"].gpu_type == "A100"
    assert tasks["assembly"].gpu_type is None, "it uses none"


def test_without_min_replicas_all_of_them_are_needed() -> None:
    assert tasks_of(resources={"replicas": 4})["block-0"].min_replicas == 4


def test_the_plan_counts_the_gpus_of_every_replica() -> None:
    assert small_plan(small_spec(resources={"replicas": 4, "gpus_per_block": 1.0})).gpus == 8.0

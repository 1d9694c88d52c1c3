"""What a plan makes of replicas: the parts of a step, the share of the state, and what cannot be."""

from typing import Any

import pytest

from dbserve.errors import ConfigInvalid
from tests.plans import planned

ROWS = 128


@pytest.mark.parametrize(
    ("replicas", "accumulate", "parts"), [(1, 1, 1), (1, 4, 4), (2, 1, 2), (4, 2, 4), (2, 4, 4), (8, 1, 8)]
)
def test_a_step_has_as_many_parts_for_each_replica(replicas: int, accumulate: int, parts: int) -> None:
    plan = planned(
        training={"steps": 10, "batch_size": ROWS, "accumulate": accumulate}, resources={"replicas": replicas}
    )
    assert plan.training.accumulate == parts
    one = planned(training={"steps": 10, "batch_size": ROWS, "accumulate": parts})
    assert plan.training == one.training, "as one worker with as many micro-batches"
    assert plan.blocks == one.blocks, "and as many bytes"


@pytest.mark.parametrize(
    ("changes", "pointer", "said"),
    [
        ({"resources": {"replicas": 3}}, "/resources/replicas", "3 equal parts; batch_size (128) is no multiple of 3"),
        (
            {"resources": {"replicas": 3}, "training": {"accumulate": 64}},
            "/resources/replicas",
            "3 replicas and accumulate (64) take a step's rows in 192 equal parts",
        ),
        ({"resources": {"replicas": 2, "gpus_per_block": 0.5}}, "/resources/gpus_per_block", "a whole GPU each"),
        (
            {"resources": {"replicas": 2, "sharding": "state"}, "training": {"optimizer": "muon"}},
            "/training/optimizer",
            "give up resources.sharding",
        ),
    ],
    ids=str,
)
def test_what_replicas_cannot_do_is_refused_at_its_key(changes: dict[str, Any], pointer: str, said: str) -> None:
    training = {"steps": 10, "batch_size": ROWS, **changes.get("training", {})}
    with pytest.raises(ConfigInvalid) as refused:
        planned(**{**changes, "training": training})
    assert refused.value.pointer == pointer
    assert said in str(refused.value)


def test_a_shared_state_is_cut_by_the_fewest_replicas_and_activations_are_not() -> None:
    training = {"steps": 10, "batch_size": ROWS, "accumulate": 4, "ema": 0.9}
    one = planned(training=training).blocks[0].memory
    resources = {"replicas": 4, "min_replicas": 2, "sharding": "state"}
    share = planned(training=training, resources=resources).blocks[0].memory
    assert (share.parameters, share.gradients) == (one.parameters / 2, one.gradients / 2)
    assert share.optimizer == one.optimizer / 2, "the average included"
    assert share.activations == one.activations
    assert share.total == share.parameters + share.gradients + share.optimizer + share.activations


def test_fewer_blocks_fit_into_a_workers_bytes_where_replicas_share_the_state() -> None:
    training = {"steps": 10, "batch_size": ROWS, "accumulate": 4}
    shared, own = ({"replicas": 4, "sharding": sharding} for sharding in ("state", "none"))
    limit = planned(training=training, resources=shared, blocks={"count": 2}).blocks[0].memory.total
    blocks = {"max_bytes_per_worker": limit}
    assert len(planned(training=training, resources=shared, blocks=blocks).blocks) == 2
    assert len(planned(training=training, resources=own, blocks=blocks).blocks) > 2


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"gpus_per_block": 2.0}, "a worker trains on one GPU, not on 2"),
        ({"replicas": 2, "min_replicas": 1, "sharding": "state"}, "which must hold all of its state"),
    ],
    ids=str,
)
def test_what_workers_would_not_use_or_may_not_hold_is_said(resources: dict[str, Any], said: str) -> None:
    assert any(said in warning for warning in planned(resources=resources).warnings)
    assert not any(said in warning for warning in planned(resources={"replicas": 2, "gpus_per_block": 1.0}).warnings)

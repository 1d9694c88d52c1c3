"""A small job as the tests need it: its spec, and its plan made by the real planner from invented facts."""

from typing import Any

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts, JobPlan
from dbserve.planner import load_card, plan_job

FACTS = DataFacts(
    train_shards=("/nowhere/train.parquet",),
    test_shards=(),
    train_rows=1000,
    test_rows=200,
    validation_rows=100,
    image_shape=(8, 8, 1),
    encoding="raw",
    class_names=tuple("0123456789"),
)


def small_spec(**changes: Any) -> JobSpec:
    """B = 2 blocks of 1 layer; no baselines. `changes` replace top-level keys."""
    return JobSpec.model_validate(
        {
            "name": "small",
            "architecture": {"kind": "vit", "options": {"depth": 2, "width": 16, "heads": 2, "patch": 4}},
            "data": {"uri": "builtin:digits"},
            "blocks": {"count": 2},
            "training": {"steps": 20, "batch_size": 32},
            "checkpoint": {"every_steps": 5},
            "retry": {"max_attempts": 3, "backoff_seconds": 0.0},
            "evaluation": {"baselines": []},
            **changes,
        }
    )


def small_plan(spec: JobSpec | None = None) -> JobPlan:
    spec = spec or small_spec()
    return plan_job(spec, load_card(spec.architecture.kind), FACTS)

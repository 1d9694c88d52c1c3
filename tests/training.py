"""Small trainings on invented images: what the tests of the trainer share."""

from typing import Any

import numpy as np
import torch

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.planner import load_card, plan_job
from tests.jobs import FACTS, small_spec
from workers.checkpoint import TrainingState
from workers.data import Dataset, Split
from workers.trainer import StepReport, train_block

OPTIONS = {"depth": 2, "width": 16, "heads": 2, "patch": 4}
TASKS = ("end_to_end", "shallow_ensemble", "shallow_long", "data_parallel")


def spec_of(**changes: Any) -> JobSpec:
    """B = 2 blocks of one layer, 10 steps of 32 rows; `training` and `options` are changed key by key."""
    training = {"steps": 10, "batch_size": 32, "lr": 3e-3, "warmup": 3, **changes.pop("training", {})}
    options = {**OPTIONS, **changes.pop("options", {})}
    evaluation = {"baselines": list(TASKS)}
    return small_spec(
        architecture={"kind": "vit", "options": options},
        data={"uri": "builtin:digits", "augment": {"crop_padding": 1, "flip": True}},
        training=training,
        evaluation=evaluation,
        **changes,
    )


def planned(spec: JobSpec, shape: tuple[int, int, int] = (8, 8, 1)) -> JobPlan:
    return plan_job(spec, load_card("vit"), FACTS.model_copy(update={"image_shape": shape}))


def dataset(rows: int = 160, shape: tuple[int, int, int] = (8, 8, 1)) -> Dataset:
    """Images whose brightness is their label: learnable in a few steps."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, rows)
    pixels = labels[:, None, None, None] * 22 + random.integers(0, 40, (rows, *shape))
    split = Split(inputs=pixels.astype(np.uint8), labels=labels.astype(np.int64))
    return Dataset(train=split, validation=split, test=split)


def run(spec: JobSpec, task: str, **arguments: Any) -> list[tuple[StepReport, TrainingState]]:
    """Every report of a task, each with the state captured at it."""
    plan = planned(spec)
    return [(report, report.capture()) for report in train_block(spec, plan, plan.task(task), dataset(), **arguments)]


def same(a: TrainingState, b: TrainingState) -> bool:
    tensors = [(a.weights, b.weights), (a.optimizer, b.optimizer), (a.average, b.average)]
    return a.step == b.step and all(
        first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        for first, second in tensors
    )

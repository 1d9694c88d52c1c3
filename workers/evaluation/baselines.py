"""The baselines a job trained, read back from their checkpoints and put to the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dbserve.contracts.plan import JobPlan, TaskKind, TaskPlan
from dbserve.errors import CheckpointInvalid, ContractMismatch
from workers import checkpoint
from workers.assemble import baseline_of
from workers.checkpoint import TrainingSummary
from workers.data import Split
from workers.evaluation.answers import network_answers
from workers.evaluation.costs import layers_of, network_plan
from workers.evaluation.scores import mean_of_probabilities
from workers.storage import read_tensors


@dataclass(frozen=True)
class Baselines:
    """Log-probabilities (N, K) of the baselines that ran."""

    end_to_end: Tensor | None
    shallow: tuple[Tensor, ...]  # one a member
    shallow_ensemble: Tensor | None  # of one member a block; None where one is missing


def verified_summary(plan: JobPlan, task: TaskPlan, finals: Mapping[str, Path]) -> TrainingSummary:
    """What a task's training was, once its final checkpoint is found whole, of this contract and this task.

    Raises CheckpointInvalid or ContractMismatch, naming what is wrong.
    """
    if task.name not in finals:
        raise CheckpointInvalid(f"no final checkpoint of {task.name}")
    manifest = checkpoint.verify(finals[task.name], contract=plan.contract)
    if manifest.task != task.name:
        raise ContractMismatch(f"{finals[task.name]}: task is {manifest.task!r}, not {task.name!r}")
    if manifest.step != task.steps:
        raise CheckpointInvalid(f"{finals[task.name]}: step is {manifest.step}, but {task.name} ends at {task.steps}")
    return checkpoint.read_summary(finals[task.name])


def baseline_answers(
    plan: JobPlan, finals: Mapping[str, Path], split: Split, batch_size: int, device: torch.device
) -> Baselines:
    """Answers of every baseline in the plan. Their checkpoints have passed verified_summary()."""

    def answers(task: TaskPlan) -> Tensor:
        path = finals[task.name] / checkpoint.WEIGHTS
        network = baseline_of(plan.contract, layers_of(network_plan(plan, task)), read_tensors(path), where=str(path))
        return network_answers(network, split, batch_size, device)

    whole = [answers(task) for task in plan.tasks if task.kind is TaskKind.END_TO_END]
    shallow = tuple(answers(task) for task in plan.tasks if task.kind is TaskKind.SHALLOW)
    return Baselines(
        end_to_end=whole[0] if whole else None,
        shallow=shallow,
        shallow_ensemble=mean_of_probabilities(shallow) if len(shallow) == len(plan.blocks) else None,
    )

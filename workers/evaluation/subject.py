"""What an examination is given, and what it gives back. One examination a family: workers/evaluation/<family>.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import BASELINES, JobPlan, TaskKind
from dbserve.contracts.report import BlockDiagnosis, Comparison, DecodeRule, Quality
from workers.assemble import baseline_of
from workers.checkpoint import answering_weights
from workers.data import Dataset, Split
from workers.evaluation.costs import layers_of
from workers.evaluation.residence import InTurn, Room, Stored


@dataclass(frozen=True)
class Subject:
    """A trained job. The tasks of `plan` are those that trained to their end, and their checkpoints in `finals` are
    verified; `blocks` are on `device`, in evaluation mode, block 0 (the highest noise) first. Blocks and
    baselines that do not fit into the `room` together are there in turn."""

    spec: JobSpec
    plan: JobPlan
    data: Dataset
    blocks: Sequence[nn.Module]
    finals: Mapping[str, Path]
    device: torch.device
    room: Room = field(default_factory=lambda: Room(0))

    def baselines(self) -> Mapping[str, nn.Module]:
        """Every baseline that was trained, by its task's name: on the device, in evaluation mode. Reads their files."""
        stored = {
            task.name: Stored(size=4 * self.plan.network_of(task).parameters, load=partial(self.baseline, task.name))
            for task in self.plan.tasks
            if task.kind in BASELINES
        }
        return InTurn(self.room, stored)

    def baseline(self, name: str) -> nn.Module:
        """One baseline, by its task's name. Raises CheckpointInvalid naming what does not fit."""
        layers = layers_of(self.plan.network_of(self.plan.task(name)))
        where = self.finals[name]
        return baseline_of(self.plan.contract, layers, answering_weights(where), where=str(where)).to(self.device)

    def shallow_members(self) -> tuple[str, ...]:
        """Task names of the shallow networks that were trained for a block's steps."""
        return tuple(task.name for task in self.plan.tasks if task.kind is TaskKind.SHALLOW)

    def held_out(self, split: Split) -> Split:
        """At most `evaluation.rows` rows of it, the first."""
        return split.first(self.spec.evaluation.rows)


@dataclass(frozen=True)
class Examined:
    """What a family's examination found. Only classification has decode rules and a diagnosis of this form."""

    quality: Quality | Comparison
    decode: DecodeRule | None = None
    validation_accuracy: dict[DecodeRule, float] = field(default_factory=dict[DecodeRule, float])
    diagnosis: tuple[BlockDiagnosis, ...] = ()
    swap_accuracy: float | None = None
    warnings: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

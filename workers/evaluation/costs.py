"""What training took: bytes, steps, seconds. From the plan's predictions and the summaries that the trainings left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dbserve.contracts.plan import JobPlan, NetworkPlan, TaskKind, TaskPlan
from dbserve.contracts.report import CostRow, LossCurve, MemoryReport, MemoryRow
from dbserve.contracts.status import MemoryBytes, Task
from dbserve.errors import CheckpointInvalid, ContractMismatch
from workers import checkpoint
from workers.checkpoint import TrainingSummary

_CURVE_POINTS = 200


def layers_of(network: NetworkPlan) -> int:
    start, stop = network.layers
    return stop - start


def counted_bytes(memory: MemoryBytes) -> int | None:
    """Parameters + gradients + optimizer + activations; None where one was not measured."""
    kinds = (memory.parameters, memory.gradients, memory.optimizer, memory.activations)
    return None if None in kinds else sum(kind or 0 for kind in kinds)


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


def memory_report(plan: JobPlan, trained: Mapping[str, TrainingSummary]) -> MemoryReport:
    """Every trained task's bytes, predicted and counted; the largest block over end-to-end."""
    rows = tuple(
        MemoryRow(
            task=name,
            predicted=plan.network_of(plan.task(name)).memory,
            measured=summary.memory if counted_bytes(summary.memory) is not None else None,
        )
        for name, summary in trained.items()
    )
    measured = _measured_ratio(plan, trained)
    return MemoryReport(
        ratio=plan.memory_ratio if measured is None else measured,
        ratio_kind="predicted" if measured is None else "measured",
        ratio_predicted=plan.memory_ratio,
        rows=rows,
    )


def cost_row(plan: JobPlan, task: TaskPlan, summary: TrainingSummary, run: Task | None, batch_size: int) -> CostRow:
    """`wall_seconds` runs from the first attempt's start to the end where the store knows both, else over training.

    Layer evaluations are those of all the task's workers, of a scan of learning rates too; `batch_size` is a worker's.
    """
    layers = layers_of(plan.network_of(task))
    wall = summary.train_seconds + summary.scan_seconds
    if run is not None and run.started_at is not None and run.finished_at is not None:
        wall = run.finished_at - run.started_at
    seconds = summary.train_seconds
    memory = summary.memory
    return CostRow(
        task=task.name,
        layers=layers,
        steps=task.steps,
        batch_size=batch_size,
        layer_evaluations=(task.steps + summary.scan_steps) * batch_size * task.workers * layers,
        wall_seconds=wall,
        step_seconds_mean=seconds / task.steps,
        samples_per_second=summary.samples / seconds if seconds > 0 else 0.0,
        data_wait_share=summary.data_wait_seconds / seconds if seconds > 0 else 0.0,
        bytes_per_worker=memory.peak if memory.peak is not None else counted_bytes(memory),
        attempts=run.run.attempt if run is not None else 1,
        node=run.node if run is not None else None,
        learning_rate=summary.learning_rate,
        workers=task.workers,
    )


def loss_curve(task: str, summary: TrainingSummary) -> LossCurve:
    """At most about 200 points: where there are more, the last of every few, with the mean loss of those few."""
    points = summary.loss
    few = -(-len(points) // _CURVE_POINTS) or 1
    groups = [points[start : start + few] for start in range(0, len(points), few)]
    thinned = tuple(
        group[-1].model_copy(update={"loss": sum(point.loss for point in group) / len(group)}) for group in groups
    )
    return LossCurve(task=task, points=thinned)


def _measured_ratio(plan: JobPlan, trained: Mapping[str, TrainingSummary]) -> float | None:
    def counted(kind: TaskKind) -> list[int | None]:
        return [
            counted_bytes(trained[task.name].memory)
            for task in plan.tasks
            if task.kind is kind and task.name in trained
        ]

    blocks, whole = counted(TaskKind.BLOCK), counted(TaskKind.END_TO_END)
    if not blocks or not whole or None in blocks or not whole[0]:
        return None
    return max(size or 0 for size in blocks) / whole[0]

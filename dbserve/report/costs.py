"""Rows of the memory and the cost tables: what a worker must hold, and what the training took."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dbserve.contracts.report import CostRow, LossCurve, MemoryRow, Report
from dbserve.contracts.status import MemoryBytes
from dbserve.report.charts import Axis, Segment, linear_axis, stacked
from dbserve.report.numbers import (
    MISSING,
    byte_size,
    byte_unit,
    count,
    duration,
    is_number,
    percent,
    rate,
    short,
    signed,
    times,
)

KINDS = ("parameters", "gradients", "optimizer", "activations")
MOST_ROWS = 16  # beyond it, tasks of one size share a bar and full tables are folded
_GROUPS = {
    "trunk": "Trunk",
    "block": "Blocks",
    "end_to_end": "End-to-end",
    "shallow": "Shallow ensemble",
    "shallow_long": "Shallow, longer",
    "data_parallel": "Data-parallel",
}
_LABELS = {"end_to_end": "end-to-end", "shallow_long": "shallow, longer", "data_parallel": "data-parallel"}
_SHALLOW_ALONE = "Shallow network"
_OPTIONAL = ("workers", "learning rate")  # columns that stand where the tasks differ


@dataclass(frozen=True)
class MemoryBar:
    """One task, or several alike. `measured` is empty where nothing was measured."""

    name: str
    ours: bool
    measured: tuple[Segment, ...]
    predicted: tuple[Segment, ...]
    cells: tuple[str, str, str]  # measured total, predicted total, how far the measured lies from it
    description: str


@dataclass(frozen=True)
class TextRow:
    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class MemoryTable:
    axis: Axis
    bars: tuple[MemoryBar, ...]
    details: tuple[TextRow, ...]  # bytes of each kind: measured where known, else predicted in brackets


@dataclass(frozen=True)
class CostTable:
    """`headings` are those of `tasks`; `common` says what all tasks share and no column repeats."""

    sums: tuple[TextRow, ...]  # of tasks of one kind
    headings: tuple[str, ...]
    tasks: tuple[TextRow, ...]
    common: str


def task_kind(task: str) -> str:
    """block-3 is a block, shallow-0 a shallow network; what has no number is its own kind."""
    return re.sub(r"-\d+$", "", task)


def task_label(task: str) -> str:
    return _LABELS.get(task) or re.sub(r"-(\d+)$", r" \1", task)


def measured_total(measured: MemoryBytes | None) -> int | None:
    """The sum of the four kinds where all are known, else the peak."""
    if measured is None:
        return None
    known = [size for _, size in _parts(measured) if size is not None]
    return sum(known) if len(known) == len(KINDS) else measured.peak


def memory_table(report: Report) -> MemoryTable | None:
    rows = report.memory.rows
    if not rows:
        return None
    largest = max(max(row.predicted.total, measured_total(row.measured) or 0) for row in rows)
    unit, name = byte_unit(largest)
    axis = linear_axis((0, largest / unit), label=lambda size: f"{short(size)}\u202f{name}" if size else "0")
    groups = alike(rows) if len(rows) > MOST_ROWS else [(row,) for row in rows]
    bars = tuple(_bar(group, axis.high * unit) for group in groups)
    return MemoryTable(axis, bars, tuple(TextRow(task_label(row.task), _sizes(row)) for row in rows))


def alike(rows: Sequence[MemoryRow]) -> list[tuple[MemoryRow, ...]]:
    """Neighbours of one kind whose predicted bytes are equal and whose measured bytes differ by less than 1 %."""
    groups: list[tuple[MemoryRow, ...]] = []
    for row in rows:
        if groups and _same_size(groups[-1][0], row):
            groups[-1] = (*groups[-1], row)
        else:
            groups.append((row,))
    return groups


def cost_table(report: Report) -> CostTable:
    baseline = next((row for row in report.cost if row.task == "end_to_end"), None)
    kinds = list(dict.fromkeys(task_kind(row.task) for row in report.cost))
    sums = tuple(_sum(kind, [row for row in report.cost if task_kind(row.task) == kind], baseline) for kind in kinds)
    rates = {row.learning_rate for row in report.cost}
    extra = [
        *(["learning rate"] if len(rates) > 1 else []),
        *(["workers"] if any(row.workers != 1 for row in report.cost) else []),
    ]
    rate_of_all = next(iter(rates)) if len(rates) == 1 else None
    common = "" if rate_of_all is None else f"Every task was trained at a peak learning rate of {short(rate_of_all)}."
    columns = [_columns(row) for row in report.cost]
    headings = tuple(name for name in columns[0] if name not in _OPTIONAL or name in extra) if columns else ()
    tasks = tuple(
        TextRow(task_label(row.task), tuple(column[name] for name in headings))
        for row, column in zip(report.cost, columns, strict=True)
    )
    return CostTable(sums, headings, tasks, common)


def loss_groups(report: Report) -> list[tuple[str, str, list[LossCurve]]]:
    """(title, kind, curves) of each panel: every task its own, but the shallow networks share one."""
    shallow = [curve for curve in report.loss if task_kind(curve.task) == "shallow"]
    groups = [(task_label(curve.task), task_kind(curve.task), [curve]) for curve in report.loss if curve not in shallow]
    title = "shallow network" if len(shallow) == 1 else f"{len(shallow)} shallow networks"
    return [*groups, (title, "shallow", shallow)] if shallow else groups


def _parts(measured: MemoryBytes) -> list[tuple[str, int | None]]:
    return list(
        zip(
            KINDS, (measured.parameters, measured.gradients, measured.optimizer, measured.activations), strict=True
        )
    )  # fmt: skip


def _predicted_parts(row: MemoryRow) -> list[tuple[str, int | None]]:
    plan = row.predicted
    return list(zip(KINDS, (plan.parameters, plan.gradients, plan.optimizer, plan.activations), strict=True))


def _same_size(first: MemoryRow, row: MemoryRow) -> bool:
    if task_kind(first.task) != task_kind(row.task) or first.predicted != row.predicted:
        return False
    one, other = measured_total(first.measured), measured_total(row.measured)
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=0.01)


def _bar(group: Sequence[MemoryRow], full: float) -> MemoryBar:
    """The bar of a group is that of its largest member."""
    row = max(group, key=lambda member: measured_total(member.measured) or 0)
    total = measured_total(row.measured)
    name = task_label(row.task)
    if len(group) > 1:
        name = f"{_GROUPS.get(task_kind(row.task), task_kind(row.task))}, {len(group)} alike"
    off = total / row.predicted.total - 1 if total is not None and row.predicted.total else None
    measured = byte_size(total) if total is not None else "not measured"
    return MemoryBar(
        name=name,
        ours=task_kind(row.task) == "block",
        measured=() if row.measured is None else stacked(_parts(row.measured), full),
        predicted=stacked(_predicted_parts(row), full),
        cells=(measured, byte_size(row.predicted.total), "" if off is None else f"{signed(100 * off, 2)}\u202f%"),
        description=f"{name}: {measured}, predicted {byte_size(row.predicted.total)}",
    )


def _sizes(row: MemoryRow) -> tuple[str, ...]:
    if row.measured is None:
        return (*(f"({byte_size(size)})" for _, size in _predicted_parts(row)), f"({byte_size(row.predicted.total)})")
    return (*(byte_size(size) for _, size in _parts(row.measured)), byte_size(measured_total(row.measured)))


def _sum(kind: str, rows: Sequence[CostRow], baseline: CostRow | None) -> TextRow:
    evaluations = sum(row.layer_evaluations for row in rows)
    seconds = [row.wall_seconds for row in rows if is_number(row.wall_seconds)]
    sizes = [row.bytes_per_worker for row in rows if row.bytes_per_worker is not None]
    against = evaluations / baseline.layer_evaluations if baseline and baseline.layer_evaluations else None
    return TextRow(
        _SHALLOW_ALONE if kind == "shallow" and len(rows) == 1 else _GROUPS.get(kind, kind),
        (
            count(len(rows)),
            count(evaluations),
            MISSING if against is None else times(against),
            duration(max(seconds)) if seconds else MISSING,
            duration(sum(seconds)) if seconds else MISSING,
            byte_size(max(sizes)) if sizes else MISSING,
        ),
    )


def _columns(row: CostRow) -> dict[str, str]:
    """Every figure of a task by the heading of its column, in their order."""
    return {
        "layers": count(row.layers),
        "steps": count(row.steps),
        "batch": count(row.batch_size),
        "workers": count(row.workers),
        "learning rate": MISSING if row.learning_rate is None else short(row.learning_rate),
        "layer evaluations": count(row.layer_evaluations),
        "wall": duration(row.wall_seconds),
        "per step": duration(row.step_seconds_mean),
        "samples": rate(row.samples_per_second),
        "waiting for data": percent(row.data_wait_share),
        "memory": byte_size(row.bytes_per_worker),
        "attempts": count(row.attempts),
        "node": row.node or MISSING,
    }

"""Rows of the four tables that ask each block whether it does its work: interval, image, handoff, chain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dbserve.contracts.report import BlockDiagnosis, Report
from dbserve.report.charts import Axis, Segment, linear_axis, log_axis, share_axis, span
from dbserve.report.numbers import is_number, percent, points, significant
from dbserve.report.verdict import nats

Z_DOMINATES = 0.60  # z-only accuracy above which a block can answer without the image
LITTLE_INFORMATION = 0.02  # or half of an equal share, where there are so many blocks that this is less


@dataclass(frozen=True)
class Mark:
    """A point on the axis. The kind names its shape, so that no reader needs the colour."""

    kind: str
    at: float


@dataclass(frozen=True)
class DiagnosisRow:
    """`flags` are indices of cells that deserve a second look."""

    index: int
    cells: tuple[str, ...]
    marks: tuple[Mark, ...] = ()
    bar: Segment | None = None
    flags: tuple[int, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class DiagnosisTable:
    axis: Axis
    rows: tuple[DiagnosisRow, ...]
    threshold: float | None = None  # a line to be wary of, per cent


def intervals(report: Report) -> DiagnosisTable:
    """The noise levels each block owns, and the share of the information on the label that lies there."""
    blocks = report.diagnosis
    least = min(LITTLE_INFORMATION, 0.5 / max(1, len(blocks)))
    axis = log_axis(_finite(edge for block in blocks for edge in (block.sigma_min, block.sigma_max)))

    def row(block: BlockDiagnosis) -> DiagnosisRow:
        ends = f"{significant(block.sigma_min, 2)} to {significant(block.sigma_max, 2)}"
        little = block.information_share is not None and block.information_share < least
        bar = span(axis, "interval", block.sigma_min, block.sigma_max)
        cells = (ends, percent(block.information_share))
        return DiagnosisRow(block.index, cells, bar=bar, flags=(1,) if little else (), description=f"sigma {ends}")

    return DiagnosisTable(axis, tuple(row(block) for block in blocks))


def image_use(report: Report) -> DiagnosisTable:
    """Accuracy on teacher-noised z with the true image, with another image, and from z alone."""
    axis = linear_axis((0.0, 1.0), label=lambda share: percent(share, 0), wanted=5)

    def row(block: BlockDiagnosis) -> DiagnosisRow:
        values = (block.z_only_accuracy, block.shuffled_image_accuracy, block.true_image_accuracy)
        gain = block.true_image_accuracy - block.z_only_accuracy
        flags = tuple(cell for cell, odd in ((0, block.z_only_accuracy > Z_DOMINATES), (3, gain <= 0)) if odd)
        return DiagnosisRow(
            block.index,
            (*(percent(value, 0) for value in values), points(gain, 0)),
            _marks(axis, ("hollow", "diamond", "solid"), values),
            flags=flags,
            description="z alone {}, another image {}, true image {}".format(*(percent(value, 0) for value in values)),
        )

    return DiagnosisTable(axis, tuple(row(block) for block in report.diagnosis), axis.place(Z_DOMINATES))


def handoffs(report: Report) -> DiagnosisTable:
    """Loss on teacher-noised z and on what the previous blocks really hand over."""
    blocks = report.diagnosis
    losses = _finite(loss for block in blocks for loss in (block.loss_teacher, block.loss_handoff))
    axis = linear_axis([0.0, *losses])

    def row(block: BlockDiagnosis) -> DiagnosisRow:
        cells = (nats(block.loss_teacher), nats(block.loss_handoff), _signed_nats(block.handoff_gap))
        pair = (block.loss_teacher, block.loss_handoff)
        bar = span(axis, "gap", min(pair), max(pair)) if all(map(is_number, pair)) else None
        text = f"teacher {cells[0]}, handed over {cells[1]} nats"
        return DiagnosisRow(block.index, cells, _marks(axis, ("hollow", "solid"), pair), bar=bar, description=text)

    return DiagnosisTable(axis, tuple(row(block) for block in blocks))


def chain(report: Report) -> DiagnosisTable:
    """What each block answers by itself, and what it changes in the chain."""
    shown = _finite(
        value
        for block in report.diagnosis
        for value in (block.accuracy_alone, block.accuracy_at_sigma_max, block.accuracy_after)
    )
    axis = share_axis(shown)

    def row(block: BlockDiagnosis) -> DiagnosisRow:
        values = (block.accuracy_alone, block.accuracy_at_sigma_max, block.accuracy_after)
        agreement = "" if block.agreement_with_previous is None else percent(block.agreement_with_previous)
        return DiagnosisRow(
            block.index,
            (*(percent(value) for value in values), agreement or "–", significant(block.amplification, 2)),
            _marks(axis, ("hollow", "diamond", "solid"), values),
            flags=(4,) if block.amplification > 1 else (),
            description="alone {}, at sigma max {}, chain after it {}".format(*(percent(value) for value in values)),
        )

    return DiagnosisTable(axis, tuple(row(block) for block in report.diagnosis))


def _marks(axis: Axis, kinds: Sequence[str], values: Sequence[float]) -> tuple[Mark, ...]:
    pairs = zip(kinds, values, strict=True)
    return tuple(Mark(kind, axis.place(value)) for kind, value in pairs if is_number(value))


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if is_number(value)]


def _signed_nats(value: float) -> str:
    text = nats(value)
    return f"+{text}" if is_number(value) and value > 0 else text

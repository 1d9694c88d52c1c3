"""Rows of the accuracy table."""

from dataclasses import dataclass

from dbserve.contracts.report import DecodeRule, Report, Score, ShallowSingle
from dbserve.report.charts import Axis, Whisker, share_axis, whisker
from dbserve.report.numbers import count, error_digits, is_number, percent, points, with_error
from dbserve.report.verdict import RULES, nats, validation_note


@dataclass(frozen=True)
class QualityRow:
    """`cells` is None where this way of answering was not run. `members`: dots of the single networks, per cent."""

    name: str
    note: str
    ours: bool
    chosen: bool
    cells: tuple[str, ...] | None
    mark: Whisker | None
    members: tuple[float, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class QualityTable:
    axis: Axis
    rows: tuple[QualityRow, ...]
    reference: float | None  # where end-to-end lies, per cent


def quality_table(report: Report) -> QualityTable:
    quality = report.quality
    ensemble = f"{report.blocks} networks of a block's depth, averaged"
    named: list[tuple[str, str, Score | None, DecodeRule | None]] = [
        (RULES["chain"], "every block once, in turn", quality.chain, "chain"),
        (
            RULES["product_of_experts"],
            "each from the image, multiplied",
            quality.product_of_experts,
            "product_of_experts",
        ),
        (RULES["first_block"], "the others unused", quality.first_block, "first_block"),
        ("End-to-end", f"one network, {report.depth} layers", quality.end_to_end, None),
        ("Shallow ensemble", ensemble, quality.shallow_ensemble, None),
        ("One shallow network", "what end-to-end fits into one worker", quality.shallow_single, None),
    ]
    scores = [score for _, _, score, _ in named if score is not None]
    axis = share_axis(_extremes(scores))
    rows = tuple(_row(report, name, note, score, rule, axis) for name, note, score, rule in named)
    end_to_end = quality.end_to_end
    return QualityTable(axis, rows, None if end_to_end is None else axis.place(end_to_end.accuracy))


def _row(report: Report, name: str, note: str, score: Score | None, rule: DecodeRule | None, axis: Axis) -> QualityRow:
    ours = rule is not None
    if rule is not None:
        note = "; ".join(part for part in (note, validation_note(report, rule)) if part)
    if score is None:
        return QualityRow(name, note, ours, False, None, None)
    baseline = report.quality.end_to_end
    difference = "" if baseline is None else points(score.accuracy - baseline.accuracy, _digits(score))
    cells = (
        with_error(score.accuracy, score.standard_error),
        "reference" if score is baseline else difference or "–",
        nats(score.cross_entropy),
        percent(score.expected_calibration_error),
        count(score.layer_evaluations),
    )
    members = tuple(axis.place(member) for member in score.members) if isinstance(score, ShallowSingle) else ()
    description = f"{name}: {with_error(score.accuracy, score.standard_error)}"
    mark = whisker(axis, score.accuracy, score.standard_error)
    return QualityRow(name, note, ours, rule == report.decode, cells, mark, members, description)


def _digits(score: Score) -> int:
    return error_digits(score.standard_error)


def _extremes(scores: list[Score]) -> list[float]:
    reach = [(score.accuracy, 2 * score.standard_error) for score in scores if is_number(score.standard_error)]
    members = [member for score in scores if isinstance(score, ShallowSingle) for member in score.members]
    return [end for accuracy, error in reach for end in (accuracy - error, accuracy + error)] + members

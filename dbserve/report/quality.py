"""Rows of the accuracy table."""

from dataclasses import dataclass

from dbserve.contracts.report import DecodeRule, Quality, Report, Score, ShallowSingle
from dbserve.report.charts import Axis, Whisker, share_axis, whisker
from dbserve.report.numbers import count, error_digits, is_number, percent, points, with_error
from dbserve.report.verdict import RULES, decode_of, nats, validation_note


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
    left_out: tuple[str, ...]  # baselines nobody must run, and nobody ran


def quality_table(report: Report, quality: Quality) -> QualityTable:
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
    longer = f"a block's depth, {report.blocks} times the steps"
    workers = f"{report.depth} layers on {report.blocks} workers, gradients shared at every step"
    extra = [
        ("One shallow network, longer", longer, quality.shallow_long, None),
        ("Data-parallel", workers, quality.data_parallel, None),
    ]
    named += [row for row in extra if row[2] is not None]
    scores = [score for _, _, score, _ in named if score is not None]
    axis = share_axis(_extremes(scores))
    baseline = quality.end_to_end
    rows = tuple(_row(report, baseline, name, note, score, rule, axis) for name, note, score, rule in named)
    left_out = tuple(name for name, _, score, _ in extra if score is None)
    return QualityTable(axis, rows, None if baseline is None else axis.place(baseline.accuracy), left_out)


def _row(
    report: Report,
    baseline: Score | None,
    name: str,
    note: str,
    score: Score | None,
    rule: DecodeRule | None,
    axis: Axis,
) -> QualityRow:
    ours = rule is not None
    if rule is not None:
        note = "; ".join(part for part in (note, validation_note(report, rule)) if part)
    if score is None:
        return QualityRow(name, note, ours, False, None, None)
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
    return QualityRow(name, note, ours, rule == decode_of(report), cells, mark, members, description)


def _digits(score: Score) -> int:
    return error_digits(score.standard_error)


def _extremes(scores: list[Score]) -> list[float]:
    reach = [(score.accuracy, 2 * score.standard_error) for score in scores if is_number(score.standard_error)]
    members = [member for score in scores if isinstance(score, ShallowSingle) for member in score.members]
    return [end for accuracy, error in reach for end in (accuracy - error, accuracy + error)] + members

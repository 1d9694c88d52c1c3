"""Tables of a comparison: who reached what, by the primary metric drawn, then by every metric, then block by block."""

from collections.abc import Sequence
from dataclasses import dataclass

from dbserve.contracts.report import BlockFacts, Comparison, Contestant, Metric, Report
from dbserve.report.charts import Axis, Whisker, linear_axis, log_axis, span, whisker
from dbserve.report.contest import FLOOR, ours_of, primary_metric
from dbserve.report.diagnosis import DiagnosisRow, DiagnosisTable
from dbserve.report.headline import Outcome
from dbserve.report.measures import against, amount, direction, known_error, margin, written
from dbserve.report.numbers import MISSING, count, is_number, significant

_NOISE: dict[str, str] = {
    "generation": "Standard deviation of the noise, on a logarithmic axis; the intervals should meet without a gap.",
    "next_token": "Standard deviation of the noise, on a logarithmic axis; the intervals should meet without a gap.",
    "masked_text": "Share of the tokens that are masked; the intervals should meet without a gap.",
}


@dataclass(frozen=True)
class ContestantRow:
    """`mark` is None where the primary metric was not measured."""

    name: str
    note: str
    ours: bool
    floor: bool
    value: str
    best: bool  # ahead of all others by more than two standard errors of the difference
    against: str  # how ours stands against it
    outcome: Outcome | None
    layers: str
    mark: Whisker | None
    description: str


@dataclass(frozen=True)
class Note:
    """What a column means: its title and unit, and what is to be known of it."""

    title: str
    unit: str
    text: str


@dataclass(frozen=True)
class MetricCell:
    """`best`: ahead of all others by more than two standard errors of the difference."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class MetricRow:
    name: str
    ours: bool
    cells: tuple[MetricCell, ...]


@dataclass(frozen=True)
class ComparisonTable:
    """`metrics` is empty where nothing but the primary metric was measured: its table says it all."""

    primary: Note
    axis: Axis
    reference: float | None  # where end-to-end lies, per cent
    rows: tuple[ContestantRow, ...]
    notes: tuple[Note, ...]
    metrics: tuple[MetricRow, ...]


def noise_name(report: Report) -> str:
    """What a noise level of this report is called."""
    masked = isinstance(report.quality, Comparison) and report.quality.family == "masked_text"
    return "mask probability t" if masked else "sigma"


def comparison_table(comparison: Comparison) -> ComparisonTable:
    metric = primary_metric(comparison)
    others = tuple(one for one in comparison.metrics if one.key != metric.key)
    every = (metric, *others)
    axis = linear_axis(_extremes(comparison.contestants, metric))
    rows = tuple(_row(comparison, metric, one, axis) for one in comparison.contestants)
    end_to_end = next((one.values.get(metric.key) for one in comparison.contestants if one.key == "end_to_end"), None)
    known = end_to_end is not None and is_number(end_to_end.value)
    return ComparisonTable(
        primary=note_of(metric),
        axis=axis,
        reference=axis.place(end_to_end.value) if end_to_end is not None and known else None,
        rows=rows,
        notes=tuple(map(note_of, every)),
        metrics=_metric_rows(comparison, every) if others else (),
    )


def note_of(metric: Metric) -> Note:
    sentences = [sentence.strip().rstrip(".") for sentence in (metric.note, direction(metric)) if sentence.strip()]
    return Note(metric.title, metric.unit, " ".join(f"{text[0].upper()}{text[1:]}." for text in sentences))


def block_table(report: Report, comparison: Comparison) -> DiagnosisTable:
    """The noise levels each block owns, drawn, and what it was measured to do there."""
    blocks = comparison.blocks
    ends = [edge for block in blocks for edge in (block.sigma_min, block.sigma_max) if is_number(edge)]
    axis = linear_axis((0.0, 1.0), wanted=5) if comparison.family == "masked_text" else log_axis(ends)
    metrics = comparison.block_metrics
    return DiagnosisTable(axis, tuple(_block_row(noise_name(report), metrics, block, axis) for block in blocks))


def block_headings(report: Report, comparison: Comparison) -> tuple[str, ...]:
    """Of the cells of block_table()."""
    titles = (f"{metric.title}, {metric.unit}" if metric.unit else metric.title for metric in comparison.block_metrics)
    return (noise_name(report), *titles)


def block_how(report: Report, comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """(heading, how to read it) of the cells of block_table()."""
    notes = map(note_of, comparison.block_metrics)
    return ((noise_name(report), _NOISE[comparison.family]), *((note.title, note.text) for note in notes if note.text))


def _row(comparison: Comparison, metric: Metric, contestant: Contestant, axis: Axis) -> ContestantRow:
    found = contestant.values.get(metric.key)
    ours = ours_of(comparison)
    floor = contestant.key == FLOOR
    rival = ours is not None and contestant is not ours and not contestant.ours and not floor
    paired = contestant.paired if metric.key == comparison.primary else None
    one = margin(metric, ours.values.get(metric.key), found, paired) if ours is not None and rival else None
    text = written(metric, found)
    mark = None
    if found is not None and is_number(found.value):
        mark = whisker(axis, found.value, known_error(found) or 0.0)
    return ContestantRow(
        name=contestant.title,
        note=contestant.note,
        ours=contestant.ours or contestant is ours,
        floor=floor,
        value=text,
        best=contestant is _best(comparison, metric),
        against="–" if one is None else against(metric, one),
        outcome=None if one is None else one.outcome,
        layers="–" if contestant.layer_evaluations is None else count(contestant.layer_evaluations),
        mark=mark,
        description=f"{contestant.title}: {text} {metric.unit}".rstrip(),
    )


def _metric_rows(comparison: Comparison, metrics: Sequence[Metric]) -> tuple[MetricRow, ...]:
    best = {metric.key: _best(comparison, metric) for metric in metrics}
    ours = ours_of(comparison)
    return tuple(
        MetricRow(
            one.title,
            one.ours or one is ours,
            tuple(
                MetricCell(written(metric, one.values.get(metric.key)), best[metric.key] is one) for metric in metrics
            ),
        )
        for one in comparison.contestants
    )


def _best(comparison: Comparison, metric: Metric) -> Contestant | None:
    """The one that is ahead of all others that were measured; None where noise could have decided, or nobody rivals."""
    field = [one for one in comparison.contestants if one.key != FLOOR and _number(one, metric) is not None]
    for one in field:
        others = [other for other in field if other is not one]
        margins = [margin(metric, one.values[metric.key], other.values[metric.key]) for other in others]
        if margins and all(found is not None and found.outcome == "ahead" for found in margins):
            return one
    return None


def _number(contestant: Contestant, metric: Metric) -> float | None:
    found = contestant.values.get(metric.key)
    return found.value if found is not None and is_number(found.value) else None


def _extremes(contestants: Sequence[Contestant], metric: Metric) -> list[float]:
    found = [one.values[metric.key] for one in contestants if _number(one, metric) is not None]
    reach = [(one.value, 2 * (known_error(one) or 0.0)) for one in found]
    return [end for value, error in reach for end in (value - error, value + error)]


def _block_row(noise: str, metrics: Sequence[Metric], block: BlockFacts, axis: Axis) -> DiagnosisRow:
    known = is_number(block.sigma_min) and is_number(block.sigma_max)
    ends = f"{significant(block.sigma_min, 2)} to {significant(block.sigma_max, 2)}" if known else MISSING
    cells = (ends, *(amount(metric, block.values.get(metric.key)) for metric in metrics))
    bar = span(axis, "interval", block.sigma_min, block.sigma_max) if known else None
    return DiagnosisRow(block.index, cells, bar=bar, description=f"{noise} {ends}")

"""The headline of a comparison: what the assembled blocks reach, against whom, and what was not measured."""

from collections.abc import Sequence

from dbserve.contracts.report import Comparison, Contestant, Metric, Report
from dbserve.report.headline import Figure, Outcome, Verdict, blocks_in_words, joined, memory_figure, memory_sentence
from dbserve.report.measures import Margin, against, amount, direction, known_error, margin, written
from dbserve.report.numbers import NOT_RUN, in_words, is_number

OURS, FLOOR = "blocks", "floor"
SHALLOW = ("shallow", "shallow_ensemble", "shallow_long")
_WORDS = {
    "end_to_end": "the same network trained end-to-end",
    "shallow": "one shallow network",
    "shallow_ensemble": "an ensemble of shallow networks",
    "shallow_long": "one shallow network trained {blocks} times as long",
    "data_parallel": "the same network trained data-parallel",
}
_SHALLOW_LABELS = {
    "shallow": "one shallow network",
    "shallow_ensemble": "the shallow ensemble",
    "shallow_long": "the longer shallow network",
}
_NOTES: dict[Outcome, str] = {
    "even": "too close to call: within two standard errors",
    "ahead": "ahead by more than two standard errors",
    "behind": "behind by more than two standard errors",
    "open": "no standard error is known, so nobody is called ahead",
    "not run": "this baseline was not measured",
}


def primary_metric(comparison: Comparison) -> Metric:
    """The metric of the headline; one without a title where the report names none of its own."""
    found = next((metric for metric in comparison.metrics if metric.key == comparison.primary), None)
    return found or Metric(key=comparison.primary, title=comparison.primary)


def ours_of(comparison: Comparison) -> Contestant | None:
    """The assembled blocks, by key, or else the first one that is ours."""
    contestants = comparison.contestants
    by_key = next((one for one in contestants if one.key == OURS), None)
    return by_key or next((one for one in contestants if one.ours), None)


def rivals_of(comparison: Comparison) -> tuple[Contestant, ...]:
    """Baselines in the order of the report: neither ours, nor a floor."""
    ours = ours_of(comparison)
    return tuple(one for one in comparison.contestants if one is not ours and not one.ours and one.key != FLOOR)


def contest_verdict(report: Report, comparison: Comparison) -> Verdict:
    metric, ours = primary_metric(comparison), ours_of(comparison)
    said = [metric.title, *([direction(metric)] if metric.better else [])]
    if ours is None or not _measured(ours, metric):
        first = f"{blocks_in_words(report)}, trained apart: {metric.title} was not measured."
        return Verdict((first, *memory_sentence(report)), _figures(report, comparison, metric, None))
    reached = written(metric, ours.values[metric.key], unit=True)
    verb = "reaches" if report.blocks == 1 else "reach"
    first = f"{blocks_in_words(report)}, trained apart, {verb} {reached} ({'; '.join(said)})."
    phrases = tuple(_phrase(report, metric, ours, rival) for rival in rivals_of(comparison) if _measured(rival, metric))
    second = (
        f"That is {joined(phrases)}." if phrases else "No baseline was measured, so nothing says whether it is good."
    )
    sentences = (
        first,
        second,
        *(_not_measured(report, comparison, metric) if phrases else ()),
        *memory_sentence(report),
    )
    return Verdict(sentences, _figures(report, comparison, metric, ours))


def rival_name(report: Report, rival: Contestant) -> str:
    """The words for it inside a sentence."""
    words = _WORDS.get(rival.key)
    return words.format(blocks=in_words(report.blocks)) if words else rival.title


def verdict_on(one: Margin) -> str:
    """What the margin settles, in words."""
    if one.outcome == "open" and one.error is not None:
        return "apart by more than two standard errors"
    return _NOTES[one.outcome]


def _measured(contestant: Contestant, metric: Metric) -> bool:
    found = contestant.values.get(metric.key)
    return found is not None and is_number(found.value)


def _phrase(report: Report, metric: Metric, ours: Contestant, rival: Contestant) -> str:
    one = margin(metric, ours.values.get(metric.key), rival.values.get(metric.key), rival.paired)
    name = rival_name(report, rival)
    if one is None or one.difference == 0:
        return f"level with {name}"
    text = f"{against(metric, one, unit=True)} than {name}"
    if one.outcome == "even":
        return f"{text} (too close to call)"
    return f"{text} (no error known)" if one.error is None else text


def _not_measured(report: Report, comparison: Comparison, metric: Metric) -> tuple[str, ...]:
    """A sentence on what a reader would look for and not find."""
    rivals = rivals_of(comparison)
    missing = [rival_name(report, rival) for rival in rivals if not _measured(rival, metric)]
    keys = {rival.key for rival in rivals}
    if "end_to_end" not in keys:
        missing.append(_WORDS["end_to_end"])
    if not keys & set(SHALLOW):
        missing.append(_WORDS["shallow"])
    return (f"Not measured: {joined(missing)}.",) if missing else ()


def _figures(report: Report, comparison: Comparison, metric: Metric, ours: Contestant | None) -> tuple[Figure, ...]:
    by_key = {rival.key: rival for rival in rivals_of(comparison)}
    shallow = _best_shallow(
        [by_key[key] for key in SHALLOW if key in by_key and _measured(by_key[key], metric)], metric
    )
    return (
        _reached(metric, ours),
        _against("Against end-to-end", metric, ours, by_key.get("end_to_end")),
        _against(f"Against {_SHALLOW_LABELS[shallow.key if shallow else 'shallow']}", metric, ours, shallow),
        memory_figure(report),
    )


def _best_shallow(rivals: Sequence[Contestant], metric: Metric) -> Contestant | None:
    """The strongest of them: the headline leaves out no rival that is harder to beat than the one it shows."""
    sign = -1.0 if metric.better == "lower" else 1.0
    return max(rivals, key=lambda rival: sign * rival.values[metric.key].value, default=None)


def _reached(metric: Metric, ours: Contestant | None) -> Figure:
    found = None if ours is None else ours.values.get(metric.key)
    if found is None:
        return Figure(metric.title, NOT_RUN, "the assembled blocks were not measured", "not run")
    error = known_error(found)
    spread = "no standard error" if error is None else f"± {amount(metric, error, error)} standard error"
    notes = (metric.unit, spread, direction(metric))
    return Figure(metric.title, amount(metric, found.value, error), ", ".join(filter(None, notes)))


def _against(label: str, metric: Metric, ours: Contestant | None, rival: Contestant | None) -> Figure:
    one = margin(
        metric,
        ours and ours.values.get(metric.key),
        rival and rival.values.get(metric.key),
        rival and rival.paired,
    )
    if one is None:
        return Figure(label, NOT_RUN, _NOTES["not run"], "not run")
    spread = "" if one.error is None else f"± {amount(metric, one.error, one.error)}"
    notes = (spread, metric.unit, verdict_on(one))
    return Figure(label, against(metric, one), "; ".join(filter(None, notes)), one.outcome)

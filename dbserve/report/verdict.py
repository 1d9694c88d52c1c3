"""The headline: what the model achieves, against whom, and whether the test set can tell them apart."""

import math
from dataclasses import dataclass

from dbserve.contracts.report import Comparison, DecodeRule, Quality, Report, Score
from dbserve.report.contest import contest_verdict
from dbserve.report.headline import (
    SETTLED_AT,
    Figure,
    Outcome,
    Verdict,
    blocks_in_words,
    joined,
    memory_figure,
    memory_sentence,
)
from dbserve.report.numbers import (
    NOT_RUN,
    count,
    error_digits,
    in_words,
    is_number,
    percent,
    points,
    significant,
    with_error,
)

RULES: dict[DecodeRule, str] = {
    "chain": "Chain",
    "product_of_experts": "Product of experts",
    "first_block": "First block alone",
}
_RULE_WORDS: dict[DecodeRule, str] = {
    "chain": "answering as a chain",
    "product_of_experts": "answering as a product of experts",
    "first_block": "answered for by the first one alone",
}


@dataclass(frozen=True)
class Difference:
    """One accuracy against another. `error` is the standard error of the difference of two independent scores."""

    difference: float
    error: float
    outcome: Outcome


def compare(ours: Score, theirs: Score) -> Difference:
    """Even within two standard errors of the difference.

    The errors are taken as independent. Both answered the same rows, so the true error is usually smaller: an "ahead"
    or a "behind" is on the safe side.
    """
    difference = ours.accuracy - theirs.accuracy
    error = math.hypot(ours.standard_error, theirs.standard_error)
    if not is_number(error) or abs(difference) <= SETTLED_AT * error or difference == 0:
        return Difference(difference, error, "even")
    return Difference(difference, error, "ahead" if difference > 0 else "behind")


def verdict(report: Report) -> Verdict:
    if isinstance(report.quality, Comparison):
        return contest_verdict(report, report.quality)
    return _classified(report, report.quality)


def decode_of(report: Report) -> DecodeRule:
    """The rule that the validation rows chose; the chain where a report names none."""
    return report.decode or "chain"


def chosen(report: Report, quality: Quality) -> Score:
    """The score of the decode rule that the validation rows chose."""
    match decode_of(report):
        case "chain":
            return quality.chain
        case "product_of_experts":
            return quality.product_of_experts
        case "first_block":
            return quality.first_block


def _classified(report: Report, quality: Quality) -> Verdict:
    ours = chosen(report, quality)
    blocks = in_words(report.blocks)
    rivals = [
        (quality.end_to_end, "the same network trained end-to-end"),
        (quality.shallow_ensemble, f"an ensemble of {blocks} shallow networks"),
        (quality.shallow_long, f"one shallow network trained {blocks} times as long"),
        (quality.data_parallel, "the same network trained data-parallel"),
    ]
    phrases = [_phrase(compare(ours, score), name) for score, name in rivals if score is not None]
    first = (
        f"{blocks_in_words(report)}, trained apart and {_RULE_WORDS[decode_of(report)]}, got "
        f"{with_error(ours.accuracy, ours.standard_error)} of {count(report.test_rows)} test images right."
    )
    nobody = "No baseline was trained, so nothing here says whether that is good."
    second = f"That is {joined(phrases)}." if phrases else nobody
    return Verdict((first, second, *memory_sentence(report)), _figures(report, quality, ours))


def _phrase(comparison: Difference, name: str) -> str:
    if comparison.difference == 0:
        return f"level with {name}"
    digits = error_digits(comparison.error)
    side = "above" if comparison.difference > 0 else "below"
    amount = f"{points(abs(comparison.difference), digits).lstrip('+')} {side} {name}"
    return f"{amount} (too close to call)" if comparison.outcome == "even" else amount


def _figures(report: Report, quality: Quality, ours: Score) -> tuple[Figure, ...]:
    digits = error_digits(ours.standard_error)
    return (
        Figure(
            "Test accuracy",
            percent(ours.accuracy, digits),
            f"± {points(ours.standard_error, digits).lstrip('+')} standard error, {RULES[decode_of(report)].lower()}",
        ),
        _against("Against end-to-end", ours, quality.end_to_end),
        _against("Against the shallow ensemble", ours, quality.shallow_ensemble),
        memory_figure(report),
    )


def _against(label: str, ours: Score, theirs: Score | None) -> Figure:
    if theirs is None:
        return Figure(label, NOT_RUN, "this baseline was not part of the job", "not run")
    comparison = compare(ours, theirs)
    digits = error_digits(comparison.error)
    notes: dict[Outcome, str] = {
        "even": "even: within two standard errors",
        "ahead": "ahead by more than two standard errors",
        "behind": "behind by more than two standard errors",
    }
    error = f" ± {points(comparison.error, digits).lstrip('+')}" if is_number(comparison.error) else ""
    value = points(comparison.difference, digits)
    return Figure(label, value, f"{error.strip()}; {notes[comparison.outcome]}".lstrip("; "), comparison.outcome)


def validation_note(report: Report, rule: DecodeRule) -> str:
    """What the choice of the decode rule was made on; empty where validation said nothing of this rule."""
    accuracy = report.validation_accuracy.get(rule)
    return "" if accuracy is None or not is_number(accuracy) else f"{percent(accuracy)} on validation"


def nats(value: float) -> str:
    """A cross-entropy or a gap: three decimals where they show, else three significant digits."""
    if is_number(value) and (value == 0 or 0.001 <= abs(value) < 100):
        return f"{value:.3f}".replace("-", "\u2212")
    return significant(value, 2)

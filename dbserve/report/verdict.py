"""The headline: what the model achieves, against whom, and whether the test set can tell them apart."""

import math
from dataclasses import dataclass
from typing import Literal

from dbserve.contracts.report import DecodeRule, Report, Score
from dbserve.report.numbers import (
    MISSING,
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

Outcome = Literal["ahead", "behind", "even", "not run"]

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
_SETTLED_AT = 2.0  # standard errors of a difference


@dataclass(frozen=True)
class Comparison:
    """One accuracy against another. `error` is the standard error of the difference of two independent scores."""

    difference: float
    error: float
    outcome: Outcome


@dataclass(frozen=True)
class Figure:
    """One number of the headline with what it means."""

    label: str
    value: str
    note: str
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Verdict:
    sentences: tuple[str, ...]
    figures: tuple[Figure, ...]


def compare(ours: Score, theirs: Score) -> Comparison:
    """Even within two standard errors of the difference.

    The errors are taken as independent. Both answered the same rows, so the true error is usually smaller: an "ahead"
    or a "behind" is on the safe side.
    """
    difference = ours.accuracy - theirs.accuracy
    error = math.hypot(ours.standard_error, theirs.standard_error)
    if not is_number(error) or abs(difference) <= _SETTLED_AT * error or difference == 0:
        return Comparison(difference, error, "even")
    return Comparison(difference, error, "ahead" if difference > 0 else "behind")


def chosen(report: Report) -> Score:
    """The score of the decode rule that the validation rows chose."""
    match report.decode:
        case "chain":
            return report.quality.chain
        case "product_of_experts":
            return report.quality.product_of_experts
        case "first_block":
            return report.quality.first_block


def verdict(report: Report) -> Verdict:
    ours = chosen(report)
    quality = report.quality
    blocks = "one block" if report.blocks == 1 else f"{in_words(report.blocks)} blocks"
    rivals = [
        (score, name)
        for score, name in (
            (quality.end_to_end, "the same network trained end-to-end"),
            (quality.shallow_ensemble, f"an ensemble of {in_words(report.blocks)} shallow networks"),
        )
        if score is not None
    ]
    first = (
        f"{blocks[0].upper()}{blocks[1:]}, trained apart and {_RULE_WORDS[report.decode]}, got "
        f"{with_error(ours.accuracy, ours.standard_error)} of {count(report.test_rows)} test images right."
    )
    if rivals:
        phrases = [_phrase(compare(ours, score), name) for score, name in rivals]
        second = "That is " + ", and ".join(phrases) + "."
    else:
        second = "No baseline was trained, so nothing here says whether that is good."
    kind = "" if report.memory.ratio_kind == "measured" else ", by prediction"
    third = f"Training one block takes {_share(report.memory.ratio)} of the memory of training end-to-end{kind}."
    sentences = (first, second, third) if is_number(report.memory.ratio) else (first, second)
    return Verdict(sentences, _figures(report, ours))


def _phrase(comparison: Comparison, name: str) -> str:
    if comparison.difference == 0:
        return f"level with {name}"
    digits = error_digits(comparison.error)
    side = "above" if comparison.difference > 0 else "below"
    amount = f"{points(abs(comparison.difference), digits).lstrip('+')} {side} {name}"
    return f"{amount} (too close to call)" if comparison.outcome == "even" else amount


def _figures(report: Report, ours: Score) -> tuple[Figure, ...]:
    memory = report.memory
    predicted = f"{_share(memory.ratio_predicted)} predicted"
    return (
        Figure(
            "Test accuracy",
            percent(ours.accuracy, error_digits(ours.standard_error)),
            f"± {points(ours.standard_error, error_digits(ours.standard_error)).lstrip('+')} standard error, "
            f"{RULES[report.decode].lower()}",
        ),
        _against("Against end-to-end", ours, report.quality.end_to_end),
        _against("Against the shallow ensemble", ours, report.quality.shallow_ensemble),
        Figure(
            "Memory of one block",
            _share(memory.ratio),
            f"of end-to-end, measured; {predicted}" if memory.ratio_kind == "measured" else "of end-to-end, predicted",
        ),
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


def _share(ratio: float) -> str:
    return percent(ratio, 1 if is_number(ratio) and ratio < 0.1 else 0) if is_number(ratio) else MISSING


def validation_note(report: Report, rule: DecodeRule) -> str:
    """What the choice of the decode rule was made on; empty where validation said nothing of this rule."""
    accuracy = report.validation_accuracy.get(rule)
    return "" if accuracy is None or not is_number(accuracy) else f"{percent(accuracy)} on validation"


def nats(value: float) -> str:
    """A cross-entropy or a gap: three decimals where they show, else three significant digits."""
    if is_number(value) and (value == 0 or 0.001 <= abs(value) < 100):
        return f"{value:.3f}".replace("-", "\u2212")
    return significant(value, 2)

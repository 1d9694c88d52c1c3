"""Measured values as their metric writes them, and whether two of them can be told apart."""

import math
from dataclasses import dataclass

from dbserve.contracts.report import Measured, Metric
from dbserve.report.headline import SETTLED_AT, Outcome
from dbserve.report.numbers import MISSING, byte_size, decimal, is_number, significant

_IN_THREE_DECIMALS = ("bit", "nat")  # units of information: a thousandth is the least anybody compares
_IN_BYTES = ("bytes", "B")
_PLAIN = 1e7  # beyond it no column of decimals helps


@dataclass(frozen=True)
class Margin:
    """`difference` is ours - theirs; `error` its standard error, None where one of the two has none.

    `outcome` respects which way is better; it is open where no error is known or no way is better.
    """

    difference: float
    error: float | None
    outcome: Outcome


def margin(
    metric: Metric, ours: Measured | None, theirs: Measured | None, paired: Measured | None = None
) -> Margin | None:
    """None where one of the two was not measured. Even within two standard errors of the difference.

    `paired` is the difference as it was measured row by row. Without it the errors are taken as independent; where both
    answered the same rows the true error is usually smaller, so an "ahead" or a "behind" is on the safe side.
    """
    if ours is None or theirs is None or not is_number(ours.value) or not is_number(theirs.value):
        return None
    difference = ours.value - theirs.value
    one, other = known_error(ours), known_error(theirs)
    error = math.hypot(one, other) if one is not None and other is not None else None
    if paired is not None and known_error(paired) is not None:
        error = known_error(paired)
    if error is None or (metric.better is None and abs(difference) > SETTLED_AT * error):
        return Margin(difference, error, "open")
    if abs(difference) <= SETTLED_AT * error:
        return Margin(difference, error, "even")
    ahead = (difference > 0) == (metric.better == "higher")
    return Margin(difference, error, "ahead" if ahead else "behind")


def known_error(measured: Measured) -> float | None:
    """The standard error where one was measured."""
    error = measured.standard_error
    return error if error is not None and math.isfinite(error) else None


def written(metric: Metric, measured: Measured | None, *, unit: bool = False) -> str:
    """2.713 ± 0.011; the unit behind it where it is asked for; n/a for what is no number."""
    if measured is None or not is_number(measured.value):
        return MISSING
    error = known_error(measured)
    text = amount(metric, measured.value, error)
    if error is not None:
        text += f"\u00a0±\u00a0{amount(metric, error, error)}"
    return f"{text} {metric.unit}" if unit and metric.unit and metric.unit not in _IN_BYTES else text


def amount(metric: Metric, value: float | None, error: float | None = None) -> str:
    """The value with the digits that its standard error leaves meaningful, without its unit."""
    if value is None or not math.isfinite(value):
        return MISSING
    value = float(value)
    if metric.unit in _IN_BYTES:
        return byte_size(value)
    if abs(value) >= _PLAIN:
        return significant(value)
    if metric.unit.startswith(_IN_THREE_DECIMALS):
        return decimal(value, max(3, _meaningful(error) if error else 3))
    if error:
        return decimal(value, _meaningful(error))
    return decimal(value, 0) if value.is_integer() else significant(value)  # a count has no decimals


def against(metric: Metric, one: Margin, *, unit: bool = False) -> str:
    """How ours stands against theirs: `0.031 better`; what is not settled is said so."""
    if one.difference == 0:
        return "level"
    if metric.better is None:
        side = "higher" if one.difference > 0 else "lower"
    else:
        side = "better" if (one.difference > 0) == (metric.better == "higher") else "worse"
    size = amount(metric, abs(one.difference), one.error)
    return " ".join((size, *([metric.unit] if unit and metric.unit not in ("", *_IN_BYTES) else ()), side))


def direction(metric: Metric) -> str:
    """`lower is better`, or nothing."""
    return f"{metric.better} is better" if metric.better else ""


def _meaningful(error: float) -> int:
    """Decimals of a value that is known to within `error`: one digit of the error, two where it begins with a 1."""
    exponent = math.floor(math.log10(error))
    two = error / 10.0**exponent < 2
    return min(6, max(0, -exponent + two))

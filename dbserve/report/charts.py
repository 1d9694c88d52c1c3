"""Geometry of the report's charts: pure functions, frozen results. The template only draws them.

Horizontal places are per cent of the plot's width, so that a bar stretches with the page while its text keeps its size.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dbserve.report.numbers import percent, short


@dataclass(frozen=True)
class Tick:
    at: float  # per cent
    label: str

    @property
    def anchor(self) -> str:
        """Labels at the ends lean inwards, so that none leaves the plot."""
        return "start" if self.at < 6 else "end" if self.at > 94 else "middle"


@dataclass(frozen=True)
class Axis:
    """A horizontal axis, linear or logarithmic. `low` and `high` are its ends, in the unit of the values."""

    low: float
    high: float
    logarithmic: bool = False
    ticks: tuple[Tick, ...] = ()

    def place(self, value: float) -> float:
        """Per cent of the width from the left; what lies outside is drawn at the end it lies beyond."""
        return 100 * fraction(value, self.low, self.high, logarithmic=self.logarithmic)


@dataclass(frozen=True)
class Whisker:
    """A value with one and two standard errors to both sides, each in per cent of the width."""

    at: float
    one: tuple[float, float]
    two: tuple[float, float]


@dataclass(frozen=True)
class Segment:
    """One piece of a bar, in per cent of the width."""

    kind: str
    start: float
    width: float

    @property
    def end(self) -> float:
        return self.start + self.width


def fraction(value: float, low: float, high: float, *, logarithmic: bool = False) -> float:
    """Where value lies between low and high, in [0, 1]; 0 for what cannot be placed."""
    if logarithmic:
        if value <= 0 or low <= 0:
            return 0.0
        value, low, high = math.log(value), math.log(low), math.log(high)
    if not math.isfinite(value) or high <= low:
        return 0.0
    return round(min(1.0, max(0.0, (value - low) / (high - low))), 5)


def linear_axis(values: Iterable[float], *, label: Callable[[float], str] = short, wanted: int = 4) -> Axis:
    """An axis from one round number to another that holds all finite values."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    step = _round_step(max(high - low, 1e-9), wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    low, high = first * step, last * step
    ticks = [Tick(100 * fraction(index * step, low, high), label(index * step)) for index in range(first, last + 1)]
    return Axis(low, high, ticks=tuple(ticks))


def share_axis(values: Iterable[float]) -> Axis:
    """As linear_axis(), for shares: within 0 and 1, at least two percentage points long, labelled in per cent."""
    finite = [min(1.0, max(0.0, value)) for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if high - low < 0.02:
        middle = min(0.99, max(0.01, (low + high) / 2))
        low, high = middle - 0.01, middle + 0.01
    digits = 1 if high - low < 0.04 else 0
    return linear_axis((low, high), label=lambda share: percent(share, digits))


def log_axis(values: Iterable[float], *, wanted: int = 5) -> Axis:
    """A logarithmic axis that ends at the smallest and the largest positive value; ticks at powers of ten."""
    positive = [value for value in values if math.isfinite(value) and value > 0] or [0.1, 10.0]
    low, high = min(positive), max(positive)
    if high <= low:
        low, high = low / 10, high * 10
    ticks = [Tick(100 * fraction(at, low, high, logarithmic=True), short(at)) for at in log_ticks(low, high, wanted)]
    return Axis(low, high, logarithmic=True, ticks=tuple(ticks))


def whisker(axis: Axis, value: float, error: float) -> Whisker:
    error = error if math.isfinite(error) else 0.0

    def pair(reach: float) -> tuple[float, float]:
        return axis.place(value - reach), axis.place(value + reach)

    return Whisker(axis.place(value), pair(error), pair(2 * error))


def span(axis: Axis, kind: str, low: float, high: float) -> Segment:
    """The stretch from low to high; an empty one keeps a hair's width, so that it can be seen."""
    start, end = axis.place(low), axis.place(high)
    return Segment(kind, start, max(round(end - start, 3), 0.3))


def stacked(parts: Sequence[tuple[str, float | None]], full: float) -> tuple[Segment, ...]:
    """Parts end to end, where `full` is the whole width. Parts of unknown size are left out."""
    segments: list[Segment] = []
    start = 0.0
    for kind, size in parts:
        if size is None or not math.isfinite(size) or size <= 0 or full <= 0:
            continue
        width = round(100 * size / full, 3)
        segments.append(Segment(kind, start, width))
        start = round(start + width, 3)
    return tuple(segments)


def _round_step(extent: float, wanted: int) -> float:
    """The least of 1, 2, 5 times a power of ten that covers the extent in at most `wanted` steps."""
    raw = extent / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def log_ticks(low: float, high: float, wanted: int) -> list[float]:
    """Powers of ten inside the range, thinned to at most `wanted`; 1, 2, 5 between them where those are few."""
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    if len(exponents) >= 3:
        stride = math.ceil(len(exponents) / wanted)
        return [10.0**exponent for exponent in exponents if exponent % stride == 0]
    around = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [factor * 10.0**exponent for exponent in around for factor in (1, 2, 5)]
    inside = [at for at in fine if low * (1 - 1e-9) <= at <= high * (1 + 1e-9)]
    return inside if len(inside) >= 2 else [low, high]

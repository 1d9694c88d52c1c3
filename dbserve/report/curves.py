"""Geometry of the loss curves: small multiples with one logarithmic scale, so that any two panels can be compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dbserve.contracts.report import LossCurve, LossPoint
from dbserve.report.charts import fraction, log_ticks
from dbserve.report.numbers import MINUS, significant

MOST_POINTS = 80  # of a drawn curve: a panel is some 250 pixels wide


@dataclass(frozen=True)
class Level:
    """A horizontal line: `at` is per cent from the top."""

    at: float
    label: str


@dataclass(frozen=True)
class LossPanel:
    """One panel in a square of 100 by 100, stretched to its place. `paths` are SVG path data, one for each curve."""

    title: str
    kind: str
    paths: tuple[str, ...]
    last: str  # mean loss over the last fifth of the steps; of several curves, the range
    trend: str  # its change against the fifth before
    description: str


@dataclass(frozen=True)
class LossChart:
    panels: tuple[LossPanel, ...]
    levels: tuple[Level, ...]
    chance: float | None  # per cent from the top: the loss of a uniform guess, ln(classes), where it lies inside
    everything: str  # path data of all curves: the faint background of every panel
    last_step: int


def loss_chart(
    groups: Sequence[tuple[str, str, Sequence[LossCurve]]], classes: int | None, unit: str = "nats"
) -> LossChart | None:
    """Panels for (title, kind, curves), on one scale. None where no curve has a point that can be drawn.

    `classes` is None where a guess has no loss worth a line.
    """
    drawn = [(title, kind, [thinned(drawable(curve)) for curve in curves]) for title, kind, curves in groups]
    drawn = [(title, kind, [points for points in curves if points]) for title, kind, curves in drawn]
    drawn = [group for group in drawn if group[2]]
    every = [point for _, _, curves in drawn for points in curves for point in points]
    if not every:
        return None
    low, high = _range([point.loss for point in every])
    last_step = max(point.step for point in every)

    def path(points: Sequence[LossPoint]) -> str:
        return path_data(points, low, high, last_step)

    panels = tuple(
        LossPanel(
            title=title,
            kind=kind,
            paths=tuple(path(points) for points in curves),
            last=_last(curves),
            trend=_trend(curves),
            description=_description(title, curves, unit),
        )
        for title, kind, curves in drawn
    )
    chance = math.log(classes) if classes is not None and classes > 1 else 0.0
    return LossChart(
        panels=panels,
        levels=tuple(Level(_height(loss, low, high), significant(loss, 1)) for loss in log_ticks(low, high, 4)),
        chance=_height(chance, low, high) if low <= chance <= high else None,
        everything=" ".join(path for panel in panels for path in panel.paths),
        last_step=last_step,
    )


def drawable(curve: LossCurve) -> list[LossPoint]:
    """The points with a finite, positive loss: a logarithm has no place for others."""
    return [point for point in curve.points if math.isfinite(point.loss) and point.loss > 0]


def thinned(points: Sequence[LossPoint], most: int = MOST_POINTS) -> list[LossPoint]:
    """At most `most` points. A point is the mean loss since the one before it, and so is a point made of several."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    merged: list[LossPoint] = []
    before = 0
    for start in range(0, len(points), size):
        total, weight = 0.0, 0
        for point in points[start : start + size]:
            total += point.loss * max(1, point.step - before)
            weight += max(1, point.step - before)
            before = point.step
        merged.append(LossPoint(step=before, loss=total / weight))
    return merged


def path_data(points: Sequence[LossPoint], low: float, high: float, last_step: int) -> str:
    """SVG path data in a square of 100 by 100, origin at the top left. A single point becomes a short dash."""
    places = [(100 * fraction(point.step, 0, last_step), _height(point.loss, low, high)) for point in points]
    if len(places) == 1:
        x, y = places[0]
        places = [(max(0.0, x - 3), y), (x, y)]
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)


def _height(loss: float, low: float, high: float) -> float:
    return round(100 * (1 - fraction(loss, low, high, logarithmic=True)), 3)


def _range(losses: Sequence[float]) -> tuple[float, float]:
    """A little more than the losses span, and at least a factor of two."""
    low, high = min(losses) / 1.15, max(losses) * 1.15
    return (low, high) if high / low >= 2 else (low / 1.5, high * 1.5)


def _fifth(points: Sequence[LossPoint], before_end: int) -> float | None:
    """Mean loss over the last fifth of the steps (0), or the one before it (1)."""
    end = points[-1].step
    losses = [point.loss for point in points if (4 - before_end) * end < 5 * point.step <= (5 - before_end) * end]
    return sum(losses) / len(losses) if losses else None


def _last(curves: Sequence[Sequence[LossPoint]]) -> str:
    ends = sorted(_fifth(points, 0) or points[-1].loss for points in curves)
    first, last = significant(ends[0], 2), significant(ends[-1], 2)
    return first if first == last else f"{first} to {last}"


def _trend(curves: Sequence[Sequence[LossPoint]]) -> str:
    """The change in per cent, averaged over the curves; empty for too few points."""
    pairs = [(_fifth(points, 1), _fifth(points, 0)) for points in curves]
    changes = [last / before - 1 for before, last in pairs if before and last]
    if not changes:
        return ""
    change = round(100 * sum(changes) / len(changes))
    return f"{'+' if change > 0 else MINUS if change < 0 else '±'}{abs(change)}\u202f%"


def _description(title: str, curves: Sequence[Sequence[LossPoint]], unit: str) -> str:
    first = sum(points[0].loss for points in curves) / len(curves)
    final = sum(points[-1].loss for points in curves) / len(curves)
    step = max(points[-1].step for points in curves)
    end = f"{significant(final, 2)} {unit}".rstrip()
    return f"{title}: training loss from {significant(first, 2)} to {end} in {step} steps"

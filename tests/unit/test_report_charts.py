"""Geometry of the report's charts, and how its numbers are written."""

import math
from itertools import pairwise

import pytest

from dbserve.contracts.report import LossCurve, LossPoint
from dbserve.contracts.status import MemoryBytes
from dbserve.report.charts import Axis, linear_axis, log_axis, span, stacked, whisker
from dbserve.report.costs import measured_total
from dbserve.report.curves import loss_chart, thinned
from dbserve.report.numbers import byte_size, count, duration, percent, points, significant, with_error


def test_a_whisker_reaches_one_and_two_errors_to_both_sides() -> None:
    mark = whisker(Axis(0.0, 1.0), 0.5, 0.1)
    assert mark.at == pytest.approx(50)
    assert mark.one == pytest.approx((40, 60))
    assert mark.two == pytest.approx((30, 70))


def test_a_whisker_stays_inside_the_plot() -> None:
    assert whisker(Axis(0.9, 1.0), 0.99, 0.02).two == pytest.approx((50, 100))


def test_stacked_parts_touch_and_sum_to_their_share_of_the_width() -> None:
    parts = stacked([("a", 10), ("b", 20), ("c", None), ("d", 30)], full=120)
    assert [part.kind for part in parts] == ["a", "b", "d"]
    assert parts[-1].end == pytest.approx(50, abs=0.01)
    assert all(before.end == pytest.approx(after.start) for before, after in pairwise(parts))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.941, 0.987), (0, 173.2), (5.0, 5.0), (-3, 8)])
def test_a_linear_axis_holds_its_values_between_round_ends(low: float, high: float) -> None:
    axis = linear_axis((low, high))
    assert axis.low <= low + 1e-9
    assert high <= axis.high + 1e-9
    assert axis.ticks[0].at == 0
    assert axis.ticks[-1].at == 100
    assert 2 <= len(axis.ticks) <= 7


def test_equal_ratios_are_equal_lengths_on_a_log_axis() -> None:
    axis = log_axis([0.01, 100.0])
    assert axis.place(1.0) == pytest.approx(50)
    assert span(axis, "x", 0.01, 0.1).width == pytest.approx(span(axis, "x", 1, 10).width)
    assert [tick.label for tick in axis.ticks] == ["0.01", "0.1", "1", "10", "100"]


def test_an_interval_too_short_to_see_is_still_drawn() -> None:
    assert span(Axis(0, 100), "x", 5, 5).width > 0


def test_a_thinned_curve_keeps_its_mean_and_its_last_step() -> None:
    curve = [LossPoint(step=10 * step, loss=float(step)) for step in range(1, 201)]
    thin = thinned(curve, most=50)
    assert len(thin) == 50
    assert thin[-1].step == 2000
    assert sum(point.loss for point in thin) / 50 == pytest.approx(100.5)


def test_all_panels_share_one_scale_and_lower_loss_lies_lower() -> None:
    def curve(task: str, loss: float) -> LossCurve:
        return LossCurve(task=task, points=(LossPoint(step=50, loss=loss), LossPoint(step=100, loss=loss)))

    chart = loss_chart([("a", "block", [curve("a", 2.0)]), ("b", "block", [curve("b", 0.2)])], classes=10)
    assert chart is not None
    first, second = (float(panel.paths[0].split()[-1]) for panel in chart.panels)
    assert 0 < first < second < 100


def test_a_task_without_a_drawable_loss_has_no_panel() -> None:
    points_ = (LossPoint(step=1, loss=math.nan), LossPoint(step=2, loss=0.0))
    assert loss_chart([("a", "block", [LossCurve(task="a", points=points_)])], classes=10) is None


def test_measured_bytes_are_the_sum_of_the_kinds_or_else_the_peak() -> None:
    assert measured_total(MemoryBytes(parameters=1, gradients=2, optimizer=3, activations=4, peak=99)) == 10
    assert measured_total(MemoryBytes(parameters=1, peak=99)) == 99
    assert measured_total(MemoryBytes(parameters=1)) is None
    assert measured_total(None) is None


# Numbers


def test_numbers_carry_units_and_sensible_digits() -> None:
    assert byte_size(57.21 * 1024**2) == "57.2\u202fMiB"
    assert byte_size(512) == "512\u202fB"
    assert duration(0.0162) == "16.2\u202fms"
    assert duration(125) == "2\u202fmin 05\u202fs"
    assert duration(7290) == "2\u202fh 02\u202fmin"
    assert count(192_000) == "192\u202f000"
    assert count(2_300_000) == "2.30\u202fM"
    assert points(-0.004) == "−0.4\u202fpp"
    assert points(0.0001) == "0.0\u202fpp"
    assert with_error(0.97333, 0.0076) == "97.3\u00a0±\u00a00.8\u202f%"
    assert with_error(0.97333, 0.0004) == "97.33\u00a0±\u00a00.04\u202f%"
    assert significant(0.9999) == "1.00"
    assert significant(0.00213) == "0.00213"
    assert significant(1.2e-7, 2) == "1.2\u202f×\u202f10⁻⁷"


@pytest.mark.parametrize("write", [byte_size, duration, count, points, percent, significant])
@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_no_number_is_written_as_missing(write, value: float | None) -> None:
    assert write(value) == "n/a"

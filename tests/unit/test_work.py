"""Work adds up, durations fall into their buckets, and a course is one curve."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbserve.contracts.work import STEP_BOUNDS, CheckpointStage, Durations, Point, Work, course, thinned

seconds = st.floats(0.0, 100.0)


def works() -> st.SearchStrategy[Work]:
    counts = st.integers(0, 10**12)
    durations = st.lists(seconds, max_size=5).map(of)
    return st.builds(
        Work, steps=counts, samples=counts, tokens=counts, step_seconds=durations, data_wait_seconds=seconds,
        read_bytes=counts, sent_bytes=counts, nonfinite_steps=counts, save_seconds=st.just(Durations()),
        failed_checkpoints=st.dictionaries(st.sampled_from(CheckpointStage), st.integers(1, 9)),
    )  # fmt: skip


def of(observed: list[float]) -> Durations:
    found = Durations()
    for each in observed:
        found = found.observed(each, STEP_BOUNDS)
    return found


@given(works(), works())
def test_nothing_is_lost_when_work_is_added_up_and_no_counter_falls(one: Work, other: Work) -> None:
    both = one.plus(other)
    assert both.model_dump(exclude={"step_seconds", "data_wait_seconds"}) == other.plus(one).model_dump(
        exclude={"step_seconds", "data_wait_seconds"}
    )
    for field in ("steps", "samples", "tokens", "read_bytes", "sent_bytes", "nonfinite_steps"):
        assert getattr(both, field) == getattr(one, field) + getattr(other, field)
    assert both.step_seconds.count == one.step_seconds.count + other.step_seconds.count
    assert both.step_seconds.seconds == pytest.approx(one.step_seconds.seconds + other.step_seconds.seconds)
    assert one.plus(Work()) == one == Work().plus(one)


@given(st.lists(seconds, min_size=1))
def test_a_histogram_counts_as_prometheus_does(observed: list[float]) -> None:
    found = of(observed)
    for place, bound in enumerate(STEP_BOUNDS):
        assert sum(found.counts[: place + 1]) == sum(each <= bound for each in observed)
    assert found.count == len(observed)


def test_what_was_counted_in_other_buckets_is_left_out_rather_than_mixed_up() -> None:
    old, new = Durations(counts=(1, 2), seconds=3.0), of([0.01])
    assert new.plus(old) == new


def at(step: int, attempt: int) -> Point:
    return Point(step=step, at=0.0, attempt=attempt)


def test_what_an_attempt_did_anew_replaces_what_was_before() -> None:
    told = [at(10, 1), at(20, 1), at(30, 1), at(21, 2), at(25, 2), at(25, 2)]
    assert [(point.step, point.attempt) for point in course(told)] == [(10, 1), (20, 1), (21, 2), (25, 2)]


@given(st.lists(st.builds(at, st.integers(1, 50), st.integers(1, 4))))
def test_a_course_only_goes_forward_and_ends_where_the_last_attempt_is(points: list[Point]) -> None:
    curve = course(points)
    steps = [point.step for point in curve]
    assert steps == sorted(set(steps))
    if points:
        newest = max(point.attempt for point in points)
        assert curve[-1].step == max(point.step for point in points if point.attempt == newest)


@given(st.integers(0, 300), st.integers(2, 50))
def test_a_thinned_course_keeps_both_ends_and_its_order(count: int, most: int) -> None:
    points = [at(step, 1) for step in range(1, count + 1)]
    few = thinned(points, most)
    assert len(few) == min(count, most)
    assert [point.step for point in few] == sorted({point.step for point in few})
    if count:
        assert (few[0], few[-1]) == (points[0], points[-1])

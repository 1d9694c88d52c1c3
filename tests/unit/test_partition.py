import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.method.partition import (
    block_of,
    equal_mass_edges,
    interval_mass,
    log_uniform_edges,
    masking_edges,
    masking_training_interval,
    training_interval,
)

counts = st.integers(1, 16)
means = st.floats(-3.0, 3.0)
deviations = st.floats(0.3, 3.0)
RANGE = {"sigma_min": 0.002, "sigma_max": 80.0}


def normal_mass(low: float, high: float, p_mean: float, p_std: float) -> float:
    """Mass of the log-normal by the trapezoid rule on its density: no distribution function is inverted here."""
    steps = 4000
    start, width = math.log(low), (math.log(high) - math.log(low)) / steps
    density = [math.exp(-0.5 * ((start + i * width - p_mean) / p_std) ** 2) for i in range(steps + 1)]
    return (sum(density) - 0.5 * (density[0] + density[-1])) * width


@given(counts, means, deviations)
def test_edges_fall_from_sigma_max_to_sigma_min(count: int, p_mean: float, p_std: float) -> None:
    edges = equal_mass_edges(count, p_mean=p_mean, p_std=p_std, **RANGE)
    assert len(edges) == count + 1
    assert edges[0] == 80.0
    assert edges[-1] == 0.002
    assert all(high > low for high, low in pairwise(edges))


@pytest.mark.parametrize(("p_mean", "p_std"), [(-1.2, 1.2), (1.4, 1.2), (-7.0, 0.8), (5.5, 0.9)])
def test_every_block_holds_the_same_probability_mass(p_mean: float, p_std: float) -> None:
    edges = equal_mass_edges(4, p_mean=p_mean, p_std=p_std, **RANGE)
    masses = [normal_mass(edges[b + 1], edges[b], p_mean, p_std) for b in range(4)]
    assert masses == pytest.approx([sum(masses) / 4] * 4, rel=1e-3)


def test_edges_of_the_published_noise_are_the_papers() -> None:
    # Thirds of a log-normal: exp(p_mean +- 0.4307 p_std).
    edges = equal_mass_edges(3, p_mean=-1.2, p_std=1.2, **RANGE)
    assert edges[1:3] == pytest.approx((math.exp(-1.2 + 0.4307 * 1.2), math.exp(-1.2 - 0.4307 * 1.2)), rel=1e-3)


def test_a_range_without_mass_is_refused_rather_than_cut_into_empty_blocks() -> None:
    with pytest.raises(ValueError, match="too little mass"):
        equal_mass_edges(3, p_mean=20.0, p_std=0.1, sigma_min=1e-3, sigma_max=1e-2)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_a_range_that_is_none_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        log_uniform_edges(2, sigma_min=low, sigma_max=high)


def test_uniform_edges_are_equally_far_apart_in_log_sigma() -> None:
    edges = log_uniform_edges(3, sigma_min=0.001, sigma_max=1.0)
    assert edges == pytest.approx((1.0, 0.1, 0.01, 0.001))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_step_from_an_edge_belongs_to_the_block_below_it(count: int) -> None:
    edges = equal_mass_edges(count, p_mean=-1.2, p_std=1.2, **RANGE)
    assert [block_of(edge, edges) for edge in edges[:-1]] == list(range(count))
    assert block_of(edges[-1], edges) == count - 1


@pytest.mark.parametrize("count", [2, 3, 8])
def test_just_above_an_inner_edge_the_block_before_it_is_meant(count: int) -> None:
    edges = equal_mass_edges(count, p_mean=-1.2, p_std=1.2, **RANGE)
    above = [math.nextafter(edge, math.inf) for edge in edges[1:-1]]
    assert [block_of(sigma, edges) for sigma in above] == list(range(count - 1))


@given(counts, st.floats(0.002, 80.0))
def test_the_block_of_a_sigma_owns_it(count: int, sigma: float) -> None:
    edges = equal_mass_edges(count, p_mean=-1.2, p_std=1.2, **RANGE)
    block = block_of(sigma, edges)
    assert edges[block + 1] <= sigma <= edges[block]
    assert sigma > edges[block + 1] or block == count - 1


@pytest.mark.parametrize("sigma", [0.0019, 80.1, math.nan, math.inf, -1.0])
def test_a_sigma_outside_the_range_has_no_block(sigma: float) -> None:
    with pytest.raises(ValueError, match="lies outside"):
        block_of(sigma, (80.0, 1.0, 0.002))


@given(counts, st.data())
def test_high_sigma_means_an_early_block(count: int, data: st.DataObject) -> None:
    edges = equal_mass_edges(count, p_mean=-1.2, p_std=1.2, **RANGE)
    low, high = sorted(data.draw(st.tuples(st.floats(0.002, 80.0), st.floats(0.002, 80.0))))
    assert block_of(high, edges) <= block_of(low, edges)


@given(counts, st.floats(0.0, 0.49), st.floats(0.002, 80.0))
def test_training_interval_and_block_of_are_one_road_in_both_directions(
    count: int, overlap: float, sigma: float
) -> None:
    edges = equal_mass_edges(count, p_mean=0.5, p_std=1.2, **RANGE)
    block = block_of(sigma, edges)
    low, high = training_interval(edges, block, overlap)
    assert edges[-1] <= low <= edges[block + 1] < edges[block] <= high <= edges[0]
    assert low <= sigma <= high
    inside = [
        b for b in range(count) if training_interval(edges, b, 0.0)[0] < sigma <= training_interval(edges, b, 0.0)[1]
    ]
    assert inside in ([block], [])  # [] only at sigma_min itself


def test_overlap_widens_by_its_share_of_the_blocks_width_in_log_sigma() -> None:
    edges = (1000.0, 100.0, 10.0, 1.0)
    assert training_interval(edges, 1, 0.1) == pytest.approx((10.0 / 10**0.1, 100.0 * 10**0.1))
    assert training_interval(edges, 0, 0.1) == pytest.approx((100.0 / 10**0.1, 1000.0))
    assert training_interval(edges, 2, 0.0) == (1.0, 10.0)


@pytest.mark.parametrize(("low", "high"), [(0.002, 0.3), (0.3, 80.0), (20.0, 80.0), (1e-6, 1e-5)])
def test_an_intervals_mass_is_the_densitys_integral_in_both_tails(low: float, high: float) -> None:
    expected = normal_mass(low, high, -1.2, 1.2) / (1.2 * math.sqrt(2 * math.pi))
    assert interval_mass(low, high, p_mean=-1.2, p_std=1.2) == pytest.approx(expected, rel=1e-3)


def test_far_beyond_the_mean_the_mass_is_not_rounded_to_nothing() -> None:
    assert interval_mass(2e5, 1e6, p_mean=-1.2, p_std=1.2) > 0.0


@given(counts, st.floats(0.001, 0.2), st.floats(0.5, 1.0))
def test_masking_edges_fall_by_equal_steps(count: int, t_min: float, t_max: float) -> None:
    edges = masking_edges(count, t_min=t_min, t_max=t_max)
    assert (edges[0], edges[-1], len(edges)) == (t_max, t_min, count + 1)
    assert [high - low for high, low in pairwise(edges)] == pytest.approx([(t_max - t_min) / count] * count)


def test_a_mask_is_never_more_than_certain() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        masking_edges(2, t_min=0.1, t_max=1.01)


def test_masking_widens_linearly_and_lets_the_last_block_see_more_masks() -> None:
    edges = (1.0, 0.6, 0.2, 0.1)
    assert masking_training_interval(edges, 1, 0.1) == pytest.approx((0.2 - 0.04, 0.6 + 0.04))
    assert masking_training_interval(edges, 0, 0.1) == pytest.approx((0.6 - 0.04, 1.0))
    assert masking_training_interval(edges, 2, 0.1) == pytest.approx((0.1, 0.2 + 0.01))
    assert masking_training_interval(edges, 2, 0.1, low_reach=0.5) == pytest.approx((0.1, 0.5))
    assert masking_training_interval(edges, 1, 0.1, low_reach=0.9) == pytest.approx((0.2 - 0.04, 0.6 + 0.04))
    assert masking_training_interval(edges, 2, 0.0, low_reach=2.0) == (0.1, 1.0)

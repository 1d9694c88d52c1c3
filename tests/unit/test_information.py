import math
from itertools import pairwise

import pytest
import torch

from workers.method.information import equal_information_edges, information


def counted(sigma: float, classes: int, rows: int = 40_000) -> tuple[float, float]:
    """I(y; z) by drawing z for orthonormal codes, and its standard error."""
    ratio, generator = 1 / sigma, torch.Generator().manual_seed(0)
    scores = ratio * torch.randn(rows, classes, dtype=torch.float64, generator=generator)  # <z, e_k> / sigma^2
    scores[:, 0] += ratio**2  # class 0 is the true one
    told = math.log(classes) + scores.log_softmax(dim=1)[:, 0]
    return float(told.mean()), float(told.std() / rows**0.5)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("sigma", [3.0, 1.0, 0.5, 0.3, 0.15])
def test_information_is_what_counting_finds(classes: int, sigma: float) -> None:
    found, error = counted(sigma, classes)
    assert information(sigma, classes) == pytest.approx(found, abs=4 * error + 1e-4)


@pytest.mark.parametrize("classes", [2, 65, 50_000])
def test_a_code_tells_nothing_in_pure_noise_and_everything_without_it(classes: int) -> None:
    falling = [information(sigma, classes) for sigma in (0.02, 0.1, 0.13, 0.2, 0.4, 0.8, 1.6, 6.0, 7.2, 100.0)]
    assert all(high >= low for high, low in pairwise(falling))
    assert falling[0] == pytest.approx(math.log(classes))
    assert falling[-1] < 1e-4


@pytest.mark.parametrize("classes", [2, 65, 50_000])
def test_the_formulas_for_faint_and_sure_codes_continue_the_integral(classes: int) -> None:
    assert information(1 / math.sqrt(0.0199), classes) == pytest.approx(
        information(1 / math.sqrt(0.0201), classes), rel=0.02
    )
    last = 1 / math.sqrt(4 * (16 + math.log(classes)))
    assert information(last * 1.001, classes) == pytest.approx(information(last * 0.999, classes), abs=1e-3)


def test_only_the_ratio_of_length_and_noise_matters() -> None:
    assert information(0.6, 10, norm=2.0) == pytest.approx(information(0.3, 10))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_edges_share_the_information_out_equally(count: int) -> None:
    edges = equal_information_edges(count, classes=65, norm=1.0, sigma_min=0.14, sigma_max=8.0)
    told = [information(sigma, 65) for sigma in edges]
    assert (edges[0], edges[-1], len(edges)) == (8.0, 0.14, count + 1)
    for low, high in pairwise(told):
        assert high - low == pytest.approx((told[-1] - told[0]) / count, rel=0.02)


def test_a_range_that_tells_nothing_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match="too little to be cut"):
        equal_information_edges(3, classes=4, norm=1.0, sigma_min=0.001, sigma_max=0.002)
    with pytest.raises(ValueError, match="between sigma_min=2"):
        equal_information_edges(3, classes=4, norm=1.0, sigma_min=2.0, sigma_max=1.0)

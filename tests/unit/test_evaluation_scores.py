import math

import pytest
import torch
from torch import Tensor

from workers.evaluation.scores import calibration_error, mean_of_probabilities, paired_difference, score


def answers(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities).log()


def test_a_score_of_known_answers() -> None:
    found = score(
        answers([0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]), torch.tensor([0, 0, 1, 0]), layer_evaluations=7
    )
    assert found.accuracy == 0.75
    assert found.standard_error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert found.cross_entropy == pytest.approx(-math.log(0.5 * 0.9 * 0.8 * 0.4) / 4, rel=1e-6)
    assert found.layer_evaluations == 7


def test_calibration_error_of_known_answers() -> None:
    """Two rows at confidence 0.9, one right; two at 0.6, both right: 0.5 x 0.4 + 0.5 x 0.4."""
    found = answers([0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6])
    assert calibration_error(found, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.4, rel=1e-5)


def test_errors_on_both_sides_of_a_bin_cancel_and_those_of_two_bins_do_not() -> None:
    one_bin = answers([0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.75, 0.25])
    assert calibration_error(one_bin, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.0, abs=1e-6)
    two_bins = answers([0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.55, 0.45])
    assert calibration_error(two_bins, torch.tensor([0, 1, 0, 0])) == pytest.approx(0.45, rel=1e-5)


def test_full_confidence_falls_into_the_last_bin() -> None:
    assert calibration_error(answers([1.0, 0.0]), torch.tensor([0])) == pytest.approx(0.0)


def test_an_ensemble_averages_probabilities_and_not_their_logarithms() -> None:
    found = mean_of_probabilities([answers([0.9, 0.1]), answers([0.1, 0.9]), answers([0.2, 0.8])])
    assert torch.allclose(found.exp(), torch.tensor([[0.4, 0.6]]))


def test_the_difference_of_equal_answers_is_nothing_without_error() -> None:
    found = answers([0.9, 0.1], [0.2, 0.8])
    difference = paired_difference(found, found, torch.tensor([0, 0]))
    assert (difference.value, difference.error, difference.settled) == (0.0, 0.0, False)


def test_a_paired_error_counts_only_the_rows_that_differ() -> None:
    labels = torch.zeros(100, dtype=torch.long)
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    theirs = answers(*[right] * 50, *[wrong] * 50)
    ours = answers(*[right] * 60, *[wrong] * 40)
    difference = paired_difference(ours, theirs, labels)
    assert difference.value == pytest.approx(0.1)
    assert difference.error == pytest.approx(0.03)  # sqrt(0.1 x 0.9 / 100); unpaired it would be 0.07
    assert difference.settled

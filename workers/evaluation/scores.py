"""From answers to figures. N rows, K classes; answers are log-probabilities (N, K), labels (N,)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dbserve.contracts.report import Measured, Score, ShallowSingle

CALIBRATION_BINS = 15


def score(answers: Tensor, labels: Tensor, *, layer_evaluations: int) -> Score:
    """Accuracy with its standard error over the rows, cross-entropy in nats, calibration."""
    right = accuracy(answers, labels)
    return Score(
        accuracy=right,
        standard_error=_standard_error(right, len(labels)),
        cross_entropy=cross_entropy(answers, labels),
        expected_calibration_error=calibration_error(answers, labels),
        layer_evaluations=layer_evaluations,
    )


def mean_member(members: Sequence[Score], rows: int) -> ShallowSingle:
    """What one member of an ensemble is worth: the mean of their scores on the same rows."""

    def mean(field: str) -> float:
        return math.fsum(getattr(member, field) for member in members) / len(members)

    right = mean("accuracy")
    return ShallowSingle(
        accuracy=right,
        standard_error=_standard_error(right, rows),
        cross_entropy=mean("cross_entropy"),
        expected_calibration_error=mean("expected_calibration_error"),
        layer_evaluations=members[0].layer_evaluations,
        members=tuple(member.accuracy for member in members),
    )


def mean_of_probabilities(members: Sequence[Tensor]) -> Tensor:
    """The ensemble's log-probabilities: the mean of the members' softmax. B times (N, K) -> (N, K)."""
    return torch.logsumexp(torch.stack(list(members)), dim=0) - math.log(len(members))


def accuracy(answers: Tensor, labels: Tensor) -> float:
    return float(correct(answers, labels).double().mean())


def correct(answers: Tensor, labels: Tensor) -> Tensor:
    """Which rows are right: (N,) bool."""
    return answers.argmax(dim=1) == labels


def cross_entropy(answers: Tensor, labels: Tensor) -> float:
    """Mean -ln p(label), nats. `answers` must be normalised."""
    return -float(answers.gather(1, labels[:, None]).double().mean())


def calibration_error(answers: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: |accuracy - confidence| of equal-width confidence bins, weighted by their rows
    (Guo et al., 2017). Bin k holds confidences in (k / bins, (k + 1) / bins]."""
    confidence = answers.double().exp().max(dim=1).values
    place = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    surplus = correct(answers, labels).double() - confidence
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, place, surplus).abs().sum() / len(labels))


@dataclass(frozen=True)
class Difference:
    """Accuracy of one answer less another's on the same rows; `error` is its paired standard error."""

    value: float
    error: float

    @property
    def settled(self) -> bool:
        """Beyond two standard errors of nothing."""
        return abs(self.value) > 2 * self.error


def paired_difference(ours: Tensor, theirs: Tensor, labels: Tensor) -> Difference:
    """Row by row, so what both find hard cancels. Of seeds it says nothing: each answer is one training's."""
    differences = correct(ours, labels).double() - correct(theirs, labels).double()
    spread = float(differences.std(correction=0))
    return Difference(value=float(differences.mean()), error=spread / math.sqrt(len(labels)))


def paired_measure(ours: Tensor, theirs: Tensor, unit: float = 1.0) -> Measured | None:
    """Mean of ours - theirs over the same rows, (N,) each, divided by `unit`; None without a spread (one row)."""
    if len(ours) < 2:
        return None
    difference = (ours.double() - theirs.double()) / unit
    return Measured(value=float(difference.mean()), standard_error=float(difference.std()) / math.sqrt(len(difference)))


def _standard_error(share: float, rows: int) -> float:
    return math.sqrt(share * (1 - share) / rows)

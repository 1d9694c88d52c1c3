"""Distance between two sets of images by the Gaussians of their features. n rows, F features; float64 throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from workers.evaluation.scores import Difference

REPLICATES = 200
_SEED = 20260714


@dataclass(frozen=True)
class Moments:
    """Mean (F,) and covariance (F, F), of n - 1."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Of features (n, F); n of at least 2, or ValueError."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} rows have no covariance")
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    return Moments(mean, centred.T @ centred / (len(features) - 1))


def frechet_distance(one: Moments, other: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2): Frechet's (1957), as used by FID (arXiv 1706.08500, eq. 6).

    Both roots through the eigenvalues of a symmetric matrix, negative ones taken as 0. No ridge is added, so features
    that do not vary, or fewer rows than features, need none.
    """
    root = _root(one.covariance)
    inner = _eigenvalues(root @ other.covariance @ root).clamp(min=0).sqrt().sum()
    spread = one.covariance.trace() + other.covariance.trace() - 2 * inner
    return float((one.mean - other.mean).square().sum() + spread)


@dataclass(frozen=True)
class Distances:
    """Distances of several sets of equally many images from one reference, and how they would have come out on other
    draws: `replicates` (R,) by key, replicate r of every key on the same rows."""

    values: Mapping[str, float]
    replicates: Mapping[str, Tensor]

    def standard_error(self, key: str) -> float:
        return float(self.replicates[key].std())

    def difference(self, key: str, other: str) -> Difference:
        """Less is nearer; the error is paired, since both are resampled together."""
        apart = self.replicates[key] - self.replicates[other]
        return Difference(value=self.values[key] - self.values[other], error=float(apart.std()))


def distances(sets: Mapping[str, Tensor], reference: Tensor) -> Distances:
    """Of every set (n, F), all of one n, from the reference (m, F).

    Errors by the bootstrap: rows of the sets and of the reference drawn with replacement, the same rows for every set,
    since row i of each was made from the same noise for the same class.
    """
    generator = torch.Generator().manual_seed(_SEED)
    rows = {len(features) for features in sets.values()}
    if len(rows) != 1:
        raise ValueError(f"sets of {sorted(rows)} rows cannot be compared: the distance depends on their number")
    (count,) = rows
    whole = moments(reference)
    replicates: dict[str, list[float]] = {key: [] for key in sets}
    for _ in range(REPLICATES):
        drawn = torch.randint(count, (count,), generator=generator)
        other = moments(reference[torch.randint(len(reference), (len(reference),), generator=generator)])
        for key, features in sets.items():
            replicates[key].append(frechet_distance(moments(features[drawn]), other))
    return Distances(
        values={key: frechet_distance(moments(features), whole) for key, features in sets.items()},
        replicates={key: torch.tensor(found, dtype=torch.float64) for key, found in replicates.items()},
    )


def _root(symmetric: Tensor) -> Tensor:
    found = torch.linalg.eigh(symmetric)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    values, vectors = cast(tuple[Tensor, Tensor], found)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def _eigenvalues(symmetric: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.eigvalsh(symmetric))  # pyright: ignore[reportUnknownMemberType]

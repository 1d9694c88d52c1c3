"""Denoising loss on test rows, interval by interval, all contestants on the same noise. N rows, B intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.data import Split
from workers.evaluation.answers import image_batches
from workers.evaluation.entrants import Entrant
from workers.evaluation.features import images_of
from workers.evaluation.scores import Difference
from workers.evaluation.subject import Subject
from workers.method.noise import sample_sigmas
from workers.method.objective import edm_weight, noised, squared_error
from workers.method.partition import block_of
from workers.method.precondition import c_skip
from workers.models.gaussian import noise_of
from workers.models.protocol import ImageGenerator

LOSS_ROWS = 2000
_MEAN_ROWS = 2000
_SEED = 20260716
UNTRAINED, MEAN_IMAGE = "scaled noise", "mean image"  # answers that need no training


@dataclass(frozen=True)
class Losses:
    """`rows`: EDM's weighted squared error (N, B) float64 by contestant: each row at one noise level an interval.
    `mass`: the share (B,) of the noise levels' distribution that lies in each interval; sums to 1."""

    rows: Mapping[str, Tensor]
    mass: Tensor

    def whole(self, key: str) -> Difference:
        """Loss over the whole range, weighted as the noise levels are drawn, with its standard error over the rows."""
        return _mean(self.rows[key] @ self.mass)

    def whole_difference(self, key: str, other: str) -> Difference:
        """Paired: row by row, on the same noise."""
        return _mean((self.rows[key] - self.rows[other]) @ self.mass)

    def within(self, key: str, interval: int) -> float:
        return float(self.rows[key][:, interval].mean())

    def difference(self, key: str, other: str, interval: int) -> Difference:
        """Paired, in one interval."""
        return _mean(self.rows[key][:, interval] - self.rows[other][:, interval])

    def idle(self, interval: int) -> str:
        """The better of the two answers that need no training."""
        return min((UNTRAINED, MEAN_IMAGE), key=lambda key: self.within(key, interval))


def denoising_losses(generator: ImageGenerator, entrants: Sequence[Entrant], subject: Subject) -> Losses:
    """Of the first LOSS_ROWS test rows: every row in every interval at one noise level, drawn as in training."""
    contract, device, train = subject.plan.contract, subject.device, subject.data.train
    test = subject.held_out(subject.data.test).first(LOSS_ROWS)
    noise = noise_of(contract)
    random = torch.Generator().manual_seed(_SEED)
    mean_image = images_of(train, slice(_MEAN_ROWS), device).mean(dim=0, keepdim=True)
    found: dict[str, list[list[Tensor]]] = {key: [] for key in (*(one.key for one in entrants), UNTRAINED, MEAN_IMAGE)}
    intervals = list(zip(contract.edges[1:], contract.edges[:-1], strict=True))
    for images, labels in image_batches(test, subject.spec.evaluation.batch_size, device):
        columns: dict[str, list[Tensor]] = {key: [] for key in found}
        denoisers = {one.key: one.denoisers(generator, labels, 1.0) for one in entrants}
        for low, high in intervals:
            sigma = sample_sigmas(len(images), (low, high), noise, generator=random)
            z = noised(images.cpu(), sigma, generator=random).to(device)
            sigma = sigma.to(device)
            weight = edm_weight(sigma, contract.sigma_data)
            answers = {one.key: denoisers[one.key][block_of(high, one.edges)](z, sigma) for one in entrants}
            answers[UNTRAINED] = c_skip(sigma, contract.sigma_data)[:, None, None, None] * z
            answers[MEAN_IMAGE] = mean_image.expand_as(images)
            for key, answer in answers.items():
                columns[key].append((weight * squared_error(answer, images)).double().cpu())
        for key, column in columns.items():
            found[key].append(column)
    mass = torch.tensor([noise.cdf(high) - noise.cdf(low) for low, high in intervals], dtype=torch.float64)
    return Losses(
        rows={key: torch.cat([torch.stack(columns, dim=1) for columns in batches]) for key, batches in found.items()},
        mass=mass / mass.sum(),
    )


def root_mean_square(split: Split) -> float:
    """Of the first rows' values, as networks see them: what sigma_data stands for."""
    return float(images_of(split, slice(_MEAN_ROWS), torch.device("cpu")).square().mean().sqrt())


def _mean(values: Tensor) -> Difference:
    return Difference(value=float(values.mean()), error=float(values.std(correction=0)) / math.sqrt(len(values)))

"""Drawing samples from a contestant, and what that took. Noise and classes are the same for all of them."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dbserve.contracts.plan import Contract
from workers.data import Split, normalise
from workers.evaluation.answers import as_tensor
from workers.evaluation.entrants import Entrant, LayerCount
from workers.evaluation.features import FeatureNetwork
from workers.evaluation.pictures import COLUMNS, ROWS
from workers.method.ode import assigned, noise_levels, sample
from workers.models.protocol import ImageGenerator

_SEED = 20260717


@dataclass(frozen=True)
class Drawn:
    """What became of one contestant's samples. `kept`: the first few, (C, H, W) uint8, sorted by class; none of arrays
    that are not images."""

    features: Tensor  # (n, F)
    right: Tensor  # (n,) bool: the classifier finds the class that was asked for
    seconds: float  # of one image
    layer_evaluations: int  # of one image
    kept: tuple[Tensor, ...]


@dataclass(frozen=True)
class Studio:
    """What every contestant's samples are made and seen with."""

    generator: ImageGenerator
    contract: Contract
    network: FeatureNetwork
    labels: Tensor  # (n,) the classes asked for
    steps: int
    batch_size: int
    pictures: bool  # samples are 8-bit images, and rounded to such
    device: torch.device

    def levels(self) -> list[float]:
        """Noise levels that the sampler steps from."""
        contract = self.contract
        return noise_levels(
            self.generator.sampling(contract).sampler,
            self.steps,
            sigma_min=contract.sigma_min,
            sigma_max=contract.sigma_max,
            sigma_data=contract.sigma_data,
        )

    def draw(self, entrant: Entrant) -> Drawn:
        """A sample for each label, by the architecture's sampler."""
        sampling, levels = self.generator.sampling(self.contract), self.levels()
        height, width, channels = self.contract.image
        random = torch.Generator().manual_seed(_SEED)
        features: list[Tensor] = []
        right: list[Tensor] = []
        kept: list[Tensor] = []
        seconds, layers = 0.0, 0
        for start in range(0, len(self.labels), self.batch_size):
            labels = self.labels[start : start + self.batch_size]
            noise = torch.randn(len(labels), channels, height, width, generator=random)
            z, asked = levels[0] * noise.to(self.device), labels.to(self.device)
            count = LayerCount()
            field = assigned(entrant.denoisers(self.generator, asked, sampling.guidance, count), entrant.edges)
            begun = self._now()
            images = sample(sampling.sampler, field, z, levels)
            seconds += self._now() - begun
            layers = count.total
            if self.pictures:
                pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
                images = normalise(pixels)
                kept.extend(pixels[: max(0, COLUMNS * ROWS - len(kept))].cpu())
            features.append(self.network.features(images).cpu())
            right.append((self.network(images).argmax(dim=1) == asked).cpu())
        by_class = sorted(range(len(kept)), key=lambda index: int(self.labels[index]))
        return Drawn(
            features=torch.cat(features),
            right=torch.cat(right),
            seconds=seconds / len(self.labels),
            layer_evaluations=layers,
            kept=tuple(kept[index] for index in by_class),
        )

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def asked_classes(test: Split, samples: int) -> Tensor:
    """The classes to draw: those of the test rows in order, and again from the first row: (samples,) int64."""
    return as_tensor(np.resize(test.targets, samples))

"""How noise levels are drawn: the log-normal of EDM, cut to an interval."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseDistribution:
    """ln sigma ~ Normal(p_mean, p_std^2) (EDM, arXiv 2206.00364, table 1; the paper's App. E)."""

    p_mean: float
    p_std: float

    def cdf(self, sigma: float) -> float:
        """Probability of a noise level of at most sigma, in [0, 1]."""
        return 0.5 * math.erfc((self.p_mean - math.log(sigma)) / (self.p_std * math.sqrt(2.0)))


def sample_sigmas(
    count: int, interval: tuple[float, float], noise: NoiseDistribution, *, generator: torch.Generator
) -> Tensor:
    """Noise levels for one block: the log-normal, cut to its (low, high) interval (paper, Eq. 6 and App. C).

    Shape (count,), float32, on the generator's device. Unit: the standard deviation of the added noise, as sigma_data;
    never a timestep. Drawn by inverting the distribution function in float64, so the interval's tails are exact.
    """
    low, high = interval
    mass = torch.empty(count, dtype=torch.float64, device=generator.device)
    mass.uniform_(noise.cdf(low), noise.cdf(high), generator=generator)
    normal = cast(Tensor, torch.special.ndtri(mass))  # pyright: ignore[reportUnknownMemberType]
    sigma = (noise.p_mean + noise.p_std * normal).exp()
    return sigma.clamp(low, high).float()

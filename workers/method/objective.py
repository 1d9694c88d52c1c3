"""What a block is trained on: the noised target and the loss of its answer. N batch, d code dimensions, K classes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def noised_codes(codes: Tensor, labels: Tensor, sigma: Tensor, *, generator: torch.Generator) -> Tensor:
    """z = E[y] + sigma eps (paper, section 3.1). codes (K, d), labels (N,), sigma (N,) -> (N, d) float32."""
    targets = codes[labels]  # (N, d)
    noise = torch.randn(targets.shape, device=targets.device, generator=generator)
    return targets + sigma[:, None] * noise


def label_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean -ln p(y | x, z) over the batch: logits (N, K), labels (N,) -> scalar, nats, in float32.

    Unweighted: EDM's weight of a sample has a max/mean of about 500 in the low-noise block, which leaves the batch one
    effective sample.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not belong together")
    return F.cross_entropy(logits.float(), labels)


def edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    """(s^2 + sd^2) / (s sd)^2: EDM's weight of a squared error at noise level s. (N,) -> (N,)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Mean of losses * weights, (N,) each -> scalar.

    ValueError where the shapes differ: (N,) against (N, 1) would broadcast to (N, N) and average loss and weight apart.
    """
    if losses.shape != weights.shape:
        raise ValueError(f"losses {tuple(losses.shape)} and weights {tuple(weights.shape)} would broadcast")
    return (losses * weights).mean()

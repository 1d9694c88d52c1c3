"""What a block is trained on: the noised target and the loss of its answer. N batch, d code dimensions, K classes.

Targets are label codes (N, d), or images (N, C, H, W).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.method.precondition import c_out, c_skip


def noised_codes(codes: Tensor, labels: Tensor, sigma: Tensor, *, generator: torch.Generator) -> Tensor:
    """z = E[y] + sigma eps (paper, section 3.1). codes (K, d), labels (N,), sigma (N,) -> (N, d) float32."""
    return noised(codes[labels], sigma, generator=generator)


def noised(targets: Tensor, sigma: Tensor, *, generator: torch.Generator) -> Tensor:
    """z = y + sigma eps, each row at its own noise level: targets (N, ...) float32, sigma (N,) -> (N, ...)."""
    noise = torch.randn(targets.shape, device=targets.device, generator=generator)
    return targets + sigma.view(-1, *(1,) * (targets.ndim - 1)) * noise


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


def squared_error(denoised: Tensor, targets: Tensor) -> Tensor:
    """Mean of |D - y|^2 over all but the rows: (N, ...) each -> (N,), float32. ValueError where the shapes differ."""
    if denoised.shape != targets.shape:
        raise ValueError(f"answers {tuple(denoised.shape)} and targets {tuple(targets.shape)} would broadcast")
    return (denoised.float() - targets).square().flatten(1).mean(dim=1)


def edm_target(targets: Tensor, z: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """(y - c_skip z) / c_out, what F should say: (N, C, H, W) twice and (N,) -> (N, C, H, W).

    EDM's weight undoes c_out, w(s) c_out^2 = 1 (arXiv 2206.00364, section 5), so that E[w(s) |D - y|^2] (eq. 8, per
    dimension) is the plain squared error of F at every noise level: 1 for a network that says 0, and no weights.
    """
    skip, out = (coefficient(sigma, sigma_data)[:, None, None, None] for coefficient in (c_skip, c_out))
    return (targets - skip * z) / out

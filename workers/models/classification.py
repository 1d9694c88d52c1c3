"""The losses of every architecture that classifies images by denoising label codes. N batch, d code dimensions."""

from functools import partial

import torch
from torch import Tensor, nn

from dbserve.contracts.plan import Contract
from workers.data import Batch, normalise
from workers.method.noise import NoiseDistribution, sample_sigmas
from workers.method.objective import label_cross_entropy, noised_codes
from workers.models.gaussian import noise_of
from workers.models.protocol import Loss


def code_denoising_loss(contract: Contract, network: nn.Module, codes: Tensor, interval: tuple[float, float]) -> Loss:
    """Cross-entropy of the answer to (images, z = E[y] + sigma eps, sigma), sigma drawn from the (low, high) interval.

    codes (K, d) on the network's device; the network is a Classifier's denoiser.
    """
    return partial(_denoising_loss, network, codes, interval, noise_of(contract))


def label_loss(network: nn.Module) -> Loss:
    """Cross-entropy of a plain classifier's answer to images."""
    return partial(_label_loss, network)


def _denoising_loss(
    network: nn.Module,
    codes: Tensor,
    interval: tuple[float, float],
    noise: NoiseDistribution,
    batch: Batch,
    generator: torch.Generator,
) -> Tensor:
    labels = batch.targets
    sigma = sample_sigmas(len(labels), interval, noise, generator=generator)  # (N,)
    z = noised_codes(codes, labels, sigma, generator=generator)  # (N, d)
    return label_cross_entropy(network(normalise(batch.inputs), z, sigma), labels)


def _label_loss(network: nn.Module, batch: Batch, _generator: torch.Generator) -> Tensor:
    return label_cross_entropy(network(normalise(batch.inputs)), batch.targets)

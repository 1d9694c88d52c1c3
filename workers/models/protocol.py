"""All the rest asks of an architecture. What its batches and answers are is its own affair, and its family's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dbserve.contracts.card import ArchitectureCard
from dbserve.contracts.plan import Contract
from dbserve.contracts.report import DecodeRule
from workers.data import Batch
from workers.method.ode import Denoiser, OdeSampler
from workers.method.sampler import Bridge, ChainInit

# A batch and the generator of the step's noise, both on the network's device -> mean loss, a float32 scalar, in nats
# unless the architecture says otherwise.
Loss = Callable[[Batch, torch.Generator], Tensor]


class ResidualNetwork(Protocol):
    """What every network, denoiser or baseline, offers besides being an nn.Module."""

    def residual_layers(self) -> Sequence[nn.Module]:
        """Its residual layers in order: what activation checkpointing recomputes and muon trains."""
        ...


class Architecture(Protocol):
    """One kind of network, cut into layers. Networks are built on the CPU, from torch's global generator."""

    @property
    def kind(self) -> str: ...

    def card(self) -> ArchitectureCard:
        """What the control plane knows of it; kept as dbserve/cards/<kind>.json (`make cards`)."""
        ...

    def denoiser(self, contract: Contract, layers: int) -> nn.Module:
        """A block of that many layers (a ResidualNetwork), with embedding, conditioning and readout of its own. Its
        state_dict holds what is trained and nothing else: what is common follows from the contract."""
        ...

    def denoising_loss(self, contract: Contract, network: nn.Module, interval: tuple[float, float]) -> Loss:
        """The loss of a denoiser (already on its device) that learns the noise levels of the (low, high) interval."""
        ...

    def baseline(self, contract: Contract, layers: int) -> nn.Module:
        """The network (a ResidualNetwork) of the same layers that end-to-end training would train."""
        ...

    def baseline_loss(self, contract: Contract, network: nn.Module) -> Loss:
        """The loss of a baseline, already on its device."""
        ...


@dataclass(frozen=True)
class Answering:
    """How a classifier's blocks come to one answer."""

    init: ChainInit = "zero"  # z at sigma_max
    bridge: Bridge = "soft"  # what carries z from a block to the next
    decode: DecodeRule | None = None  # None: whichever is right most often on validation rows


class Classifier(Architecture, Protocol):
    """An architecture of the family "classification": its denoisers answer for the class behind a noised code.

    Denoiser: images (N, C, H, W) in [-1, 1], z (N, d), sigma (N,) -> logits (N, K), readout included.
    Baseline: images -> logits (N, K). N batch, C channels, H x W pixels, d code dimensions, K classes.
    """

    def codes(self, contract: Contract) -> Tensor:
        """E, the frozen target codes of the contract: (K, d) float32 on the CPU."""
        ...

    def answering(self, contract: Contract) -> Answering:
        """How the blocks come to one answer."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How an architecture makes its images."""

    sampler: OdeSampler
    guidance: float  # scale of classifier-free guidance; 1: none


class ImageGenerator(Architecture, Protocol):
    """An architecture of the family "generation": its networks, blocks and baselines alike, estimate the image of a
    class behind a noised one."""

    def sampling(self, contract: Contract) -> Sampling: ...

    def of_classes(self, network: nn.Module, labels: Tensor, guidance: float) -> Denoiser:
        """The network's D(z, sigma) for images of these classes (N,), with guidance where its scale is not 1:
        z (N, C, H, W) and sigma (N,) -> (N, C, H, W), float32."""
        ...

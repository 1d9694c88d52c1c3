"""All the rest asks of an architecture. N batch, C image channels, H x W pixels, d code dimensions, K classes."""

from typing import Protocol

from torch import Tensor, nn

from dbserve.contracts.card import ArchitectureCard
from dbserve.contracts.plan import Contract
from workers.method.sampler import ChainInit


class Denoiser(Protocol):
    """A block: answers for the class behind a noised code, given the image."""

    def __call__(self, images: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """images (N, C, H, W) in [-1, 1], z (N, d), sigma (N,) -> logits (N, K), readout included."""
        ...


class Architecture(Protocol):
    """One kind of network, cut into layers. Networks are built on the CPU, from torch's global generator."""

    @property
    def kind(self) -> str: ...

    def card(self) -> ArchitectureCard:
        """What the control plane knows of it; kept as dbserve/cards/<kind>.json (`make cards`)."""
        ...

    def codes(self, contract: Contract) -> Tensor:
        """E, the frozen target codes of the contract: (K, d) float32 on the CPU."""
        ...

    def chain_init(self, contract: Contract) -> ChainInit:
        """Where the chain starts at sigma_max."""
        ...

    def denoiser(self, contract: Contract, layers: int) -> nn.Module:
        """A Denoiser of that many layers, with embedding, conditioning and readout of its own. Its state_dict holds
        what is trained and nothing else: what is common follows from the contract."""
        ...

    def baseline(self, contract: Contract, layers: int) -> nn.Module:
        """The plain network: the same layers without z and sigma. images (N, C, H, W) -> logits (N, K)."""
        ...

"""Inference: the walk of z along the edges, from sigma_max to sigma_min, one block a step.

N batch, d code dimensions, K classes, B blocks. A block is any callable (images, z, sigma) -> logits (N, K).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.method.codes import expected_code

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # images (N, ...), z (N, d), sigma (N,) -> logits (N, K)
ChainInit = Literal["zero", "noise"]
Bridge = Literal["soft", "hard"]


@dataclass(frozen=True)
class ChainStep:
    """What one block was handed, and what it answered."""

    block: int
    sigma: float  # the block's upper edge
    z: Tensor  # (N, d), as handed over
    logits: Tensor  # (N, K)


def euler_step(z: Tensor, denoised: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """One step of the probability-flow ODE from sigma down to sigma_next: z + (s' - s)(z - D) / s. Shapes equal z.

    A perfect denoiser lands on y + s' eps. (The paper prints Eq. 3-5 with the sign of the step wrong.)
    """
    return z + (sigma_next - sigma) * (z - denoised) / sigma


def initial_z(
    init: ChainInit, rows: int, codes: Tensor, sigma_max: float, *, generator: torch.Generator | None = None
) -> Tensor:
    """z at sigma_max, (rows, d): the prior's mode, or a sample of it (needs a generator on the codes' device)."""
    if init == "zero":
        return torch.zeros(rows, codes.shape[1], device=codes.device)
    if generator is None:
        raise ValueError("init='noise' needs a generator")
    return sigma_max * torch.randn(rows, codes.shape[1], device=codes.device, generator=generator)


def bridged(logits: Tensor, codes: Tensor, bridge: Bridge) -> Tensor:
    """The estimate of the clean code that carries z on: logits (N, K), codes (K, d) -> (N, d).

    soft: the mean code, softmax(logits) E, which is what a denoiser's answer is; hard: the code of the likeliest class.
    """
    if bridge == "hard":
        return codes[logits.argmax(dim=1)].float()
    return expected_code(F.log_softmax(logits.float(), dim=1), codes)


def walk(
    blocks: Sequence[Denoise],
    images: Tensor,
    codes: Tensor,
    edges: Sequence[float],
    z: Tensor,
    *,
    bridge: Bridge = "soft",
) -> Iterator[ChainStep]:
    """The chain, step by step: block b answers at edges[b]; its answer carries z to edges[b + 1] by one Euler step.

    images (N, ...), codes (K, d) on their device, edges (B + 1) descending, z (N, d) at edges[0].
    """
    if len(edges) != len(blocks) + 1:
        raise ValueError(f"{len(blocks)} blocks need {len(blocks) + 1} edges, not {len(edges)}")
    for index, block in enumerate(blocks):
        sigma = edges[index]
        logits = block(images, z, torch.full((len(z),), sigma, device=z.device))
        yield ChainStep(index, sigma, z, logits)
        z = euler_step(z, bridged(logits, codes, bridge), sigma, edges[index + 1])


def chain(
    blocks: Sequence[Denoise],
    images: Tensor,
    codes: Tensor,
    edges: Sequence[float],
    *,
    init: ChainInit,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Every block once, at its upper edge: the logits (N, K) after each block; the last ones are the chain's answer."""
    z = initial_z(init, len(images), codes, edges[0], generator=generator)
    return [step.logits for step in walk(blocks, images, codes, edges, z)]


def product_of_experts(blocks: Sequence[Denoise], images: Tensor, codes: Tensor, edges: Sequence[float]) -> Tensor:
    """The normalised sum of the blocks' log-probabilities, each alone at its upper edge with z = 0: (N, K)."""
    return product_of_answers(alone(blocks, images, codes, edges[:-1]))


def alone(blocks: Sequence[Denoise], images: Tensor, codes: Tensor, sigmas: Sequence[float]) -> list[Tensor]:
    """Each block's answer to the image without any z handed over (z = 0), at its own sigma: B times (N, K) logits."""
    z = torch.zeros(len(images), codes.shape[1], device=codes.device)
    return [
        block(images, z, torch.full((len(z),), sigma, device=z.device))
        for block, sigma in zip(blocks, sigmas, strict=True)
    ]


def product_of_answers(logits: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of the product of experts: the normalised sum of theirs. B times (N, K) -> (N, K)."""
    return F.log_softmax(torch.stack([F.log_softmax(answer.float(), dim=1) for answer in logits]).sum(dim=0), dim=1)

"""Running an assembled model and its baselines over rows of a split. N rows, K classes, d code dimensions, B blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dbserve.contracts.plan import Contract
from dbserve.contracts.report import DecodeRule
from workers.data import Split, normalise
from workers.method.sampler import ChainStep, Denoise, alone, initial_z, product_of_answers, walk
from workers.models import Answering, Classifier, architecture

CPU_ROWS = 64  # measured: 12 layers of width 128 take 40 % less time a row than at 500
_INIT_SEED = 20260714  # of z at sigma_max where the chain starts from noise


@dataclass(frozen=True)
class BlockChain:
    """An assembled model on its device, and all that its blocks have in common."""

    blocks: Sequence[Denoise]  # of a large model in memory in turn
    codes: Tensor  # (K, d)
    edges: tuple[float, ...]  # B + 1, descending
    answering: Answering

    @classmethod
    def of(cls, contract: Contract, blocks: Sequence[nn.Module], device: torch.device) -> BlockChain:
        """`blocks` are on the device, in evaluation mode."""
        kind = cast("Classifier", architecture(contract.architecture))
        return cls(
            blocks=cast("Sequence[Denoise]", blocks),
            codes=kind.codes(contract).to(device),
            edges=contract.edges,
            answering=kind.answering(contract),
        )

    def walk(self, images: Tensor, *, generator: torch.Generator) -> Iterator[ChainStep]:
        """The chain's steps for images (N, C, H, W) on its device; the generator is drawn from where init is noise."""
        z = initial_z(self.answering.init, len(images), self.codes, self.edges[0], generator=generator)
        return walk(self.blocks, images, self.codes, self.edges, z, bridge=self.answering.bridge)

    def generator(self) -> torch.Generator:
        return torch.Generator(self.codes.device).manual_seed(_INIT_SEED)


@dataclass(frozen=True)
class Answers:
    """Log-probabilities of every row, (N, K) float32 on the CPU each."""

    after: tuple[Tensor, ...]  # the chain, stopped after block b
    alone: tuple[Tensor, ...]  # block b alone: z = 0, at its upper edge

    def by(self, rule: DecodeRule) -> Tensor:
        match rule:
            case "chain":
                return self.after[-1]
            case "product_of_experts":
                return product_of_answers(self.alone)
            case "first_block":
                return self.alone[0]


def chain_answers(model: BlockChain, split: Split, batch_size: int) -> Answers:
    """The chain and each block alone on all rows: up to twice the model's layers an image."""
    generator = model.generator()
    after: list[list[Tensor]] = []
    single: list[list[Tensor]] = []
    for images, _ in image_batches(split, batch_size, model.codes.device):
        chained = [step.logits for step in model.walk(images, generator=generator)]
        known = chained[:1] if model.answering.init == "zero" else []  # what the chain began with is block 0 alone
        others = alone(model.blocks[len(known) :], images, model.codes, model.edges[len(known) : -1])
        after.append([_log_softmax(answer) for answer in chained])
        single.append([_log_softmax(answer) for answer in (*known, *others)])
    return Answers(after=_joined(after), alone=_joined(single))


def network_answers(network: nn.Module, split: Split, batch_size: int, device: torch.device) -> Tensor:
    """A plain network's log-probabilities of all rows: (N, K) float32 on the CPU."""
    network = network.to(device).eval()
    return torch.cat([_log_softmax(network(images)) for images, _ in image_batches(split, batch_size, device)])


def image_batches(split: Split, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images (N, C, H, W) and labels (N,) on the device, in order, the last batch ragged.

    On a CPU at most CPU_ROWS at once, whatever the batch size: what lies in its caches is answered for faster.
    """
    if device.type == "cpu":
        batch_size = min(batch_size, CPU_ROWS)
    for start in range(0, len(split), batch_size):
        rows = slice(start, start + batch_size)
        images = as_tensor(split.inputs[rows].transpose(0, 3, 1, 2))
        yield normalise(images.to(device)), as_tensor(split.targets[rows]).to(device)


def as_tensor(array: NDArray[np.uint8] | NDArray[np.int64]) -> Tensor:
    """A contiguous copy: a mapped array is read-only, and a tensor has no notion of that."""
    return torch.from_numpy(array.copy())  # pyright: ignore[reportUnknownMemberType]


def _log_softmax(logits: Tensor) -> Tensor:
    return F.log_softmax(logits.float(), dim=1).cpu()


def _joined(batches: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(block) for block in zip(*batches, strict=True))

"""Cheap tests of each block, each of which has caught a real failure that accuracy hid.

Run on the first DIAGNOSIS_ROWS test rows, which lie in shuffled order. "Teacher-noised" z is made from the true label:
what a block saw in training, as against what the previous blocks really hand over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dbserve.contracts.report import BlockDiagnosis
from workers.data import Split
from workers.evaluation.answers import Answers, BlockChain, as_tensor, image_batches
from workers.evaluation.residence import Chosen
from workers.evaluation.scores import accuracy
from workers.method.codes import expected_code, log_posterior
from workers.method.objective import noised_codes
from workers.method.sampler import ChainStep, bridged, euler_step, walk

DIAGNOSIS_ROWS = 1000  # about six answers of the whole model each; a share of them is good to 1.6 points
PUSH = 0.1  # of a block's output
_BAYES_DRAWS = 16_384
_SEED = 20260713


@dataclass(frozen=True)
class Diagnosis:
    blocks: tuple[BlockDiagnosis, ...]
    swap_accuracy: float | None  # block 0 in the last block's place; None with one block
    rows: int


def diagnose(model: BlockChain, test: Split, answers: Answers, batch_size: int) -> Diagnosis:
    """Every block's diagnosis. `answers` are the model's on all of `test`.

    accuracy_alone, accuracy_after and agreement_with_previous count all test rows, the rest at most DIAGNOSIS_ROWS.
    """
    few = Split(test.inputs[:DIAGNOSIS_ROWS], test.targets[:DIAGNOSIS_ROWS])
    sums = _run(model, few, batch_size)
    labels = as_tensor(test.targets)
    reading = [_read_off_z(model.codes, sigma) for sigma in model.edges]
    total_fall = reading[0].cross_entropy - reading[-1].cross_entropy
    blocks: list[BlockDiagnosis] = []
    for index, block in enumerate(sums.blocks):
        fall = reading[index].cross_entropy - reading[index + 1].cross_entropy
        teacher, handoff = block.loss_teacher / len(few), block.loss_handoff / len(few)
        before, after = answers.after[index - 1].argmax(dim=1), answers.after[index].argmax(dim=1)
        blocks.append(
            BlockDiagnosis(
                index=index,
                sigma_min=model.edges[index + 1],
                sigma_max=model.edges[index],
                information_share=fall / total_fall if total_fall > 0 else None,
                accuracy_alone=accuracy(answers.alone[index], labels),
                accuracy_at_sigma_max=block.right_at_sigma_max / len(few),
                accuracy_after=accuracy(answers.after[index], labels),
                z_only_accuracy=reading[index].accuracy,
                shuffled_image_accuracy=block.right_shuffled / len(few),
                true_image_accuracy=block.right_teacher / len(few),
                loss_teacher=teacher,
                loss_handoff=handoff,
                handoff_gap=handoff - teacher,
                agreement_with_previous=float((before == after).double().mean()) if index else None,
                amplification=math.sqrt(block.changed / block.pushed) if block.pushed > 0 else 0.0,
            )
        )
    swap = sums.right_swapped / len(few) if len(blocks) > 1 else None
    return Diagnosis(blocks=tuple(blocks), swap_accuracy=swap, rows=len(few))


@dataclass
class _BlockSums:
    """Over the rows so far: nats, right answers, squared lengths."""

    loss_teacher: float = 0.0
    loss_handoff: float = 0.0
    right_teacher: int = 0
    right_shuffled: int = 0
    right_at_sigma_max: int = 0
    pushed: float = 0.0
    changed: float = 0.0


@dataclass
class _Sums:
    blocks: list[_BlockSums]
    right_swapped: int = 0


def _run(model: BlockChain, split: Split, batch_size: int) -> _Sums:
    device = model.codes.device
    random = torch.Generator(device).manual_seed(_SEED)
    start = model.generator()
    sums = _Sums([_BlockSums() for _ in model.blocks])
    order = (*range(len(model.blocks) - 1), 0)
    swapped = BlockChain(Chosen(model.blocks, order), model.codes, model.edges, model.answering)
    for images, labels in image_batches(split, batch_size, device):
        steps = list(model.walk(images, generator=start))
        outcome = _mean_code(model, steps[-1].logits)
        for step, into in zip(steps, sums.blocks, strict=True):
            into.loss_handoff += _loss(step.logits, labels)
            _examine_alone(model, step.block, images, labels, into, random)
            _push(model, images, step, outcome, into, random)
        *_, last = swapped.walk(images, generator=model.generator())
        sums.right_swapped += _right(last.logits, labels)
    return sums


def _examine_alone(
    model: BlockChain, index: int, images: Tensor, labels: Tensor, into: _BlockSums, random: torch.Generator
) -> None:
    """A block on teacher-noised z at its upper edge, with the true image and with another; and at sigma_max, z = 0."""
    block, codes = model.blocks[index], model.codes
    sigma = torch.full((len(labels),), model.edges[index], device=codes.device)
    z = noised_codes(codes, labels, sigma, generator=random)
    logits = block(images, z, sigma)
    into.loss_teacher += _loss(logits, labels)
    into.right_teacher += _right(logits, labels)
    into.right_shuffled += _right(block(images.roll(1, dims=0), z, sigma), labels)
    at_top = torch.full_like(sigma, model.edges[0])
    into.right_at_sigma_max += _right(block(images, torch.zeros_like(z), at_top), labels)


def _push(
    model: BlockChain, images: Tensor, step: ChainStep, outcome: Tensor, into: _BlockSums, random: torch.Generator
) -> None:
    """Move a block's mean code by PUSH of its length in a random direction and let the later blocks go on."""
    code, later = bridged(step.logits, model.codes, model.answering.bridge), step.block + 1
    direction = torch.randn(code.shape, generator=random, device=code.device)
    length = code.square().sum(dim=1, keepdim=True).sqrt()
    push = PUSH * length * F.normalize(direction, dim=1)
    pushed_outcome = code + push
    if later < len(model.blocks):
        z = euler_step(step.z, code + push, step.sigma, model.edges[later])
        bridge = model.answering.bridge
        *_, last = walk(model.blocks[later:], images, model.codes, model.edges[later:], z, bridge=bridge)
        pushed_outcome = _mean_code(model, last.logits)
    into.pushed += float(push.double().square().sum())
    into.changed += float((pushed_outcome - outcome).double().square().sum())


@dataclass(frozen=True)
class _Reading:
    """What Bayes' rule reads off z alone, without an image."""

    cross_entropy: float  # nats
    accuracy: float


def _read_off_z(codes: Tensor, sigma: float) -> _Reading:
    """A perfect reader of z at sigma, by Monte Carlo with the same draws at every sigma.

    Its cross-entropy H(y | z) falls from ln K at large sigma to 0 at small. The share of that fall in a block's
    interval is the block's information share: it depends on codes and edges alone, not on what a block has learned.
    """
    random = torch.Generator(codes.device).manual_seed(_SEED)
    labels = torch.arange(_BAYES_DRAWS, device=codes.device) % len(codes)
    sigmas = torch.full((_BAYES_DRAWS,), sigma, device=codes.device)
    posterior = log_posterior(noised_codes(codes, labels, sigmas, generator=random), codes, sigmas)
    loss = -posterior.gather(1, labels[:, None]).double().mean()
    return _Reading(cross_entropy=float(loss), accuracy=_right(posterior, labels) / _BAYES_DRAWS)


def _mean_code(model: BlockChain, logits: Tensor) -> Tensor:
    return expected_code(logits.float().log_softmax(dim=1), model.codes)  # (N, d)


def _loss(logits: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(logits.float(), labels, reduction="sum"))


def _right(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) == labels).sum())

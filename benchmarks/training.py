"""Training: bytes of a block and of the whole network, and their steps taken in turns."""

import statistics
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import peak_flops
from benchmarks.shapes import Job
from dbserve.contracts.plan import MemoryPlan
from dbserve.contracts.status import MemoryBytes
from workers.trainer import StepReport, train_block

KINDS = ("parameters", "gradients", "optimizer", "activations")
WHOLE = "end_to_end"


@dataclass(frozen=True)
class Bytes:
    """Of one network in training: counted, the planner's, and how far that is off."""

    measured: dict[str, int]
    predicted: dict[str, int]
    error: float  # predicted / measured - 1, of the totals

    @property
    def total(self) -> int:
        return sum(self.measured.values())


@dataclass(frozen=True)
class Pace:
    """Of one network. Seconds of a step are medians; units are images, or tokens of text."""

    step_seconds: float
    cpu_seconds: float | None  # of the training thread; None on CUDA
    units_per_second: float
    flops: int | None  # on CUDA, of the matrix products of a step, forward and backward
    mfu: float | None  # their share of the device's peak; None where that is not known
    peak_allocated: int | None  # bytes on CUDA, of this network alone


@dataclass(frozen=True)
class Comparison:
    """One block against the end-to-end network. Ratios are of (B blocks' steps) / (one end-to-end step), by repeat."""

    shape: str
    what: str
    blocks: int
    batch_size: int
    unit: str
    block_bytes: Bytes  # of the largest block
    whole_bytes: Bytes
    bytes_ratio: float
    bytes_ratio_predicted: float
    block: Pace
    whole: Pace
    time_ratios: tuple[float, ...]
    cpu_ratios: tuple[float, ...]  # empty on CUDA

    @property
    def time_ratio(self) -> float:
        return statistics.median(self.time_ratios)

    @property
    def cpu_ratio(self) -> float | None:
        return statistics.median(self.cpu_ratios) if self.cpu_ratios else None


@dataclass(frozen=True)
class _Step:
    seconds: float
    cpu: float


def compare(job: Job, *, repeats: int, device: str) -> Comparison:
    """Trains every block and the end-to-end network in turns, one step each, the order reversed at every turn."""
    names = [f"block-{block.index}" for block in job.plan.blocks]
    alone = {name: _alone(job, name, device) for name in (names[0], WHOLE)}
    trainings = {name: _training(job, name, device) for name in (*names, WHOLE)}
    first = {name: next(training) for name, training in trainings.items()}  # counts bytes; its time is not used
    turns: list[dict[str, _Step]] = []
    for repeat in range(repeats):
        order = list(trainings.items())
        turns.append({name: _timed(training) for name, training in (order if repeat % 2 else reversed(order))})
    for training in trainings.values():
        training.close()
    blocks = [_bytes(first[name], block.memory) for name, block in zip(names, job.plan.blocks, strict=True)]
    block_bytes, whole_bytes = (
        max(blocks, key=lambda part: part.total),
        _bytes(first[WHOLE], job.plan.end_to_end.memory),
    )
    return Comparison(
        shape=job.shape.name,
        what=job.shape.what,
        blocks=len(names),
        batch_size=job.plan.training.batch_size,
        unit="images" if job.shape.image else "tokens",
        block_bytes=block_bytes,
        whole_bytes=whole_bytes,
        bytes_ratio=block_bytes.total / whole_bytes.total,
        bytes_ratio_predicted=job.plan.memory_ratio,
        block=_pace(job, [turn[name] for turn in turns for name in names], alone[names[0]], device),
        whole=_pace(job, [turn[WHOLE] for turn in turns], alone[WHOLE], device),
        time_ratios=tuple(sum(turn[name].seconds for name in names) / turn[WHOLE].seconds for turn in turns),
        cpu_ratios=()
        if device.startswith("cuda")
        else tuple(sum(turn[name].cpu for name in names) / turn[WHOLE].cpu for turn in turns),
    )


def _training(job: Job, name: str, device: str) -> Generator[StepReport, None, None]:
    """Without a look at held-out rows now and then, which is of denoisers alone."""
    data = replace(job.data, validation=job.data.validation.first(0))
    return train_block(job.spec, job.plan, job.plan.task(name), data, device=device)


def _timed(training: Generator[StepReport, None, None]) -> _Step:
    """One step; reading the report's loss has waited for the device."""
    began, cpu = time.perf_counter(), time.thread_time()
    next(training)
    return _Step(time.perf_counter() - began, time.thread_time() - cpu)


def flops_of(job: Job, name: str, device: str) -> int:
    """Of the matrix products and attention of one step; two for a multiplication and an addition."""
    counter = FlopCounterMode(display=False)
    with closing(_training(job, name, device)) as training, counter:
        next(training)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class _Alone:
    """What only a network that has the GPU to itself shows."""

    flops: int
    peak_allocated: int  # bytes, over two steps


def _alone(job: Job, name: str, device: str) -> _Alone | None:
    if not device.startswith("cuda"):
        return None
    flops = flops_of(job, name, device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    with closing(_training(job, name, device)) as training:
        next(training)
        torch.cuda.reset_peak_memory_stats(device)
        next(training)
        next(training)
        return _Alone(flops, torch.cuda.max_memory_allocated(device) - before)


def _pace(job: Job, steps: Sequence[_Step], alone: _Alone | None, device: str) -> Pace:
    seconds = statistics.median(step.seconds for step in steps)
    best = peak_flops(device, job.plan.training.precision)
    return Pace(
        step_seconds=seconds,
        cpu_seconds=None if alone else statistics.median(step.cpu for step in steps),
        units_per_second=job.plan.training.batch_size * job.shape.units / seconds,
        flops=alone.flops if alone else None,
        mfu=alone.flops / seconds / best if alone and best else None,
        peak_allocated=alone.peak_allocated if alone else None,
    )


def _bytes(report: StepReport, predicted: MemoryPlan) -> Bytes:
    memory = report.memory or MemoryBytes()
    measured = {kind: int(getattr(memory, kind)) for kind in KINDS}
    plan = {kind: int(getattr(predicted, kind)) for kind in KINDS}
    return Bytes(measured, plan, sum(plan.values()) / sum(measured.values()) - 1)

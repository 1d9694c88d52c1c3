"""One optimizer step of one task: micro-batches, gradients, the update, and the average that follows it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from dbserve.contracts.job import TrainingSpec
from dbserve.contracts.status import MemoryBytes
from workers.averaging import Average
from workers.checkpoint import TrainingState, TrainingSummary
from workers.data import Batch
from workers.group import Workers, share_of
from workers.memory import SavedBytes, measured_memory, watching
from workers.models import Loss
from workers.optimizer import Optimizer
from workers.recompute import Recomputed
from workers.seeds import seed_of, seed_torch
from workers.sharding import Entrance
from workers.shares import gathered, local, take_over

# As torch.nn.utils clips, which takes twice as long to find out that all gradients lie on one device in one type.
_LISTWISE: Any = torch
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Shares:
    """How the parts of a step are shared out over its workers.

    A step's rows are taken in `parts` equal parts, whose gradients' mean is its own; each has a number, which its
    random numbers are drawn for, so that they are the same on however many workers. `idle` parts of a worker have no
    weight: sharded, all take part in every forward and backward pass, so who has a part less computes one in vain.
    """

    parts: int
    mine: range
    idle: int

    @classmethod
    def of(cls, parts: int, workers: Workers, *, sharded: bool) -> "Shares":
        mine = share_of(parts, workers.rank, workers.size)
        return cls(parts, mine, ceil(parts / workers.size) - len(mine) if sharded else 0)

    def rows(self, of_part: int) -> slice:
        """Which of the step's rows are this worker's, where a part has so many."""
        return slice(self.mine.start * of_part, self.mine.stop * of_part)


@dataclass(frozen=True)
class _Part:
    number: int  # among the step's
    batch: Batch
    idle: bool = False


class Stepper:
    """A network in training. A step never waits for the device: loss and gradient norm stay there.

    Loss and gradients are means over all parts of the step, whichever worker took them. `name` is what random numbers
    are drawn for. With an `entrance`, whose loss it is, the network is sharded, and all workers call whatever they call
    at once.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        workers: Workers,
        shares: Shares,
        recomputed: Recomputed | None,
        entrance: Entrance | None,
        training: TrainingSpec,
        name: str,
    ) -> None:
        self._training = training
        self._name = name
        self._network = network
        self._loss = loss
        self._workers = workers
        self._shares = shares
        self._recomputed = recomputed
        self._entrance = entrance
        self._parameters = list(network.parameters())
        self._device = self._parameters[0].device
        self._generator = torch.Generator(self._device)
        self._optimizer = Optimizer(network, training)
        keeps_average = workers.rank == 0 or entrance is not None
        self._average = Average(network, training.ema) if training.ema and keeps_average else None

    def step(self, step: int, batch: Batch, rate: float) -> tuple[Tensor, Tensor]:
        """The (0-based) step on this worker's rows -> mean loss, norm of the gradient before it is clipped."""
        self._drop_gradients()
        return self._update(step, [self._backward(self._forward(step, part)) for part in self._parts(batch)], rate)

    def measured_step(self, step: int, batch: Batch, rate: float) -> tuple[Tensor, Tensor, MemoryBytes]:
        """The same step; the bytes that its first part saves are counted."""
        self._drop_gradients()
        first, *others = self._parts(batch)
        saved = SavedBytes.of(self._network)
        with ExitStack() as counting:
            if self._entrance is not None:
                counting.enter_context(self._entrance.counting(saved))
            if self._recomputed is not None:
                counting.enter_context(self._recomputed.counting(saved))
            counting.enter_context(watching(saved))
            loss = self._forward(step, first)
        losses = [self._backward(loss), *(self._backward(self._forward(step, part)) for part in others)]
        mean, norm = self._update(step, losses, rate)
        kept = self._optimizer.bytes + (0 if self._average is None else self._average.bytes)
        return mean, norm, measured_memory(self._network, kept=kept, saved=saved)

    def allocator_memory(self, counted: MemoryBytes) -> MemoryBytes:
        """The counted bytes with what the CUDA allocator says now."""
        return counted.model_copy(
            update={
                "allocated": torch.cuda.memory_allocated(self._device),
                "reserved": torch.cuda.memory_reserved(self._device),
                "peak": torch.cuda.max_memory_allocated(self._device),
            }
        )

    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Other initial weights; to be called before the first step."""
        take_over(self._network, weights)
        if self._average is not None:
            self._average.restart()

    def restore(self, state: TrainingState) -> None:
        """The state that capture() gave, bit for bit."""
        take_over(self._network, state.weights)
        self._optimizer.restore(state.optimizer)
        if self._average is not None:
            self._average.restore(state.average)

    def capture(self, step: int, summary: TrainingSummary) -> TrainingState:
        """A copy of everything, on the CPU; of a sharded network, rank 0 gets all, and the others nothing."""
        keep = self._workers.rank == 0
        return TrainingState(
            step=step,
            weights=gathered(self._network.state_dict(), keep=keep),
            optimizer=gathered(self._optimizer.state(), keep=keep),
            average={} if self._average is None else gathered(self._average.state(), keep=keep),
            summary=summary,
        )

    def _parts(self, batch: Batch) -> Iterator[_Part]:
        """The micro-batches of this worker's rows."""
        rows, numbers = len(batch.inputs) // len(self._shares.mine), self._shares.mine
        for place, number in enumerate(numbers):
            yield _Part(number, rows_of(batch, place * rows, (place + 1) * rows))
        for _ in range(self._shares.idle):
            yield _Part(numbers[0], rows_of(batch, 0, rows), idle=True)

    def _forward(self, step: int, part: _Part) -> Tensor:
        """The part's share of the step's mean loss."""
        seed = self._training.seed
        seed_torch("dropout", seed, self._name, step, part.number)
        self._generator.manual_seed(seed_of("noise", seed, self._name, step, part.number))
        bf16 = self._training.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = self._loss(part.batch, self._generator)
            if part.idle:
                return loss * 0.0
            return loss if self._shares.parts == 1 else loss / self._shares.parts

    def _backward(self, loss: Tensor) -> Tensor:
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss.detach()

    def _update(self, step: int, losses: list[Tensor], rate: float) -> tuple[Tensor, Tensor]:
        loss = torch.stack(losses).sum()
        gradients = [local(parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        if self._entrance is None:
            self._workers.sum_up([loss, *gradients])
        norm: Tensor = _LISTWISE.linalg.vector_norm(torch.stack(_LISTWISE._foreach_norm(gradients)))
        if self._entrance is not None:  # the gradients were summed up and cut in the backward pass
            square = norm.square()
            self._workers.sum_up([loss, square])
            norm = square.sqrt()
        if self._training.grad_clip is not None:
            share = torch.clamp(self._training.grad_clip / (norm + _NORM_EPS), max=1.0)
            _LISTWISE._foreach_mul_(gradients, share)
        self._optimizer.step(rate)
        if self._average is not None:
            self._average.update(step)
        return loss, norm

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Some of its rows."""
    labels = None if batch.labels is None else batch.labels[start:stop]
    return replace(batch, inputs=batch.inputs[start:stop], labels=labels)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """A copy of its weights on the CPU, whole for every worker."""
    return gathered(network.state_dict())

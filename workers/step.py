"""One optimizer step of one task: micro-batches, gradients, the update, and the average that follows it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dbserve.contracts.job import TrainingSpec
from dbserve.contracts.status import MemoryBytes
from workers.averaging import Average
from workers.checkpoint import TrainingState, TrainingSummary
from workers.data import Batch
from workers.group import Workers
from workers.memory import SavedBytes, measured_memory, watching
from workers.models import Loss
from workers.optimizer import Optimizer
from workers.recompute import Recomputed
from workers.seeds import seed_of, seed_torch

# As torch.nn.utils clips, which takes twice as long to find out that all gradients lie on one device in one type.
_LISTWISE: Any = torch
_NORM_EPS = 1e-6


class Stepper:
    """A network in training. A step never waits for the device: loss and gradient norm stay there.

    A batch is taken in `accumulate` equal parts, whose gradients' mean is the batch's own. Loss and gradients are means
    over all `workers`, each of which takes rows of its own. `name` is what random numbers are drawn for.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Loss,
        workers: Workers,
        recomputed: Recomputed | None,
        training: TrainingSpec,
        name: str,
    ) -> None:
        self._training = training
        self._name = name
        self._network = network
        self._loss = loss
        self._workers = workers
        self._recomputed = recomputed
        self._parameters = list(network.parameters())
        self._device = self._parameters[0].device
        self._generator = torch.Generator(self._device)
        self._optimizer = Optimizer(network, training)
        self._average = Average(network, training.ema) if training.ema and workers.rank == 0 else None

    def step(self, step: int, batch: Batch, rate: float) -> tuple[Tensor, Tensor]:
        """The (0-based) step on this worker's rows -> mean loss, norm of the gradient before it is clipped."""
        self._drop_gradients()
        return self._update(step, [self._backward(self._forward(step, *part)) for part in self._parts(batch)], rate)

    def measured_step(self, step: int, batch: Batch, rate: float) -> tuple[Tensor, Tensor, MemoryBytes]:
        """The same step; the bytes that its first part saves are counted."""
        self._drop_gradients()
        first, *others = self._parts(batch)
        saved = SavedBytes.of(self._network)
        with ExitStack() as counting:
            if self._recomputed is not None:
                counting.enter_context(self._recomputed.counting(saved))
            counting.enter_context(watching(saved))
            loss = self._forward(step, *first)
        losses = [self._backward(loss), *(self._backward(self._forward(step, *part)) for part in others)]
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
        self._network.load_state_dict(dict(weights))
        if self._average is not None:
            self._average.restart()

    def restore(self, state: TrainingState) -> None:
        """The state that capture() gave, bit for bit."""
        self._network.load_state_dict(state.weights)
        self._optimizer.restore(state.optimizer)
        if self._average is not None:
            self._average.restore(state.average)

    def capture(self, step: int, summary: TrainingSummary) -> TrainingState:
        """A copy of everything, on the CPU."""
        return TrainingState(
            step=step,
            weights=weights_of(self._network),
            optimizer=self._optimizer.state(),
            average={} if self._average is None else self._average.state(),
            summary=summary,
        )

    def _parts(self, batch: Batch) -> Iterator[tuple[int, Batch]]:
        """The micro-batches of this worker, numbered over all workers."""
        count = self._training.accumulate
        rows = len(batch.inputs) // count
        for place in range(count):
            yield self._workers.rank * count + place, rows_of(batch, place * rows, (place + 1) * rows)

    def _forward(self, step: int, part: int, batch: Batch) -> Tensor:
        """The part's share of the step's mean loss."""
        seed = self._training.seed
        seed_torch("dropout", seed, self._name, step, part)
        self._generator.manual_seed(seed_of("noise", seed, self._name, step, part))
        bf16 = self._training.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = self._loss(batch, self._generator)
            parts = self._training.accumulate * self._workers.size
            return loss if parts == 1 else loss / parts

    def _backward(self, loss: Tensor) -> Tensor:
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        return loss.detach()

    def _update(self, step: int, losses: list[Tensor], rate: float) -> tuple[Tensor, Tensor]:
        loss = torch.stack(losses).sum()
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        self._workers.sum_up([loss, *gradients])
        norm: Tensor = _LISTWISE.linalg.vector_norm(torch.stack(_LISTWISE._foreach_norm(gradients)))
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
    """A copy of its weights on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}

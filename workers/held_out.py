"""How a denoiser does on rows it is not trained on, by noise level, while it trains."""

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import nn

from dbserve.contracts.plan import Contract, JobPlan, TaskKind, TaskPlan
from dbserve.contracts.work import BandLoss
from workers.data import Batch, Split, first_rows
from workers.method.partition import equal_mass_edges, log_uniform_edges, masking_edges
from workers.models import Architecture, Loss
from workers.seeds import seed_of, seed_torch
from workers.sharding import Entrance

log = logging.getLogger("dbserve.worker")

BANDS = 3  # of the noise levels that a network answers for
MOST_ROWS = 32
LEAST_STEPS = 100  # between two looks: they take about a hundredth of the time that these steps take


class HeldOutLoss:
    """The same rows and the same noise at every look, so that what changes is the network. Takes the weights as they
    are, not their average, and draws no random number that the training would have drawn."""

    def __init__(
        self,
        architecture: Architecture,
        network: nn.Module,
        plan: JobPlan,
        task: TaskPlan,
        rows: Split,
        *,
        every: int,
        entrance: Entrance | None = None,
    ) -> None:
        """`every`: steps from one checkpoint to the next. `entrance`: of a sharded network, whose workers all look."""
        contract = plan.contract
        low, high = _levels(plan, task)
        self._bands = bands(contract, low, high)
        losses = (architecture.denoising_loss(contract, network, band) for band in self._bands)
        self._losses: list[Loss] = [loss if entrance is None else entrance.through(loss) for loss in losses]
        self._entrance = entrance
        self._network = network
        self._device = next(network.parameters()).device
        self._cuda = [self._device] if self._device.type == "cuda" else []
        self._bf16 = plan.training.precision == "bf16"
        self._compiled = plan.training.compile
        self._seed, self._name = plan.training.seed, task.name
        micro = plan.training.batch_size // plan.training.accumulate
        self._batch = first_rows(rows, min(len(rows), micro, MOST_ROWS), self._device)
        self._every, self._last = every, task.steps
        self._looked_at: int | None = None

    def told(self, step: int) -> tuple[BandLoss, ...]:
        """A look, where one is due after this (1-based) step: at the last one, and at checkpoints not too close to each
        other. What goes wrong with it is said, and costs the training nothing but this look, unless workers look
        together."""
        if not self._due(step):
            return ()
        try:
            return self.look(step)
        except Exception:
            if self._entrance is not None:
                raise  # the others wait for this one in the midst of it: out of step, they would learn nonsense
            log.exception("the loss on held-out rows was not measured at step %d", step)
            return ()

    def _due(self, step: int) -> bool:
        if step == self._last:
            return True
        rested = self._looked_at is None or step - self._looked_at >= LEAST_STEPS
        return step % self._every == 0 and rested

    def look(self, step: int) -> tuple[BandLoss, ...]:
        """Mean loss in each band, lowest noise first."""
        self._looked_at = step
        self._network.eval()
        try:
            with torch.no_grad(), self._as_written(), torch.random.fork_rng(devices=self._cuda):  # pyright: ignore[reportUnknownMemberType]
                seed_torch("held-out", self._seed, self._name)
                return tuple(
                    BandLoss(low=low, high=high, loss=self._mean(loss, self._batch))
                    for (low, high), loss in zip(self._bands, self._losses, strict=True)
                )
        finally:
            self._network.train()
            if self._entrance is not None:
                self._entrance.leave()

    def _as_written(self) -> AbstractContextManager[object]:
        """Layers that were compiled for training are not compiled anew for this."""
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def _mean(self, loss: Loss, batch: Batch) -> float | None:
        generator = torch.Generator(self._device).manual_seed(seed_of("held-out", self._seed, self._name))
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
            mean = float(loss(batch, generator))
            return mean if math.isfinite(mean) else None


def bands(contract: Contract, low: float, high: float) -> tuple[tuple[float, float], ...]:
    """BANDS (low, high) intervals of equal probability between two noise levels, lowest first."""
    return tuple((below, above) for above, below in reversed([*pairwise(_edges(contract, low, high))]))


def _edges(contract: Contract, low: float, high: float) -> Sequence[float]:
    if contract.p_mean is None or contract.p_std is None:
        return masking_edges(BANDS, t_min=low, t_max=high)
    try:
        return equal_mass_edges(BANDS, p_mean=contract.p_mean, p_std=contract.p_std, sigma_min=low, sigma_max=high)
    except ValueError:  # too little mass to be cut
        return log_uniform_edges(BANDS, sigma_min=low, sigma_max=high)


def _levels(plan: JobPlan, task: TaskPlan) -> tuple[float, float]:
    """The noise levels that the task's network answers for; a trunk's are all of them."""
    if task.kind is TaskKind.BLOCK:
        return plan.blocks[task.index].sigma_min, plan.blocks[task.index].sigma_max
    return plan.contract.sigma_min, plan.contract.sigma_max

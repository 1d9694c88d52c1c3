"""lr: scan. Which rates a task tries before it trains, for how long, and which of them it keeps."""

import math
from collections.abc import Sequence

from dbserve.contracts.job import TrainingSpec
from dbserve.errors import NonfiniteLoss
from workers.checkpoint import RateTrial

RATES = (3e-4, 1e-3, 3e-3, 8e-3)
SHARE, LEAST, MOST = 0.05, 20, 200  # steps of one trial: a share of the task's, within bounds


def trial_of(training: TrainingSpec, steps: int) -> TrainingSpec:
    """A short training in the same manner as the whole one of `steps` steps: its schedule and warmup, compressed."""
    short = min(MOST, max(LEAST, math.ceil(SHARE * steps)))
    warmup = round(training.warmup * short / max(steps, training.warmup))
    return training.model_copy(update={"steps": short, "warmup": warmup, "ema": 0.0})


def outcome(rate: float, losses: Sequence[float]) -> RateTrial:
    """The mean loss of the last quarter of a trial's steps; a trial with a loss that is no number has none."""
    if not all(math.isfinite(loss) for loss in losses):
        return RateTrial(rate=rate, loss=None)
    last = losses[-max(1, len(losses) // 4) :]
    return RateTrial(rate=rate, loss=math.fsum(last) / len(last))


def best_rate(trials: Sequence[RateTrial], task: str) -> float:
    """The rate of the lowest loss, of equals the lower one. Raises NonfiniteLoss where no trial had a finite loss."""
    losses = {trial.rate: trial.loss for trial in trials if trial.loss is not None}
    if not losses:
        tried = ", ".join(f"{trial.rate:g}" for trial in trials)
        raise NonfiniteLoss(f"{task}: at every learning rate of the scan ({tried}) a loss was not finite")
    return min(sorted(losses), key=lambda rate: losses[rate])

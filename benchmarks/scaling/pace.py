"""What simulated workers do, and how often: the one description of the load that the model and the simulation share."""

from dataclasses import dataclass

from dbserve.contracts.job import JobSpec


@dataclass(frozen=True)
class Pace:
    """Of one simulated worker. Times in seconds. A training takes one step a second, and tells of every fifth."""

    steps: int = 3600  # of a training: an hour
    checkpoint_every: int = 60  # steps
    log_every: int = 20  # steps from one log line to the next
    stride: int = 5  # steps from one report to the next; divides the two above, and the training
    nearly_done: float = 0.15  # of the jobs, which end after MOMENTS seconds; the others are anywhere in theirs
    crashes_per_second: float = 1 / 1000  # told by the worker itself
    deaths_per_second: float = 1 / 2000  # without a word
    starting: tuple[float, float] = (1.0, 10.0)  # from the launch to the first word
    lasting: tuple[float, float] = (0.5, 2.0)  # an assembly or an evaluation


MOMENTS = (5.0, 90.0)  # at which the jobs end that are nearly done when they begin
BLOCKS = 5  # of a job
SLOTS = 8  # workers that a node holds, where there are nodes enough


def job(pace: Pace, blocks: int = BLOCKS) -> JobSpec:
    """A small network on the digits that come with the service, one layer a block; its workers only pretend."""
    return JobSpec.model_validate(
        {
            "name": "simulated",
            "labels": {"made-by": "benchmark"},
            "architecture": {"kind": "vit", "options": {"depth": blocks, "width": 16, "heads": 2, "patch": 4}},
            "data": {"uri": "builtin:digits"},
            "blocks": {"count": blocks},
            "training": {"steps": pace.steps, "batch_size": 32},
            "checkpoint": {"every_steps": pace.checkpoint_every},
            "retry": {"max_attempts": 20, "backoff_seconds": 0.5},
            "evaluation": {"baselines": []},
        }
    )

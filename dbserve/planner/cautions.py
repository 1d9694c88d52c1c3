"""What is planned all the same, and said to be unwise."""

import math
from collections.abc import Iterator

from dbserve.cards import Sizes
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan


def cautions(spec: JobSpec, sizes: Sizes, plan: JobPlan) -> Iterator[str]:
    """Sentences for the plan's reader, figures included."""
    yield from _of_the_cut(spec, plan)
    yield from _of_the_steps(plan)


def _of_the_cut(spec: JobSpec, plan: JobPlan) -> Iterator[str]:
    if len(plan.blocks) == 1:
        yield "one block is the whole network: nothing is isolated and no memory is saved"
    if len({block.layers[1] - block.layers[0] for block in plan.blocks}) > 1:
        yield "blocks have different numbers of layers; the shallow baseline has the largest block's"
    if spec.blocks.train != "all" and len(spec.blocks.train) < len(plan.blocks):
        yield "not every block is trained, so nothing will be assembled or evaluated"
    for block in plan.blocks:
        if math.log(block.sigma_max / block.sigma_min) < 0.01:
            yield f"block {block.index} owns less than 1 % of sigma: nothing to specialise on"


def _of_the_steps(plan: JobPlan) -> Iterator[str]:
    epochs = plan.training.steps * plan.training.batch_size / plan.data.train_rows
    if epochs < 1:
        yield f"the steps cover {epochs:.0%} of the training rows once"

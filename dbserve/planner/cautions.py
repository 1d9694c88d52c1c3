"""What is planned all the same, and said to be unwise."""

from collections.abc import Iterator
from itertools import pairwise

from dbserve.cards import Sizes
from dbserve.contracts.job import JobSpec, ResourcesSpec
from dbserve.contracts.plan import BASELINES, Contract, JobPlan, TaskKind
from dbserve.planner.cut import equal_counts
from workers.method.information import information
from workers.method.partition import interval_mass
from workers.method.recognition import code_accuracy

IDLE = 0.01  # share of the noise levels below which a block has nothing to specialise on
UNINFORMED = 0.02  # share of what z tells of its target
READABLE = 0.6  # right answers from z alone above which a block need not look at its input
NOTHING_SAVED = 0.95  # a single block's bytes over the whole network's; recurrent depth saves by not being unrolled
WORTH_CUTTING = 0.1  # least saving of a worker's bytes for which more blocks are worth their errand


def cautions(spec: JobSpec, sizes: Sizes, plan: JobPlan) -> Iterator[str]:
    """Sentences for the plan's reader, figures included."""
    if sizes.card.experimental:
        yield f"{sizes.card.kind} is experimental: hold it against its baselines before you rely on it"
    yield from _of_the_cut(spec, sizes, plan)
    yield from _of_the_levels(sizes, plan)
    yield from _of_the_steps(plan)
    yield from _of_the_samples(spec, sizes, len(plan.blocks))
    yield from _of_the_budget(spec.blocks.max_bytes_per_worker, plan)
    yield from _of_the_workers(spec.resources)


def _of_the_cut(spec: JobSpec, sizes: Sizes, plan: JobPlan) -> Iterator[str]:
    count, depth = len(plan.blocks), plan.end_to_end.layers[1]
    sizes_of_blocks = {block.layers[1] - block.layers[0] for block in plan.blocks}
    if count == 1 and plan.memory_ratio > NOTHING_SAVED:
        yield "one block is the whole network: nothing is isolated and no memory is saved"
    if len(sizes_of_blocks) > 1:
        yield "blocks have different numbers of layers; the shallow baseline has the largest block's"
    if spec.blocks.train != "all" and len(spec.blocks.train) < count:
        yield "not every block is trained, so nothing will be assembled or evaluated"
        if spec.evaluation.baselines:
            compared = ", ".join(spec.evaluation.baselines)
            yield f"baselines ({compared}) are trained, but compared with nothing: evaluation.baselines: [] saves them"
    if count > 1 and plan.memory_ratio >= 1:
        yield f"a block takes {plan.memory_ratio:.2f} times the bytes of the whole network: cutting saves no memory"
    elif count > 1 and len(sizes_of_blocks) == 1:
        fewer = max(number for number in equal_counts(depth) if number < count)
        before = sizes.network(sizes.card.denoiser, (0, depth // fewer)).memory.total
        if (saved := 1 - plan.blocks[0].memory.total / before) < WORTH_CUTTING:
            yield (
                f"{count} blocks take only {saved:.0%} fewer bytes a worker than {fewer}: what a block has besides its "
                "layers (embedding, conditioning, readout) outweighs them"
            )


def _of_the_levels(sizes: Sizes, plan: JobPlan) -> Iterator[str]:
    contract = plan.contract
    if len(plan.blocks) == 1:
        return
    for index, share in enumerate(_masses(contract)):
        if share < IDLE:
            yield f"block {index} owns {share:.2%} of the noise levels: it is idle"
    if sizes.card.code_norm is None or contract.p_mean is None:
        return
    norm = float(sizes.number(sizes.card.code_norm, layers=plan.end_to_end.layers[1]))
    classes = contract.vocabulary.size if contract.vocabulary else len(contract.class_names)
    told = [information(sigma, classes, norm) for sigma in contract.edges]
    for index, (before, after) in enumerate(pairwise(told)):
        share = (after - before) / max(told[-1] - told[0], 1e-12)
        if share < UNINFORMED:
            consequence = (
                "nearly all of it was told before" if before > told[-1] / 2 else "it works from its input alone"
            )
            yield f"block {index} holds {share:.1%} of what z tells of its target: {consequence}"
    if sizes.card.family == "classification":
        for block in plan.blocks:
            if (right := code_accuracy(block.sigma_max, classes, norm)) > READABLE:
                yield (
                    f"block {block.index} can read the class off z without looking at the image: {right:.0%} right at "
                    f"its upper edge ({block.sigma_max:.3g}); more noise (noise.p_mean) or fewer blocks prevent it"
                )


def _masses(contract: Contract) -> Iterator[float]:
    """Each block's share of the noise levels that are drawn."""
    p_mean, p_std, edges = contract.p_mean, contract.p_std, contract.edges
    if p_mean is None or p_std is None:
        yield from ((high - low) / (edges[0] - edges[-1]) for high, low in pairwise(edges))
        return
    total = interval_mass(edges[-1], edges[0], p_mean=p_mean, p_std=p_std)
    for high, low in pairwise(edges):
        yield interval_mass(low, high, p_mean=p_mean, p_std=p_std) / total


def _of_the_steps(plan: JobPlan) -> Iterator[str]:
    training = plan.training
    epochs = training.steps * training.batch_size / plan.data.train_rows
    if epochs < 1:
        yield f"the steps cover {epochs:.1%} of the training rows once"
    for task in plan.tasks:
        if task.kind is TaskKind.DATA_PARALLEL and training.warmup >= task.steps:
            yield f"{task.name} takes {task.steps} steps, and warmup ({training.warmup}) takes them all"


def _of_the_samples(spec: JobSpec, sizes: Sizes, count: int) -> Iterator[str]:
    wanted = spec.evaluation
    if wanted.samples and wanted.sampling_steps < count and sizes.card.family in ("generation", "masked_text"):
        yield f"sampling_steps ({wanted.sampling_steps}) are fewer than {count} blocks: some take no part in samples"


def _of_the_budget(limit: int | None, plan: JobPlan) -> Iterator[str]:
    """max_bytes_per_worker cuts the blocks; baselines are what they are."""
    if limit is None:
        return
    largest = max(block.memory.total for block in plan.blocks)
    for task in plan.tasks:
        if task.kind in BASELINES and (needed := plan.network_of(task).memory.total) > limit:
            yield (
                f"the baseline {task.name} takes {needed:,} bytes in training, more than a worker's {limit:,}, into "
                f"which a block fits ({largest:,}): where no worker has more, it fails, the report says so, and the "
                "job succeeds all the same; evaluation.baselines leaves it out"
            )


def _of_the_workers(asked: ResourcesSpec) -> Iterator[str]:
    if asked.gpus_per_block > 1.0:
        yield f"a worker trains on one GPU, not on {asked.gpus_per_block:g}; resources.replicas has several do one task"
    if asked.sharding == "state" and asked.fewest == 1:
        yield "with min_replicas: 1 a task may have one worker, which must hold all of its state"

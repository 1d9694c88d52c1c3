"""max_bytes_per_worker: into how few equal blocks a network must be cut so that each trains in so many bytes."""

from collections.abc import Iterator, Mapping

from dbserve.cards import Sizes
from dbserve.contracts.card import ArchitectureCard
from dbserve.contracts.job import TrainingSpec
from dbserve.contracts.plan import MemoryPlan
from dbserve.errors import ConfigInvalid
from dbserve.formula import Value
from dbserve.planner.cut import Cut, equal_counts, equal_cut

POINTER = "/blocks/max_bytes_per_worker"


def cut_by_bytes(
    limit: int, card: ArchitectureCard, names: Mapping[str, Value], training: TrainingSpec, *, shares: int, depth: int
) -> Cut:
    """The fewest equal blocks of which each takes at most `limit` bytes in training, on each of the workers that have
    `shares` of its state.

    Counts that the architecture's own rules refuse are passed over. ConfigInvalid, with what would help, where no
    number of blocks is enough.
    """
    counts = [count for count in equal_counts(depth) if _allowed(count, card, names, training)]
    if not counts:
        Sizes(card, {**names, "blocks": 1}, training)  # raises the rule that refuses
    for count in counts:
        if _bytes(count, card, names, training, shares=shares, depth=depth).total <= limit:
            return equal_cut(count, depth=depth)
    count = counts[-1]
    least = _bytes(count, card, names, training, shares=shares, depth=depth)
    hints = "; ".join(_remedies(limit, count, card, names, training, shares=shares, depth=depth))
    raise ConfigInvalid(
        f"the smallest possible block, {depth // count} of {depth} layers, takes {least.total:,} bytes in training "
        f"(parameters {least.parameters:,}, gradients {least.gradients:,}, optimizer {least.optimizer:,}, activations "
        f"{least.activations:,}), more than {limit:,}; {hints or 'make the network narrower'}",
        POINTER,
    )


def _allowed(count: int, card: ArchitectureCard, names: Mapping[str, Value], training: TrainingSpec) -> bool:
    try:
        Sizes(card, {**names, "blocks": count}, training)
    except ConfigInvalid:
        return False
    return True


def _bytes(
    count: int, card: ArchitectureCard, names: Mapping[str, Value], training: TrainingSpec, *, shares: int, depth: int
) -> MemoryPlan:
    return Sizes(card, {**names, "blocks": count}, training, shares).network(card.denoiser, (0, depth // count)).memory


def _remedies(
    limit: int,
    count: int,
    card: ArchitectureCard,
    names: Mapping[str, Value],
    training: TrainingSpec,
    *,
    shares: int,
    depth: int,
) -> Iterator[str]:
    """Changes of the training, one at a time, with which `count` blocks fit."""
    for parts in range(training.accumulate + 1, training.batch_size + 1):
        rows, rest = divmod(training.batch_size, parts)
        if (
            rest == 0
            and _bytes(count, card, {**names, "batch": rows}, training, shares=shares, depth=depth).total <= limit
        ):
            yield f"accumulate: {parts} fits ({rows} rows at a time)"
            break
    largest = _largest_batch(limit, count, card, names, training, shares=shares, depth=depth)
    if largest:
        yield f"batch_size: {largest * training.accumulate} fits"
    if not training.activation_checkpointing and card.denoiser.checkpointed is not None:
        recomputing = training.model_copy(update={"activation_checkpointing": True})
        if _bytes(count, card, names, recomputing, shares=shares, depth=depth).total <= limit:
            yield "activation_checkpointing: true fits"


def _largest_batch(
    limit: int,
    count: int,
    card: ArchitectureCard,
    names: Mapping[str, Value],
    training: TrainingSpec,
    *,
    shares: int,
    depth: int,
) -> int:
    """The most rows of one forward pass that fit; 0: not even one. Bytes grow with rows."""
    fits, too_many = 0, training.batch_size // training.accumulate
    while too_many - fits > 1:
        rows = (fits + too_many) // 2
        if _bytes(count, card, {**names, "batch": rows}, training, shares=shares, depth=depth).total <= limit:
            fits = rows
        else:
            too_many = rows
    return fits

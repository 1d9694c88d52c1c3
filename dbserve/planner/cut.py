"""Which layers make up which block. Decided by arithmetic on counts before any list is made."""

from dbserve.contracts.job import MAX_BLOCKS, BlocksSpec
from dbserve.errors import ConfigInvalid

Cut = tuple[tuple[int, int], ...]  # per block [start, stop)


def cut_layers(blocks: BlocksSpec, *, depth: int) -> Cut:
    """Per block its [start, stop) of layers, for the three ways that say how many; ConfigInvalid where depth refuses.

    max_bytes_per_worker is answered by dbserve.planner.budget.
    """
    if blocks.layers is not None:
        return _explicit(blocks.layers, depth=depth)
    if blocks.layers_per_block is not None:
        each = blocks.layers_per_block
        if depth % each:
            raise ConfigInvalid(f"depth ({depth}) is not divisible by {each} layers", "/blocks/layers_per_block")
        if depth // each > MAX_BLOCKS:
            raise ConfigInvalid(f"{depth // each} blocks; at most {MAX_BLOCKS}", "/blocks/layers_per_block")
        return equal_cut(depth // each, depth=depth)
    assert blocks.count is not None  # the spec holds exactly one way to cut
    if blocks.count > depth:
        raise ConfigInvalid(f"{blocks.count} blocks cannot be cut from {depth} layers", "/blocks/count")
    if depth % blocks.count:
        raise ConfigInvalid(
            f"depth ({depth}) is not divisible into {blocks.count} blocks; give blocks.layers to cut unevenly",
            "/blocks/count",
        )
    return equal_cut(blocks.count, depth=depth)


def way_to_cut(blocks: BlocksSpec) -> str:
    """The key of `blocks` that says into how many it is cut."""
    ways = ("count", "layers_per_block", "layers", "max_bytes_per_worker")
    return next(way for way in ways if getattr(blocks, way) is not None)


def equal_counts(depth: int) -> tuple[int, ...]:
    """The numbers of equal blocks into which that many layers can be cut, ascending."""
    return tuple(count for count in range(1, min(depth, MAX_BLOCKS) + 1) if depth % count == 0)


def equal_cut(count: int, *, depth: int) -> Cut:
    """Equal blocks; count divides depth."""
    each = depth // count
    return tuple((block * each, (block + 1) * each) for block in range(count))


def check_subset(blocks: BlocksSpec, cut: Cut) -> None:
    """ConfigInvalid where the blocks to train, or the trunk they start from, do not fit the cut."""
    for place, index in enumerate(() if blocks.train == "all" else blocks.train):
        if index >= len(cut):
            raise ConfigInvalid(f"there is no block {index}: the job has {len(cut)}", f"/blocks/train/{place}")
    if blocks.branch and len(cut) == 1:
        raise ConfigInvalid("one block has no other to share a trunk with: train it for more steps", "/blocks/branch")
    if blocks.branch and len({stop - start for start, stop in cut}) > 1:
        raise ConfigInvalid("a trunk can be copied only into blocks of equally many layers", "/blocks/branch")


def largest(cut: Cut) -> int:
    """Layers of the largest block."""
    return max(stop - start for start, stop in cut)


def _explicit(layers: tuple[int, ...], *, depth: int) -> Cut:
    if sum(layers) != depth:
        raise ConfigInvalid(f"layers sum to {sum(layers)}, but depth is {depth}", "/blocks/layers")
    stops = [sum(layers[: block + 1]) for block in range(len(layers))]
    return tuple((stop - size, stop) for size, stop in zip(layers, stops, strict=True))

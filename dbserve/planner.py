"""From what a user asks to what the workers do: plan_job(spec, card, facts) -> JobPlan. Pure; imports no torch."""

import math
from collections.abc import Iterator, Mapping
from typing import cast

from pydantic import JsonValue

from dbserve.cards import Sizes, complete_options, list_cards, load_card
from dbserve.contracts.card import ArchitectureCard
from dbserve.contracts.job import MAX_BLOCKS, BlocksSpec, JobSpec
from dbserve.contracts.plan import BlockPlan, Contract, DataFacts, JobPlan, TaskKind, TaskPlan
from dbserve.errors import ConfigInvalid, DataInvalid
from dbserve.formula import FormulaError, Value
from workers.method.partition import equal_mass_edges, log_uniform_edges, training_interval

__all__ = ["list_cards", "load_card", "plan_job"]

PREPROCESSING = "x/127.5-1"
CODES_SEED = 0  # of every job: blocks of two seeds can stand in one model only if their target codes are the same


def plan_job(spec: JobSpec, card: ArchitectureCard, facts: DataFacts) -> JobPlan:
    """The plan of a job, or ConfigInvalid (DataInvalid) with the pointer of the key that cannot be."""
    if len(facts.class_names) < 2:
        raise DataInvalid(f"classification needs at least 2 classes; the labels have {len(facts.class_names)}")
    if spec.training.batch_size > facts.train_rows:
        raise ConfigInvalid(
            f"batch_size ({spec.training.batch_size}) exceeds the {facts.train_rows} training rows",
            "/training/batch_size",
        )
    options = complete_options(spec.architecture.options, card)
    sizes = Sizes(card, _names(spec, options, facts))
    layers = _cut(spec.blocks, depth=cast(int, options["depth"]))
    _check_train(spec.blocks, layers)
    contract = _contract(spec, card, facts, sizes, options, layers)
    end_to_end = sizes.network(card.baseline, (0, layers[-1][1]))
    shallow = sizes.network(card.baseline, (0, max(stop - start for start, stop in layers)))
    blocks = tuple(_blocks(spec, card, sizes, contract))
    tasks = tuple(_tasks(spec, blocks))
    trained = sum(task.kind is TaskKind.BLOCK for task in tasks)
    return JobPlan(
        contract=contract,
        contract_hash=contract.digest(),
        data=facts,
        blocks=blocks,
        end_to_end=end_to_end,
        shallow=shallow,
        memory_ratio=max(block.memory.total for block in blocks) / end_to_end.memory.total,
        tasks=tasks,
        gpus=trained * spec.resources.gpus_per_block,
        warnings=tuple(_warnings(spec, blocks, facts)),
    )


def _names(spec: JobSpec, options: Mapping[str, JsonValue], facts: DataFacts) -> dict[str, Value]:
    height, width_px, channels = facts.image_shape
    return {
        **cast(Mapping[str, Value], options),
        "batch": spec.training.batch_size,
        "classes": len(facts.class_names),
        "height": height,
        "width_px": width_px,
        "channels": channels,
        "bytes": 2 if spec.training.precision == "bf16" else 4,
        "sigma_data": spec.noise.sigma_data,
    }


def _cut(blocks: BlocksSpec, *, depth: int) -> tuple[tuple[int, int], ...]:
    """Per block its [start, stop) of layers. Decided by arithmetic on counts before any list is made."""
    if blocks.layers is not None:
        if sum(blocks.layers) != depth:
            raise ConfigInvalid(f"layers sum to {sum(blocks.layers)}, but depth is {depth}", "/blocks/layers")
        sizes = blocks.layers
    elif blocks.layers_per_block is not None:
        each = blocks.layers_per_block
        if depth % each:
            raise ConfigInvalid(f"depth ({depth}) is not divisible by {each} layers", "/blocks/layers_per_block")
        if depth // each > MAX_BLOCKS:
            raise ConfigInvalid(f"{depth // each} blocks; at most {MAX_BLOCKS}", "/blocks/layers_per_block")
        sizes = (each,) * (depth // each)
    else:
        count = cast(int, blocks.count)
        if count > depth:
            raise ConfigInvalid(f"{count} blocks cannot be cut from {depth} layers", "/blocks/count")
        if depth % count:
            raise ConfigInvalid(
                f"depth ({depth}) is not divisible into {count} blocks; give blocks.layers to cut unevenly",
                "/blocks/count",
            )
        sizes = (depth // count,) * count
    stops = [sum(sizes[: block + 1]) for block in range(len(sizes))]
    return tuple((stop - size, stop) for size, stop in zip(sizes, stops, strict=True))


def _check_train(blocks: BlocksSpec, layers: tuple[tuple[int, int], ...]) -> None:
    for place, index in enumerate(() if blocks.train == "all" else blocks.train):
        if index >= len(layers):
            raise ConfigInvalid(f"there is no block {index}: the job has {len(layers)}", f"/blocks/train/{place}")
    if blocks.branch and len({stop - start for start, stop in layers}) > 1:
        raise ConfigInvalid("a trunk can be copied only into blocks of equally many layers", "/blocks/branch")


def _contract(
    spec: JobSpec,
    card: ArchitectureCard,
    facts: DataFacts,
    sizes: Sizes,
    options: dict[str, JsonValue],
    layers: tuple[tuple[int, int], ...],
) -> Contract:
    depth = layers[-1][1]
    noise = spec.noise
    given = {name: getattr(noise, name) for name in ("p_mean", "p_std", "sigma_min", "sigma_max")}
    filled: dict[str, float] = {}
    for name, value in given.items():
        try:
            default = sizes.number(getattr(card.noise, name), layers=depth) if value is None else value
        except FormulaError as error:
            raise ConfigInvalid(f"{card.kind} has no default here: {error}", f"/noise/{name}") from error
        filled[name] = float(default)
    if filled["sigma_min"] >= filled["sigma_max"]:
        pointer = "/noise/sigma_min" if noise.sigma_min is not None else "/noise/sigma_max"
        raise ConfigInvalid(
            f"sigma_min ({filled['sigma_min']:g}) must be below sigma_max ({filled['sigma_max']:g})", pointer
        )
    try:
        if spec.blocks.partition == "uniform_log":
            sigma_range = {"sigma_min": filled["sigma_min"], "sigma_max": filled["sigma_max"]}
            edges = log_uniform_edges(len(layers), **sigma_range)
        else:
            edges = equal_mass_edges(len(layers), **filled)
    except ValueError as error:
        raise ConfigInvalid(str(error), "/noise/p_mean" if noise.p_mean is not None else "/noise") from error
    return Contract(
        architecture=card.kind,
        options=options,
        image_shape=facts.image_shape,
        class_names=facts.class_names,
        preprocessing=PREPROCESSING,
        codes_seed=CODES_SEED,
        code_dim=int(sizes.number("code_dim", layers=depth)),
        sigma_data=noise.sigma_data,
        edges=edges,
        layers=layers,
        **filled,
    )


def _blocks(spec: JobSpec, card: ArchitectureCard, sizes: Sizes, contract: Contract) -> Iterator[BlockPlan]:
    for index, layers in enumerate(contract.layers):
        low, high = training_interval(contract.edges, index, spec.blocks.overlap)
        network = sizes.network(card.denoiser, layers)
        yield BlockPlan(
            layers=layers,
            parameters=network.parameters,
            memory=network.memory,
            index=index,
            sigma_min=contract.edges[index + 1],
            sigma_max=contract.edges[index],
            train_sigma_min=low,
            train_sigma_max=high,
        )


def _tasks(spec: JobSpec, blocks: tuple[BlockPlan, ...]) -> Iterator[TaskPlan]:
    """The job's graph: [trunk] -> blocks, baselines beside them; with all blocks trained, assembly -> evaluation."""
    steps = spec.training.steps
    indices = range(len(blocks)) if spec.blocks.train == "all" else sorted(spec.blocks.train)
    trunk = ("trunk",) if spec.blocks.branch else ()
    if spec.blocks.branch:
        yield TaskPlan(name="trunk", kind=TaskKind.TRUNK, steps=spec.blocks.branch.steps)
    trained = tuple(f"block-{index}" for index in indices)
    for name, index in zip(trained, indices, strict=True):
        yield TaskPlan(name=name, kind=TaskKind.BLOCK, index=index, steps=steps, needs=trunk)
    baselines: tuple[str, ...] = ()
    if "end_to_end" in spec.evaluation.baselines:
        baselines += ("end_to_end",)
        yield TaskPlan(name="end_to_end", kind=TaskKind.END_TO_END, steps=steps)
    if "shallow_ensemble" in spec.evaluation.baselines:
        for index in range(len(blocks)):
            baselines += (f"shallow-{index}",)
            yield TaskPlan(name=f"shallow-{index}", kind=TaskKind.SHALLOW, index=index, steps=steps)
    if len(trained) == len(blocks):
        yield TaskPlan(name="assembly", kind=TaskKind.ASSEMBLY, needs=trained)
        yield TaskPlan(name="evaluation", kind=TaskKind.EVALUATION, needs=("assembly",), after=baselines)


def _warnings(spec: JobSpec, blocks: tuple[BlockPlan, ...], facts: DataFacts) -> Iterator[str]:
    if len(blocks) == 1:
        yield "one block is the whole network: nothing is isolated and no memory is saved"
    if len({block.layers[1] - block.layers[0] for block in blocks}) > 1:
        yield "blocks have different numbers of layers; the shallow baseline has the largest block's"
    if spec.blocks.train != "all" and len(spec.blocks.train) < len(blocks):
        yield "not every block is trained, so nothing will be assembled or evaluated"
    epochs = spec.training.steps * spec.training.batch_size / facts.train_rows
    if epochs < 1:
        yield f"the steps cover {epochs:.0%} of the training rows once"
    for block in blocks:
        if math.log(block.sigma_max / block.sigma_min) < 0.01:
            yield f"block {block.index} owns less than 1 % of sigma: nothing to specialise on"

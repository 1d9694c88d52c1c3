"""plan_job(spec, card, facts) -> JobPlan: every part's answer, put together."""

from collections.abc import Mapping
from math import lcm
from typing import Any, cast

from pydantic import JsonValue

from dbserve.cards import Sizes, complete_options
from dbserve.contracts.card import ArchitectureCard
from dbserve.contracts.job import JobSpec, TrainingSpec
from dbserve.contracts.plan import BlockPlan, Contract, DataFacts, JobPlan, TaskKind
from dbserve.errors import ConfigInvalid, DataInvalid
from dbserve.formula import Value
from dbserve.lifecycle import gpus_of
from dbserve.planner.budget import cut_by_bytes
from dbserve.planner.cautions import cautions
from dbserve.planner.cut import Cut, check_subset, cut_layers, largest, way_to_cut
from dbserve.planner.levels import Levels, levels_of
from dbserve.planner.tasks import tasks_of

CODES_SEED = 0  # of every job: blocks of two seeds can stand in one model only if their target codes are the same
PREPROCESSING = {"raw": "x/127.5-1", "encoded": "x/127.5-1", "float32": "identity", "text": "tokens"}


def plan_job(spec: JobSpec, card: ArchitectureCard, facts: DataFacts) -> JobPlan:
    """The plan of a job, or ConfigInvalid (DataInvalid) with the pointer of the key that cannot be."""
    _check_data(spec, card, facts)
    _check_resources(spec)
    options = complete_options(spec.architecture.options, card)
    depth = cast(int, options["depth"])
    training = _trained_as(spec, card)
    names = _names(spec, training, options, facts)
    if (limit := spec.blocks.max_bytes_per_worker) is not None:
        cut = cut_by_bytes(limit, card, names, training, shares=_shares(spec), depth=depth)
    else:
        cut = cut_layers(spec.blocks, depth=depth)
    check_subset(spec.blocks, cut)
    sizes = _sizes(spec, card, names, training, cut)
    overlap = card.recipe.overlap if spec.blocks.overlap is None else spec.blocks.overlap
    levels = levels_of(spec, sizes, depth=depth, count=len(cut), overlap=overlap)
    contract = _contract(spec, facts, sizes, options, cut, levels)
    blocks = tuple(_block(sizes, contract, levels, index) for index in range(len(cut)))
    run_through = int(sizes.number(card.end_to_end_layers, layers=depth))
    end_to_end = sizes.network(card.baseline, (0, run_through))
    shallow = sizes.network(card.baseline, (0, largest(cut)))
    tasks = tuple(tasks_of(spec, len(cut), rows=facts.train_rows))
    together = sum(task.kind is TaskKind.BLOCK for task in tasks)
    plan = JobPlan(
        contract=contract,
        contract_hash=contract.digest(),
        data=facts,
        training=training,
        blocks=blocks,
        end_to_end=end_to_end,
        shallow=shallow,
        memory_ratio=max(block.memory.total for block in blocks) / end_to_end.memory.total,
        tasks=tasks,
        gpus=max(
            together * spec.resources.replicas * spec.resources.gpus_per_block,
            *(gpus_of(task, spec.resources) for task in tasks),
        ),
    )
    return plan.model_copy(update={"warnings": tuple(cautions(spec, sizes, plan))})


def _check_data(spec: JobSpec, card: ArchitectureCard, facts: DataFacts) -> None:
    held = "text" if facts.image_shape is None else "images"
    if card.modality != held:
        raise DataInvalid(f"{card.kind} is trained on {card.modality}; the shards hold {held}")
    if card.family == "classification" and len(facts.class_names) < 2:
        raise DataInvalid(f"classification needs at least 2 classes; the labels have {len(facts.class_names)}")
    if spec.training.batch_size > facts.train_rows:
        raise ConfigInvalid(
            f"batch_size ({spec.training.batch_size}) exceeds the {facts.train_rows} training rows",
            "/training/batch_size",
        )


def _check_resources(spec: JobSpec) -> None:
    """GPUs are shared or taken whole, as Ray has it; replicas, which NCCL joins, have one of their own each."""
    gpus = spec.resources.gpus_per_block
    if gpus > 1.0 and not gpus.is_integer():
        raise ConfigInvalid(f"{gpus:g} GPUs: a part of one, or whole ones", "/resources/gpus_per_block")
    if spec.resources.replicas > 1 and 0.0 < gpus < 1.0:
        raise ConfigInvalid(
            f"{spec.resources.replicas} replicas need a whole GPU each, or none: give up replicas, or ask for 1",
            "/resources/gpus_per_block",
        )
    if spec.resources.sharding == "state" and spec.training.optimizer == "muon":
        raise ConfigInvalid(
            "muon turns a matrix as a whole, of which a replica has its share alone: give up resources.sharding, or "
            "use adamw",
            "/training/optimizer",
        )


def _trained_as(spec: JobSpec, card: ArchitectureCard) -> TrainingSpec:
    """The job's training with nothing left open."""
    if spec.training.compile and spec.training.activation_checkpointing:
        raise ConfigInvalid(
            "layers are compiled or recomputed, not both: give up activation_checkpointing or compile",
            "/training/compile",
        )
    best = {"lr": card.recipe.lr, "ema": card.recipe.ema}
    left_out = {name: value for name, value in best.items() if getattr(spec.training, name) is None}
    return spec.training.model_copy(update={**left_out, "accumulate": _parts(spec)})


def _parts(spec: JobSpec) -> int:
    """Micro-batches a step: at least one for each replica, and the same number for each, whoever is there. Random
    numbers are drawn for a micro-batch, so that what is learnt does not depend on how many replicas share them out."""
    replicas, rows = spec.resources.replicas, spec.training.batch_size
    parts = lcm(spec.training.accumulate, replicas)
    if rows % parts:
        asked = (
            f"{replicas} replicas and accumulate ({spec.training.accumulate}) take a step's rows in {parts} equal parts"
        )
        raise ConfigInvalid(f"{asked}; batch_size ({rows}) is no multiple of {parts}", "/resources/replicas")
    return parts


def _shares(spec: JobSpec) -> int:
    """Into how many a network's state is cut: as many as there are replicas at the least."""
    return spec.resources.fewest if spec.resources.sharding == "state" else 1


def _names(
    spec: JobSpec, training: TrainingSpec, options: Mapping[str, JsonValue], facts: DataFacts
) -> dict[str, Value]:
    """What formulas may name, all but `blocks` (see ArchitectureCard)."""
    names: dict[str, Any] = {
        **options,
        "batch": training.batch_size // training.accumulate,
        "bytes": 2 if spec.training.precision == "bf16" else 4,
        "sigma_data": spec.noise.sigma_data,
    }
    if facts.image_shape is not None:
        height, width_px, channels = facts.image_shape
        return names | {
            "classes": len(facts.class_names),
            "height": height,
            "width_px": width_px,
            "channels": channels,
        }
    if facts.vocabulary is None or facts.sequence_length is None:
        raise DataInvalid("text has a vocabulary and windows of a length")
    return names | {"vocabulary": facts.vocabulary.size, "sequence_length": facts.sequence_length}


def _sizes(
    spec: JobSpec, card: ArchitectureCard, names: Mapping[str, Value], training: TrainingSpec, cut: Cut
) -> Sizes:
    """The sizes of the cut; a rule on the number of blocks is said to be broken at the key that settled the number."""
    try:
        return Sizes(card, {**names, "blocks": len(cut)}, training, _shares(spec))
    except ConfigInvalid as refusal:
        if refusal.pointer != "/blocks/count":
            raise
        raise ConfigInvalid(str(refusal), f"/blocks/{way_to_cut(spec.blocks)}") from refusal


def _contract(
    spec: JobSpec,
    facts: DataFacts,
    sizes: Sizes,
    options: dict[str, JsonValue],
    cut: tuple[tuple[int, int], ...],
    levels: Levels,
) -> Contract:
    return Contract(
        architecture=sizes.card.kind,
        options=options,
        image_shape=facts.image_shape,
        class_names=facts.class_names,
        vocabulary=facts.vocabulary,
        sequence_length=facts.sequence_length,
        preprocessing=PREPROCESSING[facts.encoding],
        codes_seed=CODES_SEED,
        code_dim=int(sizes.number("code_dim", layers=cut[-1][1])),
        p_mean=levels.p_mean,
        p_std=levels.p_std,
        sigma_min=levels.sigma_min,
        sigma_max=levels.sigma_max,
        sigma_data=spec.noise.sigma_data,
        edges=levels.edges,
        layers=cut,
    )


def _block(sizes: Sizes, contract: Contract, levels: Levels, index: int) -> BlockPlan:
    network = sizes.network(sizes.card.denoiser, contract.layers[index])
    low, high = levels.intervals[index]
    return BlockPlan(
        layers=network.layers,
        parameters=network.parameters,
        memory=network.memory,
        index=index,
        sigma_min=contract.edges[index + 1],
        sigma_max=contract.edges[index],
        train_sigma_min=low,
        train_sigma_max=high,
    )

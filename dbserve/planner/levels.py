"""The range of the noise and the edges that cut it: what a job leaves out is the architecture's best."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from dbserve.cards import Sizes
from dbserve.contracts.job import JobSpec, NoiseSpec, Partition
from dbserve.errors import ConfigInvalid
from dbserve.formula import FormulaError
from workers.method.information import equal_information_edges
from workers.method.partition import (
    equal_mass_edges,
    interval_mass,
    log_uniform_edges,
    masking_edges,
    masking_training_interval,
    training_interval,
)

LEAST_MASS = 1e-12  # of an interval: below it floats cannot draw from the log-normal cut to it


@dataclass(frozen=True)
class Levels:
    """The noise of a job. Masking has no p_mean and no p_std, and its levels are probabilities of a mask."""

    p_mean: float | None
    p_std: float | None
    sigma_min: float
    sigma_max: float
    edges: tuple[float, ...]  # B + 1, descending
    intervals: tuple[tuple[float, float], ...]  # per block (low, high): what it is trained on


def levels_of(spec: JobSpec, sizes: Sizes, *, depth: int, count: int, overlap: float) -> Levels:
    """The noise of `count` blocks of a network of `depth` layers; ConfigInvalid at the key that cannot be."""
    partition = spec.blocks.partition or sizes.card.recipe.partition
    if sizes.card.noise.process == "masking":
        return _masking(spec, sizes, partition, depth=depth, count=count, overlap=overlap)
    return _gaussian(spec, sizes, partition, depth=depth, count=count, overlap=overlap)


def _gaussian(spec: JobSpec, sizes: Sizes, partition: Partition, *, depth: int, count: int, overlap: float) -> Levels:
    p_mean, p_std = (_filled(spec.noise, name, sizes, depth) for name in ("p_mean", "p_std"))
    low, high = _range(spec, sizes, depth)
    pointer = "/noise/p_mean" if spec.noise.p_mean is not None else "/noise"
    try:
        match partition:
            case "explicit":
                edges = _explicit(spec, count)
            case "uniform_log":
                edges = log_uniform_edges(count, sigma_min=low, sigma_max=high)
            case "equal_information":
                edges = _equal_information(sizes, count, depth=depth, low=low, high=high)
            case "equi_probability":
                edges = equal_mass_edges(count, p_mean=p_mean, p_std=p_std, sigma_min=low, sigma_max=high)
    except ValueError as error:
        raise ConfigInvalid(str(error), pointer) from error
    for block, (upper, lower) in enumerate(pairwise(edges)):
        if interval_mass(lower, upper, p_mean=p_mean, p_std=p_std) < LEAST_MASS:
            raise ConfigInvalid(
                f"the log-normal with p_mean={p_mean:g}, p_std={p_std:g} has no mass in block {block}'s interval "
                f"[{lower:.4g}, {upper:.4g}]",
                f"/blocks/edges/{block + 1}" if partition == "explicit" else pointer,
            )
    intervals = tuple(training_interval(edges, block, overlap) for block in range(count))
    return Levels(p_mean, p_std, edges[-1], edges[0], edges, intervals)


def _masking(spec: JobSpec, sizes: Sizes, partition: Partition, *, depth: int, count: int, overlap: float) -> Levels:
    for name in ("p_mean", "p_std"):
        if getattr(spec.noise, name) is not None:
            raise ConfigInvalid(f"{sizes.card.kind} masks tokens: its noise has no {name}", f"/noise/{name}")
    low, high = _range(spec, sizes, depth)
    if high > 1.0:
        pointer = "/blocks/edges/0" if spec.blocks.edges else "/noise/sigma_max"
        raise ConfigInvalid(f"{high:g} is no probability of a mask: at most 1", pointer)
    match partition:
        case "explicit":
            edges = _explicit(spec, count)
        case "equi_probability":
            edges = masking_edges(count, t_min=low, t_max=high)
        case "uniform_log" | "equal_information":
            raise ConfigInvalid(
                f"{sizes.card.kind} masks tokens: partition is equi_probability or explicit, not {partition}",
                "/blocks/partition",
            )
    reach = float(sizes.number(sizes.card.noise.low_reach, layers=depth))
    intervals = tuple(masking_training_interval(edges, block, overlap, low_reach=reach) for block in range(count))
    return Levels(None, None, edges[-1], edges[0], edges, intervals)


def _filled(noise: NoiseSpec, name: str, sizes: Sizes, depth: int) -> float:
    """The value of a key, the card's formula where it is left out."""
    given: float | None = getattr(noise, name)
    formula: str | None = getattr(sizes.card.noise, name)
    if given is not None:
        return given
    if formula is None:
        raise ConfigInvalid(f"{sizes.card.kind} has no default here", f"/noise/{name}")
    try:
        return float(sizes.number(formula, layers=depth))
    except FormulaError as error:
        raise ConfigInvalid(f"{sizes.card.kind} has no default here: {error}", f"/noise/{name}") from error


def _range(spec: JobSpec, sizes: Sizes, depth: int) -> tuple[float, float]:
    """(sigma_min, sigma_max): of explicit edges their ends."""
    noise, edges = spec.noise, spec.blocks.edges
    if edges is not None:
        return edges[-1], edges[0]
    low, high = (_filled(noise, name, sizes, depth) for name in ("sigma_min", "sigma_max"))
    if low >= high:
        pointer = "/noise/sigma_min" if noise.sigma_min is not None else "/noise/sigma_max"
        raise ConfigInvalid(f"sigma_min ({low:g}) must be below sigma_max ({high:g})", pointer)
    return low, high


def _explicit(spec: JobSpec, count: int) -> tuple[float, ...]:
    """The job's own edges, held against its range and its blocks."""
    edges: Sequence[float] = spec.blocks.edges or ()
    for place, (high, low) in enumerate(pairwise(edges), start=1):
        if low >= high:
            raise ConfigInvalid(f"edges descend from sigma_max: {low:g} after {high:g}", f"/blocks/edges/{place}")
    if len(edges) != count + 1:
        raise ConfigInvalid(f"{count} blocks have {count + 1} edges, not {len(edges)}", "/blocks/edges")
    for place, name, given in (
        (0, "sigma_max", spec.noise.sigma_max),
        (count, "sigma_min", spec.noise.sigma_min),
    ):
        if given is not None and given != edges[place]:
            raise ConfigInvalid(
                f"this edge ({edges[place]:g}) is {name}, which noise says is {given:g}; leave noise.{name} out",
                f"/blocks/edges/{place}",
            )
    return tuple(edges)


def _equal_information(sizes: Sizes, count: int, *, depth: int, low: float, high: float) -> tuple[float, ...]:
    if sizes.card.code_norm is None:
        raise ConfigInvalid(
            f"{sizes.card.kind} has no target codes whose information could be shared out", "/blocks/partition"
        )
    names = sizes.names
    return equal_information_edges(
        count,
        classes=cast(int, names["vocabulary"] if "vocabulary" in names else names["classes"]),
        norm=float(sizes.number(sizes.card.code_norm, layers=depth)),
        sigma_min=low,
        sigma_max=high,
    )

"""The job's graph of tasks."""

from collections.abc import Iterator
from math import ceil

from dbserve.contracts.job import Baseline, JobSpec
from dbserve.contracts.plan import TaskKind, TaskPlan
from dbserve.errors import ConfigInvalid


def tasks_of(spec: JobSpec, count: int, *, rows: int) -> Iterator[TaskPlan]:
    """[trunk] -> blocks, baselines beside them; with all `count` blocks trained, assembly -> evaluation.

    `rows` there are to train on. ConfigInvalid at a baseline that would show nothing, or has too few of them.
    """
    trunk = ("trunk",) if spec.blocks.branch else ()
    if spec.blocks.branch:
        yield TaskPlan(name="trunk", kind=TaskKind.TRUNK, steps=spec.blocks.branch.steps)
    indices = range(count) if spec.blocks.train == "all" else sorted(spec.blocks.train)
    blocks = tuple(
        TaskPlan(name=f"block-{index}", kind=TaskKind.BLOCK, index=index, steps=spec.training.steps, needs=trunk)
        for index in indices
    )
    baselines = tuple(_baselines(spec, count, rows))
    yield from (*blocks, *baselines)
    if len(blocks) == count:
        trained = tuple(task.name for task in blocks)
        compared = tuple(task.name for task in baselines)
        yield TaskPlan(name="assembly", kind=TaskKind.ASSEMBLY, needs=trained)
        yield TaskPlan(name="evaluation", kind=TaskKind.EVALUATION, needs=("assembly",), after=compared)


def _baselines(spec: JobSpec, count: int, rows: int) -> Iterator[TaskPlan]:
    """Baselines of B = count blocks, T steps each: shallow_long takes B x T, data_parallel T / B on B workers."""
    steps, wanted = spec.training.steps, spec.evaluation.baselines
    if "end_to_end" in wanted:
        yield TaskPlan(name="end_to_end", kind=TaskKind.END_TO_END, steps=steps)
    if "data_parallel" in wanted:
        if count == 1:
            raise ConfigInvalid(
                "data_parallel on one worker is end_to_end again: a second training would show nothing",
                _pointer(spec, "data_parallel"),
            )
        if (together := count * spec.training.batch_size) > rows:
            raise ConfigInvalid(
                f"data_parallel takes {count} x {spec.training.batch_size} = {together:,} rows a step, more than the "
                f"{rows:,} training rows",
                _pointer(spec, "data_parallel"),
            )
        yield TaskPlan(name="data_parallel", kind=TaskKind.DATA_PARALLEL, steps=ceil(steps / count), workers=count)
    # `shallow` is the ensemble's first member, so naming both trains it once.
    members = count if "shallow_ensemble" in wanted else int("shallow" in wanted)
    for index in range(members):
        yield TaskPlan(name=f"shallow-{index}", kind=TaskKind.SHALLOW, index=index, steps=steps)
    if "shallow_long" in wanted:
        if count == 1:
            raise ConfigInvalid(
                "shallow_long for one block's steps is shallow again: a second training would show nothing",
                _pointer(spec, "shallow_long"),
            )
        yield TaskPlan(name="shallow_long", kind=TaskKind.SHALLOW_LONG, steps=count * steps)


def _pointer(spec: JobSpec, baseline: Baseline) -> str:
    return f"/evaluation/baselines/{spec.evaluation.baselines.index(baseline)}"

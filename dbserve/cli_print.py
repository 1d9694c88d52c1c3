"""What the commands print: JSON for programs, tables and lines for people."""

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import cast

import typer
from pydantic import BaseModel, JsonValue
from rich import box
from rich.console import Console
from rich.table import Table

from dbserve.contracts.card import ArchitectureCard
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import BlockPlan, DataFacts, JobPlan, NetworkPlan, TaskKind, TaskPlan
from dbserve.contracts.report import Comparison, Quality, Report
from dbserve.contracts.status import TaskState
from dbserve.contracts.views import (
    JobSummary,
    JobView,
    LogView,
    ModelSummary,
    ModelView,
    Page,
    TaskCheckpointView,
    TaskView,
)
from dbserve.loglines import log_text
from dbserve.report.comparison import Note, comparison_table
from dbserve.report.numbers import byte_size, count, duration, percent, significant
from dbserve.report.quality import quality_table
from dbserve.report.verdict import verdict

WIDTH_OF_A_PIPE = 200
TERMINAL = 80  # columns that plans and reports keep to
METRICS_A_TABLE = 3


def print_json(model: BaseModel) -> None:
    typer.echo(model.model_dump_json(indent=2))


def print_json_page(items: Sequence[BaseModel], *, has_more: bool = False) -> None:
    """As the REST API answers a collection."""
    page = Page[JsonValue](data=tuple(item.model_dump(mode="json") for item in items), has_more=has_more)
    print_json(page)


def console() -> Console:
    """For text that others wrote: nothing in it is taken for markup."""
    width = None if sys.stdout.isatty() else WIDTH_OF_A_PIPE
    return Console(markup=False, highlight=False, emoji=False, width=width)


def readable(text: str) -> str:
    """Figures as the report writes them, with the spaces of a terminal."""
    return text.replace("\u202f", " ").replace("\u00a0", " ").replace("\u2212", "-")


def left(seconds: float | None) -> str:
    """How long something will still take; empty when nobody knows."""
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else readable(duration(seconds))


def print_plan(spec: JobSpec, plan: JobPlan) -> None:
    """Two tables that fit into 80 columns: who trains what, and the bytes a worker of each needs."""
    out = console()
    out.print(f"{spec.name}: {plan.contract.architecture} on {spec.data.uri}")
    out.print(readable(_rows_of(plan.data)))
    out.print(readable(_recipe(spec, plan)))
    level = "mask t" if plan.contract.p_mean is None else "sigma"
    sizes = _narrow("network", "layers", level, f"trains on {level}")
    for name in ("parameters", "steps", "workers"):
        sizes.add_column(name, justify="right")
    memory = _narrow("bytes per worker")
    for name in ("weights", "gradients", "optimizer", "activations", "total", "share"):
        memory.add_column(name, justify="right")
    whole = plan.end_to_end.memory.total
    for name, network, task in _networks(plan):
        layers = f"{network.layers[0]}..{network.layers[1] - 1}"
        owned, trained = _levels(network)
        steps, workers = ("-", "-") if task is None else (count(task.steps), str(task.workers))
        sizes.add_row(name, layers, owned, trained, *map(readable, (count(network.parameters), steps, workers)))
        memory.add_row(name, *map(readable, _bytes(network, whole)))
    _print_narrow(out, sizes)
    _print_narrow(out, memory)
    out.print("")
    out.print("share: of end-to-end. A network without steps is not trained by this job.")
    out.print(f"memory ratio {readable(significant(plan.memory_ratio))} (largest block / end-to-end, predicted)")
    out.print(f"{len(plan.tasks)} tasks; GPUs at once: {plan.gpus:g}")
    for warning in plan.warnings:
        out.print(wrapped(f"warning: {warning}", indent="  "))


def _rows_of(facts: DataFacts) -> str:
    rows = f"{count(facts.train_rows)} to train on, {count(facts.validation_rows)} to validate, "
    rows += f"{count(facts.test_rows)} to test"
    if facts.vocabulary is not None:
        words = facts.vocabulary
        kind = f"tokens of {words.tokenizer}" if words.kind == "tokenizer" else words.kind
        length = "" if facts.sequence_length is None else f" of {count(facts.sequence_length)} tokens"
        return f"windows{length}: {rows}\nvocabulary: {count(words.size)} {kind}"
    shape = "x".join(map(str, facts.image_shape or ()))
    kind = " float32, as they are" if facts.encoding == "float32" else ""
    classes = f"{len(facts.class_names)} classes" if facts.class_names else "no classes"
    return f"images: {rows}\n{shape}{kind}; {classes}"


def _recipe(spec: JobSpec, plan: JobPlan) -> str:
    """How every task is trained: what the plan fixed, where it fixed it."""
    training = plan.training
    rate = "scanned" if training.lr == "scan" else "open" if training.lr is None else f"{training.lr:g}"
    batch = f"batch {training.batch_size}"
    if training.accumulate > 1:
        batch += f" in {training.accumulate} parts"
    ema = f", ema {training.ema:g}" if training.ema else ""
    partition = spec.blocks.partition or "the architecture's own partition"
    blocks = "1 block" if len(plan.blocks) == 1 else f"{len(plan.blocks)} blocks"
    trunk = next((task for task in plan.tasks if task.kind is TaskKind.TRUNK), None)
    start = "" if trunk is None else f", each from a copy of a trunk of {count(trunk.steps)} steps"
    return (
        f"{training.optimizer}, lr {rate}, {training.schedule}, {batch}, {training.precision}{ema}\n"
        f"{blocks}, {partition.replace('_', ' ')}{start}"
    )


def _networks(plan: JobPlan) -> Iterator[tuple[str, NetworkPlan, TaskPlan | None]]:
    """(name, network, the task that trains it) of the blocks, end-to-end, and of every other baseline once."""
    tasks = {task.kind: task for task in reversed(plan.tasks)}
    named = {task.name: task for task in plan.tasks}
    for block in plan.blocks:
        yield f"block {block.index}", block, named.get(f"block-{block.index}")
    yield "end-to-end", plan.end_to_end, tasks.get(TaskKind.END_TO_END)
    others = (
        ("shallow", TaskKind.SHALLOW, plan.shallow),
        ("shallow, long", TaskKind.SHALLOW_LONG, plan.shallow),
        ("data-parallel", TaskKind.DATA_PARALLEL, plan.end_to_end),
    )
    for name, kind, network in others:
        if kind not in tasks:
            continue
        members = sum(task.kind is kind for task in plan.tasks)
        yield f"{name} x{members}" if members > 1 else name, network, tasks[kind]


def _levels(network: NetworkPlan) -> tuple[str, str]:
    """The noise levels that a block owns, and those it trains on; empty for what is no block."""
    if not isinstance(network, BlockPlan):
        return "", ""
    owned = f"{network.sigma_min:.3g}..{network.sigma_max:.3g}"
    return owned, f"{network.train_sigma_min:.3g}..{network.train_sigma_max:.3g}"


def _bytes(network: NetworkPlan, whole: int) -> tuple[str, ...]:
    memory = network.memory
    sizes = (memory.parameters, memory.gradients, memory.optimizer, memory.activations, memory.total)
    return (*map(byte_size, sizes), percent(memory.total / whole if whole else None))


def print_report(report: Report) -> None:
    """The report in brief: the verdict, who reached what, and every sentence it found worth saying."""
    out = console()
    out.print(f"{report.job_name} ({report.job_id}): {report.architecture} on {report.dataset}")
    if report.experimental:
        out.print(f"experimental: no recipe of {report.architecture} is known to be worth its cost")
    for sentence in verdict(report).sentences:
        out.print(wrapped(sentence))
    quality = report.quality
    for table in _contest(quality) if isinstance(quality, Comparison) else (_answers(report, quality),):
        _print_narrow(out, table)
    out.print("")
    for finding in report.findings:
        out.print(wrapped(f"- {finding}", indent="  "))
    for warning in report.warnings:
        out.print(wrapped(f"warning: {warning}", indent="  "))


def wrapped(text: str, *, indent: str = "") -> str:
    """Lines of at most 80 columns; all but the first are indented."""
    return readable(textwrap.fill(text, TERMINAL, subsequent_indent=indent, break_on_hyphens=False))


def _answers(report: Report, quality: Quality) -> Table:
    table = _narrow("answer by")
    for name in ("accuracy", "vs end-to-end", "CE, nats", "ECE", "layers run"):
        table.add_column(name, justify="right")
    for row in quality_table(report, quality).rows:
        name = f"{row.name} (chosen)" if row.chosen else row.name
        table.add_row(name, *map(readable, row.cells or ("not run",)))
    return table


def _contest(comparison: Comparison) -> Iterator[Table]:
    """The primary metric with the blocks' stand against each, then the other metrics, a few to a table."""
    found = comparison_table(comparison)
    table = _narrow("made by")
    for name in (_heading(found.notes[0]), "blocks against it", "layers run"):
        table.add_column(name, justify="right")
    for row in found.rows:
        unsettled = {"even": ", too close to call", "open": ", not settled"}.get(row.outcome or "", "")
        stand = row.against + (unsettled if row.against not in ("level", "–") else "")
        table.add_row(_named(row.name, floor=row.floor), *map(readable, (row.value, stand, row.layers)))
    yield table
    for start in range(1, len(found.notes), METRICS_A_TABLE):
        columns = slice(start, start + METRICS_A_TABLE)
        table = _narrow("made by")
        for note in found.notes[columns]:
            table.add_column(_heading(note), justify="right")
        for row in found.metrics:
            table.add_row(_named(row.name), *(readable(cell.text) for cell in row.cells[columns]))
        yield table


def _named(title: str, *, floor: bool = False) -> str:
    return readable(f"{title} (floor)" if floor else title)


def _heading(note: Note) -> str:
    return f"{note.title},\n{note.unit}" if note.unit else note.title


def print_jobs(jobs: Sequence[JobSummary], *, more: bool) -> None:
    table = _table("id", "name", "status", "done", "left", "created", "message")
    for job in jobs:
        progress = job.progress
        done = f"{progress.percent:.0f} %"
        table.add_row(
            job.id, job.name, job.status, done, left(progress.eta_seconds), moment(job.created_at), job.message or ""
        )
    out = console()
    out.print(table if jobs else "no jobs")
    if more:
        out.print("there are more; ask with --limit")


def print_job(job: JobView) -> None:
    out = console()
    out.print(headline(job))
    if job.message:
        out.print(f"{job.reason}: {job.message}" if job.reason else job.message)
    table = _table("task", "status", "attempt", "step", "loss", "samples/s", "memory", "left", "node", "message")
    for task in job.tasks:
        table.add_row(*task_cells(task), task.node or "", task.message or "")
    out.print(table)
    out.print(f"memory ratio {job.memory_ratio:.3g} (largest block / end-to-end, predicted)")
    for warning in job.warnings:
        out.print(f"warning: {warning}")
    for name, link in (("report", job.links.report), ("model", job.links.model)):
        if link:
            out.print(f"{name}: {link}")


def headline(job: JobView) -> str:
    """A job in one line."""
    remaining = f", {left(job.progress.eta_seconds)} left" if job.progress.eta_seconds else ""
    return f"{job.name} ({job.id}): {job.status}, {job.progress.percent:.0f} % of the steps{remaining}"


def task_cells(task: TaskView) -> list[str]:
    """name, status, attempt, step, loss, samples/s, memory, time left."""
    return [
        task.name,
        ", ".join((task.status.value, *task.conditions)),
        str(task.attempt),
        f"{task.step}/{task.total}" if task.total else "",
        "" if task.loss is None else f"{task.loss:.4f}",
        "" if task.samples_per_second is None else f"{task.samples_per_second:.0f}",
        "" if task.memory_peak is None else readable(byte_size(task.memory_peak)),
        left(task.eta_seconds if task.status is TaskState.RUNNING else None),
    ]


def print_checkpoints(checkpoints: Sequence[TaskCheckpointView]) -> None:
    table = _table("task", "step", "attempt", "saved", "sha256", "path")
    for checkpoint in checkpoints:
        figures = str(checkpoint.step), str(checkpoint.attempt), moment(checkpoint.at)
        table.add_row(checkpoint.task, *figures, checkpoint.sha256[:12], checkpoint.path)
    console().print(table if checkpoints else "no checkpoints yet")


def print_log_line(line: LogView, *, as_json: bool) -> None:
    if as_json:
        typer.echo(line.model_dump_json())
    else:
        place = f"{line.task}#{line.attempt}"
        typer.echo(log_text(moment(line.at), place, line.level, line.message, line.fields))


def print_models(models: Sequence[ModelSummary]) -> None:
    table = _table("id", "name", "version", "created", "contract")
    for model in models:
        table.add_row(model.id, model.name, str(model.version), moment(model.created_at), model.contract_hash[:12])
    console().print(table if models else "no models")


def print_cards(cards: Sequence[ArchitectureCard]) -> None:
    table = _table("kind", "what it is")
    for card in cards:
        table.add_row(card.kind, card.summary)
    console().print(table)


def print_options(card: ArchitectureCard) -> None:
    table = _table("option", "default", "what it is")
    required = cast(Sequence[str], card.options_schema.get("required", ()))
    for name, schema in cast(Mapping[str, Mapping[str, JsonValue]], card.options_schema["properties"]).items():
        default = "(required)" if name in required else json.dumps(schema.get("default"))
        choices = " | ".join(map(str, cast(Sequence[JsonValue], schema.get("enum", ()))))
        table.add_row(name, default, "  ".join(filter(None, (str(schema.get("description", "")), choices))))
    console().print(f"{card.kind}: {card.summary}")
    console().print(table)


def print_model(model: ModelView) -> None:
    out = console()
    out.print(f"{model.name} version {model.version} ({model.id}), from job {model.job_id}")
    out.print(f"contract {model.contract_hash}")
    out.print(json.dumps(model.manifest, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Rows of plain text; `empty` where there are none."""
    table = _table(*columns)
    for row in rows:
        table.add_row(*row)
    console().print(table if rows else empty)


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _narrow(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))


def _print_narrow(out: Console, table: Table) -> None:
    """Between empty lines; a cell too long for the width is broken into lines."""
    out.print("")
    out.print(table, width=min(out.width, TERMINAL))


def moment(at: datetime | None) -> str:
    """In local time; empty for never."""
    return "" if at is None else f"{at.astimezone():%Y-%m-%d %H:%M:%S}"

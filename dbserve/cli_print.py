"""What the commands print: JSON for programs, tables and lines for people."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import cast

import typer
from pydantic import BaseModel, JsonValue
from rich import box
from rich.console import Console
from rich.table import Table

from dbserve.contracts.card import ArchitectureCard
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan, NetworkPlan
from dbserve.contracts.status import TaskState
from dbserve.contracts.views import JobSummary, JobView, LogView, ModelSummary, ModelView, Page, TaskView
from dbserve.report.numbers import byte_size, count, duration, percent, significant

WIDTH_OF_A_PIPE = 200


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
    return text.replace("\u202f", " ").replace("\u2212", "-")


def left(seconds: float | None) -> str:
    """How long something will still take; empty when nobody knows."""
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 120 else readable(duration(seconds))


def print_plan(spec: JobSpec, plan: JobPlan) -> None:
    table = _table("network", "layers", "sigma", "trains on sigma")
    for name in ("parameters", "weights", "gradients", "optimizer", "activations", "total", "of end-to-end"):
        table.add_column(name, justify="right")
    whole = plan.end_to_end.memory.total
    for block in plan.blocks:
        owned = _interval(block.sigma_min, block.sigma_max)
        trained = _interval(block.train_sigma_min, block.train_sigma_max)
        table.add_row(f"block {block.index}", *_network(block, owned, trained, whole))
    table.add_row("end-to-end", *_network(plan.end_to_end, "", "", whole))
    if any(task.kind == "shallow" for task in plan.tasks):
        table.add_row("shallow member", *_network(plan.shallow, "", "", whole))
    out = console()
    facts = plan.data
    out.print(f"{spec.name}: {plan.contract.architecture} on {spec.data.uri}")
    shape = "x".join(map(str, facts.image_shape))
    out.print(
        readable(
            f"{count(facts.train_rows)} rows to train on, {count(facts.validation_rows)} to validate, "
            f"{count(facts.test_rows)} to test; {shape}; {len(facts.class_names)} classes"
        )
    )
    out.print(table)
    out.print(
        readable(
            f"memory ratio {significant(plan.memory_ratio)} (largest block / end-to-end, predicted); "
            f"{len(plan.tasks)} tasks; {spec.training.steps} steps each; GPUs at once: {plan.gpus:g}"
        )
    )
    for warning in plan.warnings:
        out.print(f"warning: {warning}")


def _network(network: NetworkPlan, owned: str, trained: str, whole: int) -> list[str]:
    memory = network.memory
    sizes = (memory.parameters, memory.gradients, memory.optimizer, memory.activations, memory.total)
    layers = f"{network.layers[0]}..{network.layers[1] - 1}"
    share = percent(memory.total / whole)
    return [layers, owned, trained, *map(readable, (count(network.parameters), *map(byte_size, sizes), share))]


def _interval(low: float, high: float) -> str:
    return f"{low:.4g} .. {high:.4g}"


def print_jobs(jobs: Sequence[JobSummary], *, more: bool) -> None:
    table = _table("id", "name", "status", "done", "left", "created", "message")
    for job in jobs:
        progress = job.progress
        done = f"{progress.percent:.0f} %"
        table.add_row(
            job.id, job.name, job.status, done, left(progress.eta_seconds), _time(job.created_at), job.message or ""
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
        task.status.value,
        f"{task.attempt}/{task.max_attempts}" if task.attempt > 1 else "1",
        f"{task.step}/{task.total}" if task.total else "",
        "" if task.loss is None else f"{task.loss:.4f}",
        "" if task.samples_per_second is None else f"{task.samples_per_second:.0f}",
        "" if task.memory_peak is None else readable(byte_size(task.memory_peak)),
        left(task.eta_seconds if task.status is TaskState.RUNNING else None),
    ]


def print_log_line(line: LogView, *, as_json: bool) -> None:
    if as_json:
        typer.echo(line.model_dump_json())
    else:
        typer.echo(f"{_time(line.at)} {line.task}#{line.attempt} {line.level:<7} {line.message}")


def print_models(models: Sequence[ModelSummary]) -> None:
    table = _table("id", "name", "version", "created", "contract")
    for model in models:
        table.add_row(model.id, model.name, str(model.version), _time(model.created_at), model.contract_hash[:12])
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


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _time(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"

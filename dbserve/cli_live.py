"""`dbserve watch`: a job as it runs. Bars on a terminal, lines anywhere else."""

import time
from collections.abc import Iterator
from datetime import datetime

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from dbserve.cli_print import console, headline, print_json, task_cells
from dbserve.client import PATIENCE_SECONDS, Client, Unavailable
from dbserve.contracts.status import TERMINAL_JOB, JobStatus, TaskState
from dbserve.contracts.views import JobView, TaskView
from dbserve.errors import ServerUnreachable

POLL_SECONDS = 0.5
LINE_SECONDS = 10.0  # between two lines that only tell of progress
BAR_WIDTH = 24

COLOURS = {
    TaskState.PENDING: "dim",
    TaskState.LAUNCHED: "cyan",
    TaskState.RUNNING: "blue",
    TaskState.PAUSING: "yellow",
    TaskState.PAUSED: "dim",
    TaskState.CANCELLING: "yellow",
    TaskState.SUCCEEDED: "green",
    TaskState.FAILED: "red",
    TaskState.CANCELLED: "yellow",
}


def watch_job(client: Client, job_id: str, *, as_json: bool = False) -> int:
    """Follow a job to its end; the exit code: 0 it succeeded, 1 it did not. `as_json` prints the ended job, once.

    A server that is away for up to a minute is waited for. Leaving does not stop the job.
    """
    try:
        if as_json:
            job = client.wait(job_id)
            print_json(job)
        else:
            out = console()
            job = _bars(client, job_id, out) if out.is_terminal else _lines(client, job_id)
            typer.echo(epilogue(job))
    except KeyboardInterrupt:
        typer.echo(f"\nthe job goes on; come back with: dbserve watch {job_id}", err=True)
        raise
    return 0 if job.status is JobStatus.SUCCEEDED else 1


def _polled(client: Client, job_id: str) -> Iterator[tuple[JobView, str]]:
    """The job as often as it is asked for, with what hinders."""
    job: JobView | None = None
    reached = time.monotonic()
    while True:
        trouble = ""
        try:
            job = client.job(job_id)
            reached = time.monotonic()
        except (ServerUnreachable, Unavailable) as away:
            silent = time.monotonic() - reached
            if job is None or silent > PATIENCE_SECONDS:
                raise
            trouble = f"the server does not answer since {silent:.0f} s; trying again ({away})"
        yield job, trouble
        time.sleep(POLL_SECONDS)


def _bars(client: Client, job_id: str, out: Console) -> JobView:
    with Live(console=out, refresh_per_second=4) as live:
        for job, trouble in _polled(client, job_id):
            live.update(picture(job, trouble))
            if job.status in TERMINAL_JOB:
                return job
    raise AssertionError("polling goes on until the caller leaves")


def picture(job: JobView, trouble: str = "") -> Group:
    """The job as bars: one for every task that trains, a word for the others."""
    table = Table.grid(padding=(0, 2))
    table.add_row("task", "", "", "try", "step", "loss", "samples/s", "memory", "left", style="dim")
    for task in job.tasks:
        name, status, *figures = task_cells(task)
        colour = COLOURS[task.status]
        bar = ProgressBar(total=task.total, completed=task.step, width=BAR_WIDTH, complete_style=colour)
        table.add_row(name, status, bar if task.total else "", *figures, style=colour if not task.total else "")
    notes = [note for note in (job.message or "", trouble) if note]
    return Group(headline(job), table, *notes)


def _lines(client: Client, job_id: str) -> JobView:
    teller = Teller()
    for job, trouble in _polled(client, job_id):
        for line in teller.news(job, trouble, time.monotonic()):
            typer.echo(f"{datetime.now():%H:%M:%S} {line}")
        if job.status in TERMINAL_JOB:
            return job
    raise AssertionError("polling goes on until the caller leaves")


class Teller:
    """Tells what changed since it last spoke: every change of a task at once, mere progress now and then."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[object, ...]] = {}
        self._spoke_at = float("-inf")

    def news(self, job: JobView, trouble: str, now: float) -> Iterator[str]:
        for task in job.tasks:
            if self._changed(task.name, task.status, task.attempt, task.message):
                yield _change(task)
        if self._changed("", job.status, job.message, bool(trouble)) or now - self._spoke_at >= LINE_SECONDS:
            self._spoke_at = now
            yield " ".join(filter(None, (headline(job), job.message, trouble)))

    def _changed(self, name: str, *state: object) -> bool:
        before, self._told[name] = self._told.get(name), state
        return before != state


def _change(task: TaskView) -> str:
    attempt = f" (attempt {task.attempt})" if task.attempt > 1 else ""
    node = f" on {task.node}" if task.node and task.status is TaskState.RUNNING else ""
    message = f": {task.message}" if task.message else ""
    return f"{task.name} {task.status}{attempt}{node}{message}"


def epilogue(job: JobView) -> str:
    """What is left to say when a job has ended."""
    if job.status is JobStatus.SUCCEEDED:
        after = f"; see: dbserve report {job.id}" if job.links.report else ""
        return f"{job.name} ({job.id}) succeeded{after}"
    why = f": {job.message}" if job.message else ""
    return f"{job.name} ({job.id}) {job.status}{why}; see: dbserve logs {job.id}"

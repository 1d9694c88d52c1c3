"""Commands about jobs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dbserve.cli_options import DEFAULT_URL, ApiKey, AsJson, JobFile, JobId, Url, about, connected, read_job_file
from dbserve.errors import ConfigInvalid
from dbserve.loglines import Level

if TYPE_CHECKING:
    from dbserve.contracts.status import JobStatus
    from dbserve.contracts.views import JobView

commands = typer.Typer()

JOBS = "Jobs"
RESULTS = "Results"


@commands.command(rich_help_panel=JOBS)
def plan(
    file: JobFile,
    as_json: AsJson = False,
    server: Annotated[str | None, typer.Option(help="Ask this server; by default the arithmetic is done here.")] = None,
    api_key: ApiKey = None,
) -> None:
    """What a job would become: blocks, sigma intervals, parameters, bytes. Nothing is started."""
    from dbserve.cli_print import print_json, print_plan

    with about(file):
        spec = read_job_file(file)
        if server is not None:
            with connected(server, api_key) as client:
                found = client.plan(spec)
        else:
            from dbserve.conversion import with_source
            from dbserve.datasets import inspect
            from dbserve.planner import load_card, plan_job
            from dbserve.settings import read_settings

            card = load_card(spec.architecture.kind)
            facts = inspect(spec.data, modality=card.modality, cache_dir=read_settings().cache_dir)
            found = plan_job(with_source(spec, facts), card, facts)
    if as_json:
        print_json(found)
    else:
        print_plan(spec, found)


@commands.command(rich_help_panel=JOBS)
def submit(
    file: JobFile,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until the job has ended.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting again with the same key makes no second job.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job and print its id."""
    from dbserve.cli_live import watch_job
    from dbserve.cli_print import print_json

    with about(file):
        spec = read_job_file(file)
        with connected(url, api_key) as client:
            job = client.submit(spec, idempotency_key)
    if as_json and not watch:
        print_json(job)
    else:
        typer.echo(job.id, err=as_json)  # stdout is kept for the job as it ends
    if watch:
        with connected(url, api_key) as client:
            raise typer.Exit(watch_job(client, job.id, as_json=as_json))


@commands.command("jobs", rich_help_panel=JOBS)
def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs of this status.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 50,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from itertools import islice

    from dbserve.cli_print import print_jobs, print_json_page

    with connected(url, api_key) as client:
        found = list(islice(client.jobs(status=_status(status), labels=_labels(label or [])), limit + 1))
    jobs, more = found[:limit], len(found) > limit
    if as_json:
        print_json_page(jobs, has_more=more)
    else:
        print_jobs(jobs, more=more)


@commands.command(rich_help_panel=JOBS)
def show(job: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """A job, its tasks and what they wait for."""
    from dbserve.cli_print import print_job, print_json

    with connected(url, api_key) as client:
        found = client.job(job)
    if as_json:
        print_json(found)
    else:
        print_job(found)


@commands.command(rich_help_panel=JOBS)
def watch(job: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Follow a job to its end: one bar per block and baseline. Leaving does not stop the job."""
    from dbserve.cli_live import watch_job

    with connected(url, api_key) as client:
        raise typer.Exit(watch_job(client, job, as_json=as_json))


@commands.command(rich_help_panel=JOBS)
def logs(
    job: JobId,
    block: Annotated[int | None, typer.Option(min=0, help="Of this block only.")] = None,
    task: Annotated[str | None, typer.Option(help="Of this task only: block-0, end_to_end, evaluation, ...")] = None,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Of this attempt only; the newest are the highest.")
    ] = None,
    level: Annotated[Level | None, typer.Option(help="Of this level and above only.")] = None,
    tail: Annotated[int, typer.Option(min=0, max=10_000, help="How many of the last lines.")] = 200,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """What the workers logged. With --json: one object a line."""
    from dbserve.cli_print import print_log_line

    with connected(url, api_key) as client:
        for line in client.logs(job, block=block, task=task, attempt=attempt, level=level, tail=tail, follow=follow):
            print_log_line(line, as_json=as_json)


@commands.command(rich_help_panel=JOBS)
def cancel(
    job: JobId,
    force: Annotated[bool, typer.Option("--force", help="Kill the workers at once: no last checkpoints.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Ask for the end of a job. Its workers save a last checkpoint first."""
    with connected(url, api_key) as client:
        _say(client.cancel(job, force=force), as_json=as_json)


@commands.command(rich_help_panel=JOBS)
def pause(job: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Let a job's workers save a last checkpoint and make room, until it is resumed."""
    with connected(url, api_key) as client:
        _say(client.pause(job), as_json=as_json)


@commands.command(rich_help_panel=JOBS)
def resume(job: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Let a paused job go on where it was."""
    with connected(url, api_key) as client:
        _say(client.resume(job), as_json=as_json)


@commands.command(rich_help_panel=JOBS)
def retry(
    job: JobId,
    block: Annotated[int | None, typer.Option(min=0, help="This block only, and what was abandoned with it.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Try again what failed or was cancelled, from its last checkpoints; what waits for its backoff starts at once."""
    with connected(url, api_key) as client:
        if block is None:
            _say(client.retry(job), as_json=as_json)
        else:
            client.retry_block(job, block)
            _say(client.job(job), as_json=as_json)


@commands.command(rich_help_panel=RESULTS)
def checkpoints(job: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """The checkpoints that a job's tasks could go on from."""
    from dbserve.cli_print import print_checkpoints, print_json_page

    with connected(url, api_key) as client:
        found = client.checkpoints(job)
    if as_json:
        print_json_page(list(found), has_more=False)
    else:
        print_checkpoints(found)


def _say(job: "JobView", *, as_json: bool) -> None:
    """How a job stands after a wish."""
    from dbserve.cli_print import print_json

    if as_json:
        print_json(job)
    else:
        typer.echo(f"{job.id} is {job.status}")


@commands.command(rich_help_panel=JOBS)
def delete(job: JobId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Forget a job that has ended. Its model stays."""
    import json

    with connected(url, api_key) as client:
        client.delete(job)
    typer.echo(json.dumps({"deleted": job}) if as_json else f"{job} is deleted")


@commands.command(rich_help_panel=RESULTS)
def report(
    job: JobId,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to; JOB-report.html by default.")] = None,
    show_it: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    brief: Annotated[bool, typer.Option("--summary", help="Print it here, in brief; no page is written.")] = False,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """What was measured about a job, as a page; with --json, as data (to stdout unless -o is given)."""
    from dbserve.cli_print import print_report

    with connected(url, api_key) as client:
        if brief and not as_json:
            print_report(client.report(job))
            return
        text = client.report(job).model_dump_json(indent=2) if as_json else client.report_html(job)
    if as_json and output is None:
        typer.echo(text)
        return
    path = output or Path(f"{job}-report.html")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(f"cannot write {path}: {error.strerror}") from None
    typer.echo(str(path))
    if show_it:
        typer.launch(path.absolute().as_uri())


def _status(text: str | None) -> "JobStatus | None":
    from dbserve.contracts.status import JobStatus

    try:
        return JobStatus(text) if text else None
    except ValueError:
        known = ", ".join(status.value for status in JobStatus)
        raise typer.BadParameter(f"{text!r} is none of {known}", param_hint="--status") from None


def _labels(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if not all(key and equals for key, equals, _ in pairs):
        raise typer.BadParameter("a label is given as key=value", param_hint="--label")
    return {key: value for key, _, value in pairs}

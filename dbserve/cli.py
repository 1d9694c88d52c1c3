"""The command line, and the composition root: settings are read here, once, and handed down.

Exit codes: 0 done; 1 the job failed or was cancelled; 2 wrong usage or bad input; 3 the server (or Redis, or Ray) does
not answer; 4 not found, or not possible as things stand; 5 the service refuses to start; 130 interrupted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dbserve import cli_jobs, cli_keys, cli_models, cli_nodes, cli_webhooks
from dbserve.cli_options import ApiKey
from dbserve.errors import (
    ClusterUnavailable,
    ConfigInvalid,
    DbserveError,
    ServerUnreachable,
    StartupRefused,
    StoreUnavailable,
)

BAD_INPUT, UNREACHABLE, CONFLICT, REFUSED, INTERRUPTED = 2, 3, 4, 5, 130

EPILOG = (
    "Exit codes: 0 done, 1 the job failed or was cancelled, 2 bad usage or input, 3 server unreachable, "
    "4 not found or not possible now, 5 start refused, 130 interrupted."
)


class _Explaining(TyperGroup):
    """Turns every typed error into a line on stderr (one for each fault) and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DbserveError as error:
            for line in error_lines(error):
                typer.echo(f"dbserve: {line}", err=True)
            raise typer.Exit(exit_code(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def error_lines(error: DbserveError) -> Iterator[str]:
    """What is wrong, and where: notes on the error name the file."""
    where = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
    faults = getattr(error, "faults", ())
    if not faults:
        place = error.pointer if isinstance(error, ConfigInvalid) else ""
        yield f"{where}{place}{': ' if place else ''}{error}"
    for fault in faults:
        yield f"{where}{fault.pointer}{': ' if fault.pointer else ''}{fault.message}"


def exit_code(error: DbserveError) -> int:
    from dbserve.client import ApiError, Conflict, NotFound, Unavailable

    match error:
        case StartupRefused():
            return REFUSED
        case ServerUnreachable() | Unavailable() | StoreUnavailable() | ClusterUnavailable():
            return UNREACHABLE
        case NotFound() | Conflict():
            return CONFLICT
        case ConfigInvalid():
            return BAD_INPUT
        case ApiError():
            return BAD_INPUT if error.status < 500 else 1
        case _:
            return 1


cli = typer.Typer(
    cls=_Explaining,
    help="Train residual networks as independent denoising blocks, as a service.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cli.add_typer(cli_jobs.commands)
cli.add_typer(cli_models.commands, name="models", rich_help_panel="Results")
cli.add_typer(cli_webhooks.commands, name="webhooks", rich_help_panel="Service")
cli.add_typer(cli_keys.commands, name="keys", rich_help_panel="Service")
cli.command(rich_help_panel="Jobs")(cli_models.architectures)
cli.command(rich_help_panel="Service")(cli_nodes.nodes)

Host = Annotated[str | None, typer.Option(envvar="DBSERVE_HOST", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(envvar="DBSERVE_PORT", min=0, max=65_535, show_default="8000")]


@cli.command(rich_help_panel="Service")
def up(
    data_dir: Annotated[Path, typer.Option(help="Everything is kept here; started again on it, jobs go on.")] = Path(
        "dbserve-data"
    ),
    host: Host = None,
    port: Port = None,
    redis_url: Annotated[str | None, typer.Option(help="A running Redis, instead of an embedded one.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="A running Ray cluster, instead of a local one.")] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Another place for checkpoints and models, e.g. s3://bucket/prefix.")
    ] = None,
    num_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of the local Ray; all of them by default.")] = None,
    api_key: ApiKey = None,
) -> None:
    """Start everything on this machine: Redis, Ray, the API and the reconciler."""
    from dbserve.embedded import serve_embedded
    from dbserve.settings import read_settings

    settings = read_settings(host=host, port=port, artifacts=artifacts, api_key=api_key)
    raise typer.Exit(
        serve_embedded(
            settings,
            data_dir=data_dir,
            redis_url=redis_url,
            ray_address=ray_address,
            artifacts=settings.artifacts if artifacts else None,
            num_cpus=num_cpus,
            say=typer.echo,
        )
    )


@cli.command(rich_help_panel="Service")
def api(
    host: Host = None,
    port: Port = None,
    redis_url: Annotated[str | None, typer.Option(envvar="DBSERVE_REDIS_URL")] = None,
    artifacts: Annotated[str | None, typer.Option(envvar="DBSERVE_ARTIFACTS")] = None,
    api_key: ApiKey = None,
) -> None:
    """Serve the REST API in this process."""
    from dbserve.api.serve import serve
    from dbserve.settings import read_settings

    settings = read_settings(host=host, port=port, redis_url=redis_url, artifacts=artifacts, api_key=api_key)
    serve(settings, announce=lambda url: typer.echo(f"dbserve API on {url}"))


@cli.command(rich_help_panel="Service")
def reconcile(
    redis_url: Annotated[str | None, typer.Option(envvar="DBSERVE_REDIS_URL")] = None,
    ray_address: Annotated[str | None, typer.Option(envvar="DBSERVE_RAY_ADDRESS")] = None,
    artifacts: Annotated[str | None, typer.Option(envvar="DBSERVE_ARTIFACTS")] = None,
) -> None:
    """Make the Ray cluster run what the store wants. One acts at a time; others stand by."""
    from dbserve.reconciler import run_reconciler
    from dbserve.settings import read_settings

    run_reconciler(read_settings(redis_url=redis_url, ray_address=ray_address, artifacts=artifacts))


@cli.command("redis-acl", rich_help_panel="Service")
def redis_acl(
    template: Annotated[bool, typer.Option(help="With {api}, {worker}, ... for the hashes of passwords.")] = False,
) -> None:
    """Print an ACL file for Redis: a user for each kind of process, with what it needs and no more.

    Passwords come from DBSERVE_ACL_API_PASSWORD, _RECONCILER_, _WORKER_, and perhaps _EXPORTER_ and _RAY_; or their
    SHA-256 in hex from the same with _SHA256 behind it. Hashes alone are printed.
    """
    import os

    from dbserve.store.acl import USERS, acl_file, password_hashes

    hashes = {user.name: f"{{{user.name}}}" for user in USERS} if template else password_hashes(os.environ)
    typer.echo(acl_file(hashes), nl=False)


def main() -> None:
    cli(prog_name="dbserve")

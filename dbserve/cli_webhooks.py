"""Commands about webhooks: who is told when jobs end and when blocks get into trouble."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dbserve.cli_options import DEFAULT_URL, ApiKey, AsJson, Url, connected
from dbserve.errors import ConfigInvalid

if TYPE_CHECKING:
    from dbserve.contracts.webhook import Topic

commands = typer.Typer(
    help="Webhooks: tell a server of yours when jobs end and when blocks get into trouble.", no_args_is_help=True
)

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="The webhook's id.")]

UNDELIVERED = 1  # exit code of a test that the receiver did not accept


@commands.command()
def create(
    receiver: Annotated[str, typer.Argument(metavar="RECEIVER", help="Where messages are sent: http or https.")],
    event: Annotated[
        list[str] | None, typer.Option(help="Be told of this, e.g. job.failed; may be repeated. All by default.")
    ] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    secret_file: Annotated[
        Path | None, typer.Option(help="Holds the secret (whsec_...) to sign with, instead of a new one.")
    ] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a webhook. Its secret is printed once: keep it."""
    from dbserve.cli_print import print_json
    from dbserve.contracts.webhook import Topic

    topics = _topics(event) if event else tuple(Topic)
    secret = None if secret_file is None else _read(secret_file)
    with connected(url, api_key) as client:
        made = client.webhooks.create(receiver, events=topics, description=description, secret=secret)
    if as_json:
        print_json(made)
    else:
        typer.echo(f"webhook {made.id}: {made.url}")
        typer.echo(f"secret  {made.secret}   (not shown again)")


@commands.command("list")
def list_webhooks(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Webhooks, oldest first."""
    from dbserve.cli_print import print_json_page, print_table

    with connected(url, api_key) as client:
        webhooks = client.webhooks.all()
    if as_json:
        print_json_page(webhooks)
        return
    rows = [(one.id, one.url, one.disabled or "on", ", ".join(one.events), one.description) for one in webhooks]
    print_table(("id", "receiver", "state", "events", "description"), rows, empty="no webhooks")


@commands.command()
def show(webhook: WebhookId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """A webhook and its last deliveries, newest first."""
    from dbserve.cli_print import moment, print_json, print_table

    with connected(url, api_key) as client:
        found = client.webhooks.show(webhook)
    if as_json:
        print_json(found)
        return
    typer.echo(f"{found.id}: {found.url} ({found.disabled or 'on'}), {found.waiting} on their way")
    rows = [
        (
            moment(one.at),
            one.event,
            str(one.attempt),
            "" if one.code is None else str(one.code),
            one.error or "",
            moment(one.next_try),
            one.message_id,
        )
        for one in found.deliveries
    ]
    columns = ("at", "event", "attempt", "status", "error", "next try", "message")
    print_table(columns, rows, empty="nothing was sent yet")


@commands.command()
def delete(webhook: WebhookId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """Send nothing more, of what is on its way neither."""
    with connected(url, api_key) as client:
        client.webhooks.delete(webhook)


@commands.command("test")
def ping(webhook: WebhookId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Send a ping now and print what the receiver says. Exit code 1 when it does not accept it."""
    from dbserve.cli_print import print_json

    with connected(url, api_key) as client:
        found = client.webhooks.test(webhook)
    if as_json:
        print_json(found)
    else:
        said = f"HTTP {found.code}" if found.code is not None else found.error
        typer.echo(f"{'delivered' if found.delivered else 'not delivered'}: {said}")
    if not found.delivered:
        raise typer.Exit(UNDELIVERED)


def _topics(names: list[str]) -> "tuple[Topic, ...]":
    from dbserve.contracts.webhook import Topic

    try:
        return tuple(map(Topic, names))
    except ValueError as error:
        raise ConfigInvalid(f"{error}; there are {', '.join(Topic)}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigInvalid(f"{path}: {error.strerror or error}") from None

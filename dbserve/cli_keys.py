"""Commands about API keys and the audit log: who may come in, and who changed what."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from dbserve.cli_options import DEFAULT_URL, ApiKey, AsJson, Url, connected
from dbserve.errors import ConfigInvalid

if TYPE_CHECKING:
    from dbserve.contracts.key import KeyCreated, KeyView

commands = typer.Typer(help="API keys: who may come in, to what, for how long.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key's id: dbs_<id>_...")]

_DURATION = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


@commands.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people: who or what uses the key.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, submit or admin; may be repeated. read and submit by default.")
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="The project it belongs to; * is the deployment. The asking key's by default.")
    ] = None,
    expires_in: Annotated[str | None, typer.Option(help="30d, 12h, ...; it does not expire by default.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is printed once: keep it."""
    from dbserve.contracts.key import Scope

    try:
        scopes = tuple(map(Scope, scope or ("read", "submit")))
    except ValueError as error:
        raise ConfigInvalid(f"{error}; there are {', '.join(Scope)}") from None
    seconds = None if expires_in is None else _seconds(expires_in)
    with connected(url, api_key) as client:
        _print_secret(client.keys.create(name, scopes, project=project, expires_in_seconds=seconds), as_json)


@commands.command("list")
def list_keys(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Keys of the project, oldest first."""
    from dbserve.cli_print import moment, print_json_page, print_table

    with connected(url, api_key) as client:
        found = client.keys.all()
    if as_json:
        print_json_page(found)
        return
    rows = [
        (
            key.id,
            key.name,
            key.project,
            ",".join(key.scopes),
            _state(key),
            moment(key.expires_at),
            moment(key.last_used_at),
        )
        for key in found
    ]
    print_table(("id", "name", "project", "scopes", "state", "expires", "last used"), rows, empty="no keys")


@commands.command()
def show(key: KeyId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """A key, without its secret, as JSON."""
    from dbserve.cli_print import print_json

    with connected(url, api_key) as client:
        print_json(client.keys.show(key))


@commands.command()
def revoke(key: KeyId, url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """It opens nothing any more, everywhere within 5 s."""
    with connected(url, api_key) as client:
        client.keys.revoke(key)


@commands.command()
def rotate(
    key: KeyId,
    grace: Annotated[str, typer.Option(help="How long the old secret still opens; 0s: no more.")] = "24h",
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret. It is printed once: keep it."""
    with connected(url, api_key) as client:
        _print_secret(client.keys.rotate(key, grace_seconds=_seconds(grace)), as_json)


@commands.command()
def whoami(url: Url = DEFAULT_URL, api_key: ApiKey = None) -> None:
    """What your own key may do, and in which project, as JSON."""
    from dbserve.cli_print import print_json

    with connected(url, api_key) as client:
        print_json(client.keys.caller())


@commands.command()
def audit(
    deployment: Annotated[
        bool, typer.Option("--deployment", help="Instead, what was done to the deployment: keys of project *, ...")
    ] = False,
    strangers: Annotated[
        bool, typer.Option("--strangers", help="Instead, what came with a key that does not open.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many of the last entries.")] = 100,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Who changed what, or was refused to: newest first."""
    from itertools import islice

    from dbserve.cli_print import moment, print_json_page, print_table

    with connected(url, api_key) as client:
        found = tuple(islice(client.keys.audit(deployment=deployment, strangers=strangers), limit))
    if as_json:
        print_json_page(found)
        return
    rows = [
        (moment(one.at), one.key_id or "", one.address or "", one.method, one.object, str(one.status), one.request_id)
        for one in found
    ]
    print_table(("at", "key", "address", "method", "object", "status", "request"), rows, empty="no entries")


def _print_secret(made: "KeyCreated", as_json: bool) -> None:
    from dbserve.cli_print import print_json

    if as_json:
        print_json(made)
        return
    typer.echo(f"key {made.id}: {made.name}, project {made.project}, {', '.join(made.scopes)}")
    typer.echo(f"{made.key}   (not shown again)")


def _state(key: "KeyView") -> str:
    from datetime import UTC, datetime

    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= datetime.now(UTC) else "good"


def _seconds(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ConfigInvalid(f"{text!r} is no duration: write 30d, 12h, 90m or 0s")
    return int(found[1]) * _SECONDS[found[2]]

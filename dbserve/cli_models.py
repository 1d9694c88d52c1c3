"""Commands about assembled models, and about the networks they can be made of."""

from pathlib import Path
from typing import Annotated

import typer

from dbserve.cli_options import DEFAULT_URL, ApiKey, AsJson, Url, connected
from dbserve.errors import ConfigInvalid

commands = typer.Typer(help="Assembled models: list, show, download.", no_args_is_help=True)

ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="The model's id.")]


@commands.command("list")
def list_models(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Models, newest first."""
    from dbserve.cli_print import print_json_page, print_models

    with connected(url, api_key) as client:
        models = tuple(client.models())
    if as_json:
        print_json_page(models)
    else:
        print_models(models)


@commands.command()
def show(model: ModelId, url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """A model and where its blocks come from."""
    from dbserve.cli_print import print_json, print_model

    with connected(url, api_key) as client:
        found = client.model(model)
    if as_json:
        print_json(found)
    else:
        print_model(found)


@commands.command()
def download(
    model: ModelId,
    directory: Annotated[Path, typer.Option("-o", "--output", help="Written to DIR/MODEL.")] = Path(),
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model directory: model.json and one safetensors file per block."""
    import json

    with connected(url, api_key) as client:
        try:
            path = client.download_model(model, directory)
        except OSError as error:
            raise ConfigInvalid(f"cannot write to {directory}: {error.strerror or error}") from None
    typer.echo(json.dumps({"path": str(path)}) if as_json else str(path))


def architectures(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="Show this one's options.")] = None,
    as_json: AsJson = False,
) -> None:
    """The networks a job may name, and their options. Needs no server."""
    from dbserve.cards import list_cards, load_card
    from dbserve.cli_print import print_cards, print_json, print_json_page, print_options

    if kind is None:
        cards = list_cards()
        print_json_page(cards) if as_json else print_cards(cards)
    else:
        card = load_card(kind)
        print_json(card) if as_json else print_options(card)

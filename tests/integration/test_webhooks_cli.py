"""Webhooks from the command line, against a real server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dbserve.cli import cli
from dbserve.webhooks.signing import new_secret
from tests.integration.serving import serving, settings
from tests.receiver import receiving

Command = Callable[..., Result]


@pytest.fixture
def command(redis_url: str, api_directory: Path) -> Iterator[Command]:
    with serving(settings(redis_url, api_directory, webhook_private_hosts=True)) as url:
        yield lambda *words: CliRunner().invoke(cli, ["webhooks", *words], env={"DBSERVE_URL": url, "COLUMNS": "200"})


def test_a_webhook_is_made_tested_shown_and_deleted(command: Command, tmp_path: Path) -> None:
    key = tmp_path / "secret"
    key.write_text(f"{new_secret()}\n")
    with receiving(200, 500) as receiver:
        made = command("create", receiver.url, "--event", "job.failed", "--secret-file", str(key), "--json")
        webhook = json.loads(made.stdout)
        assert (webhook["events"], webhook["secret"]) == (["job.failed"], key.read_text().strip())
        accepted, refused = command("test", webhook["id"]), command("test", webhook["id"])
        assert (accepted.exit_code, accepted.stdout) == (0, "delivered: HTTP 200\n")
        assert (refused.exit_code, refused.stdout) == (1, "not delivered: HTTP 500\n")
    listed, shown = command("list"), command("show", webhook["id"])
    assert receiver.url in listed.stdout
    assert "nothing was sent yet" in shown.stdout
    assert webhook["secret"] not in listed.stdout + shown.stdout
    assert command("delete", webhook["id"]).exit_code == 0
    assert command("show", webhook["id"]).exit_code == 4
    assert "no webhooks" in command("list").stdout


def test_a_new_secret_is_printed_once(command: Command) -> None:
    made = command("create", "http://127.0.0.1:9/hook")
    assert "whsec_" in made.stdout
    assert "whsec_" not in command("list", "--json").stdout


@pytest.mark.parametrize("words", [("--event", "job.exploded"), ("--secret-file", "/nowhere/at/all")])
def test_what_cannot_be_asked_for_is_bad_input(command: Command, words: tuple[str, str]) -> None:
    made = command("create", "http://127.0.0.1:9/hook", *words)
    assert made.exit_code == 2
    assert "whsec_" not in made.output

"""What the commands share: options, the client they talk through, the job file they read."""

import contextlib
import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dbserve.errors import ConfigInvalid, DbserveError

if TYPE_CHECKING:  # httpx and pydantic would cost --help half a second
    from dbserve.client import Client
    from dbserve.contracts.job import JobSpec

Url = Annotated[str, typer.Option("--url", envvar="DBSERVE_URL", help="The server's address.")]
ApiKey = Annotated[str | None, typer.Option(envvar="DBSERVE_API_KEY", help="Better given as the variable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JobFile = Annotated[str, typer.Option("-f", "--file", help="A job in YAML or JSON; - reads stdin.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]

DEFAULT_URL = "http://127.0.0.1:8000"


@contextlib.contextmanager
def connected(url: str, api_key: str | None) -> "Generator[Client]":
    """DBSERVE_PROJECT names the project to act in, for a key of the whole deployment."""
    from dbserve.client import Client

    with Client(url, api_key, project=os.environ.get("DBSERVE_PROJECT")) as client:
        yield client


@contextlib.contextmanager
def about(file: str) -> Generator[None]:
    """Errors met inside are about this file, and say so."""
    try:
        yield
    except DbserveError as error:
        if isinstance(error, ConfigInvalid) or getattr(error, "faults", ()):
            error.add_note("stdin" if file == "-" else file)
        raise


def read_job_file(file: str) -> "JobSpec":
    """The job in a file or on stdin. Local relative uris mean files next to the file (stdin: the current directory).

    JSON is read as such by its first character, for a file of any name: a JSON text is not always YAML.
    """
    from dbserve.jobfile import read_job

    if file == "-":
        text, directory = sys.stdin.buffer.read(), Path.cwd()
    else:
        try:
            text, directory = Path(file).read_bytes(), Path(file).absolute().parent
        except OSError as error:
            raise ConfigInvalid(f"cannot be read: {error.strerror}") from None
    form = "json" if text.lstrip()[:1] == b"{" else "yaml"
    return read_job(text, form=form, directory=directory)

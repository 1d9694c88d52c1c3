"""`dbserve up`, for as long as something is measured."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from dbserve.client import Client


class Serving(NamedTuple):
    """A service that is up: a client of it, and the process that all its others are children of."""

    client: Client
    pid: int


@contextlib.contextmanager
def service(data_dir: Path, *arguments: str, **environment: str) -> Generator[Serving]:
    """`dbserve up`, with more arguments and variables where they are given.

    RuntimeError: it did not come up.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "dbserve", "up", "--data-dir", str(data_dir), "--port", str(port), *arguments]
    told = {**os.environ, **environment}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=told) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.wait, 60)
        stack.callback(process.send_signal, signal.SIGTERM)
        assert process.stdout is not None
        if not any("dbserve is up" in line for line in process.stdout):
            raise RuntimeError("dbserve up did not come up")
        yield Serving(stack.enter_context(Client(f"http://127.0.0.1:{port}")), process.pid)

"""How the processes of a simulation talk: JSON documents, one a line, over pipes and a local socket."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any


class Asked:
    """A child process that answers each line it is sent with one line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, what: str) -> Any:
        """Raises RuntimeError when the child has ended."""
        self.tell(what)
        return self.hear()

    def tell(self, what: str) -> None:
        """Without waiting for an answer. Raises RuntimeError when the child has ended."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{what}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError as ended:
            raise RuntimeError(f"{self.process.args!r} has ended") from ended

    def hear(self) -> Any:
        """The next line. Raises RuntimeError when there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} has ended")
        return json.loads(line)


def say(document: Any) -> None:
    """A line to whoever started this process."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


async def answer(questions: dict[str, Callable[[], Any]]) -> None:
    """Answers what comes on the standard input until it is closed."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        say(questions[line]())

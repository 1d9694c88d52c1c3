"""What the worker says, on its way to the store."""

import asyncio
import contextlib
import json
import logging
import sys
from collections import deque
from collections.abc import Generator, Iterable
from typing import cast

from pydantic import JsonValue

from dbserve.contracts.status import Run
from dbserve.errors import StoreUnavailable
from dbserve.logs import LineFormatter, Printer, about, adopt
from dbserve.redaction import Redactor
from dbserve.store import JobStore
from dbserve.store.history import Said

MOST_LINES, MOST_CHARACTERS = 2_000, 1024 * 1024  # kept for a store that is away; the oldest go first
BATCH_LINES, BATCH_CHARACTERS = 200, 256 * 1024  # of one write
PAUSE_SECONDS = 0.2  # between two writes: what a process that is killed may not have told

_OF_THE_RUN = {"timestamp", "level", "event", *about(Run(job_id="", task="", attempt=1))}  # the store has these already
_OURS = "dbserve.worker"  # the logger of nearly every line


class LogBuffer(logging.Handler):
    """Keeps what the worker says until the store has it. Lines are numbered, so that none is stored twice."""

    def __init__(self, run: Run | None = None, secrets: Iterable[str] = ()) -> None:
        """`run`: what every line is about. `secrets` are in none of them."""
        super().__init__(logging.INFO)
        self.redact = Redactor(secrets)
        self.setFormatter(LineFormatter(self.redact, fields=about(run) if run else None))
        self._lines: deque[Said] = deque()
        self._characters = 0  # of these lines
        self._said = 0  # the number of the last line
        self._shipped = 0  # the number of the last line that the store has
        self._in_doubt = False  # whether the store has those that were sent last
        self._shipping = asyncio.Lock()
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        fields = cast("dict[str, JsonValue]", json.loads(self.format(record)))
        message = str(fields["event"])
        rest = {name: value for name, value in fields.items() if name not in _OF_THE_RUN}
        if rest.get("logger") == _OURS:
            del rest["logger"]
        self._said += 1
        line = Said(record.created, record.levelname.lower(), message, rest, self._said)
        self._lines.append(line)
        self._characters += _length(line)
        while len(self._lines) > MOST_LINES or self._characters > MOST_CHARACTERS:
            self._drop_oldest()
        if self._loop is not None and not self._news.is_set():
            with contextlib.suppress(RuntimeError):  # the loop has ended; whoever ended it ships what is left
                self._loop.call_soon_threadsafe(self._news.set)

    async def ship(self, store: JobStore, run: Run) -> None:
        """Sends what has gathered, in batches; keeps what the store did not take. Raises StoreUnavailable."""
        async with self._shipping:
            last = self._said  # what is said meanwhile waits for the next time: this must come to an end
            while batch := self._batch(last):
                try:
                    await store.history.append_logs(run, batch, in_doubt=self._in_doubt)
                except BaseException:  # also when cancelled on the way
                    self._in_doubt = True
                    raise
                self._in_doubt = False
                with self._locked():
                    self._shipped = batch[-1].number
                    while self._lines and self._lines[0].number <= self._shipped:
                        self._drop_oldest()

    async def keep_shipping(self, store: JobStore, run: Run) -> None:
        """Ships whatever is said soon after it is, until cancelled. A store that is away is left to the heartbeat."""
        self._loop = asyncio.get_running_loop()
        self._news.set()  # of what was said before anybody listened
        while True:
            await self._news.wait()
            self._news.clear()
            with contextlib.suppress(StoreUnavailable):
                await self.ship(store, run)
            await asyncio.sleep(PAUSE_SECONDS)

    def _batch(self, last: int) -> list[Said]:
        """The oldest lines, as many as one write may have. Where lines before them were dropped, the first says so."""
        with self._locked():
            batch: list[Said] = []
            characters = 0
            for line in self._lines:
                characters += _length(line)
                if line.number > last or len(batch) >= BATCH_LINES or (batch and characters > BATCH_CHARACTERS):
                    break
                batch.append(line)
            if batch and (missing := batch[0].number - 1 - self._shipped):
                first = batch[0]
                told = f"{missing} lines before this one were dropped: more was said than the store could be told"
                batch.insert(0, Said(first.at, "warning", told, {"dropped": missing}, first.number - 1))
            return batch

    def _drop_oldest(self) -> None:
        self._characters -= _length(self._lines.popleft())

    def _locked(self) -> contextlib.AbstractContextManager[object]:
        """Against `emit`, which any thread calls."""
        return self.lock or contextlib.nullcontext()


@contextlib.contextmanager
def speaking(buffer: LogBuffer) -> Generator[None]:
    """All that this process logs goes to the buffer, and at once to stderr, which Ray keeps on the node.

    So do warnings, uncaught exceptions and Ray's own lines. What native code prints stays on stderr: a pipe through
    this process would lose the last words of one that dies, which are what one wants to read.
    """
    root, level = logging.getLogger(), logging.getLogger().level
    printer = Printer(sys.stderr)
    printer.setFormatter(buffer.formatter)
    adopt("ray")
    root.setLevel(logging.INFO)
    root.addHandler(printer)
    root.addHandler(buffer)
    try:
        yield
    finally:
        root.removeHandler(buffer)
        root.removeHandler(printer)
        root.setLevel(level)


def _length(line: Said) -> int:
    return len(line.message) + sum(len(str(value)) for value in line.fields.values())

"""What a worker says, on its way to the store."""

import contextlib
import logging
import traceback

from dbserve.contracts.status import Run
from dbserve.store import JobStore


class LogBuffer(logging.Handler):
    """Keeps what the worker says until the next heartbeat ships it to the store."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: list[tuple[float, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a line whose arguments do not fit it must not end the training
            message = str(record.msg)
        if record.exc_info:
            message += "\n" + "".join(traceback.format_exception(*record.exc_info))
        self._lines.append((record.created, record.levelname.lower(), message))

    async def ship(self, store: JobStore, run: Run) -> None:
        """Sends what has gathered; keeps it when the store is away."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            await store.history.append_logs(run, lines)
        except BaseException:  # also when cancelled on the way: rather twice than never
            with self.lock or contextlib.nullcontext():
                self._lines = lines + self._lines
            raise

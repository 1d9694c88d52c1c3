"""How a process of the service logs: one line for an event, with what it is about on it, and no secret in it.

Code says things through the standard library, with fields as `extra=`; structlog renders them. So lines of uvicorn, Ray
and whoever else come out the same way, and workers' mathematics need not know of any of this.
"""

import json
import logging
import math
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO, cast

import structlog
from pydantic import JsonValue
from structlog.contextvars import bound_contextvars, merge_contextvars
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict, Processor, WrappedLogger

from dbserve.contracts.status import Run
from dbserve.loglines import EXCEPTION, one_line
from dbserve.redaction import HIDDEN, Redactor, known_secrets, names_a_secret
from dbserve.settings import Settings

LONGEST_TEXT = 8_192  # characters of the event, or of one field
LONGEST_EXCEPTION = 16_384
LONGEST_LINE = 32_768  # of all fields together
MOST_ITEMS = 64  # of a list or an object in a field, and of fields
DEEPEST = 4

_FIRST: Final = ("timestamp", "level", "event", "job_id", "block", "task", "attempt", "request_id", "logger")
_JSON = json.JSONEncoder(allow_nan=False)
_OURS = {"timestamp", "level"}
_OF_EVERY_RECORD = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", "color_message"}


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Makes this process log to `stream` (stderr), as the settings say: JSON, or on a terminal readable lines."""
    chosen = stream or sys.stderr
    terminal = chosen.isatty()
    console = settings.log_format == "console" or (settings.log_format == "auto" and terminal)
    redactor = Redactor(secrets_of(settings, os.environ))
    handler = Printer(chosen)
    handler.setFormatter(LineFormatter(redactor, console=console, colours=terminal and not os.environ.get("NO_COLOR")))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for client in ("httpx", "httpcore"):  # they tell the URL of every request; a webhook's may be a credential itself
        logging.getLogger(client).setLevel(logging.WARNING)
    adopt()
    structlog.configure(
        processors=[
            merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def adopt(*loggers: str) -> None:
    """Lets what else would be printed come as log lines: of these libraries' loggers, warnings, uncaught exceptions."""
    for name in loggers:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def about(run: Run) -> dict[str, object]:
    """The fields of a line about a run. `block` is what metrics call it."""
    return {
        "job_id": run.job_id,
        "block": run.task.removeprefix("block-"),
        "task": run.task,
        "attempt": run.attempt,
    }


def concerning(run: Run) -> AbstractContextManager[None]:
    """Lines logged inside, in whatever this calls and waits for, are about the run."""
    return cast("AbstractContextManager[None]", bound_contextvars(**about(run)))


def secrets_of(settings: Settings, environment: Mapping[str, str]) -> set[str]:
    """What may not be seen of the settings, and of the rest of the process's environment."""
    return known_secrets({**environment, **settings.environment()})


class Printer(logging.StreamHandler[TextIO]):
    """Writes lines to a stream, each at once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A line that cannot be written is lost. The library would print it unrendered, secrets and all."""


class LineFormatter(ProcessorFormatter):
    """Any record as one line; `fields` stand on every one. Never raises, and never repeats what it could not render."""

    def __init__(
        self,
        redactor: Redactor,
        *,
        console: bool = False,
        colours: bool = False,
        fields: Mapping[str, object] | None = None,
    ) -> None:
        def described(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
            return _described(event, fields or {})

        def cleaned(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
            return _cleaned(event, redactor)

        ending: Iterable[Processor] = [_as_json]
        if console:
            plain = structlog.dev.ConsoleRenderer(
                colors=colours, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0, sort_keys=False
            )
            ending = [_on_one_line, plain]
        super().__init__(
            foreign_pre_chain=[merge_contextvars],
            processors=[described, structlog.processors.format_exc_info, cleaned, *ending],
        )

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(_sayable(record))
        except Exception as error:  # a line must not end what it tells of
            return super().format(logging.makeLogRecord(_unsayable(record, error)))


def _sayable(record: logging.LogRecord) -> logging.LogRecord:
    """The record, with its arguments behind its message where they do not fit it."""
    try:
        record.getMessage()
    except (TypeError, ValueError, KeyError):
        record = logging.makeLogRecord({**record.__dict__, "msg": f"{record.msg} {record.args!r}", "args": None})
    return record


def _unsayable(record: logging.LogRecord, error: Exception) -> dict[str, object]:
    said = f"a line of {record.pathname}:{record.lineno} could not be rendered: {type(error).__name__}"
    return {"name": record.name, "levelno": record.levelno, "levelname": record.levelname, "msg": said}


def _described(event: EventDict, fields: Mapping[str, object]) -> EventDict:
    """Puts when, how grave, who and about what before the rest."""
    record = cast(logging.LogRecord, event.pop("_record"))
    if not event.pop("_from_structlog"):
        for name, value in record.__dict__.items():
            if name not in _OF_EVERY_RECORD and not name.startswith("_"):
                event.setdefault(name, value)
    given = {
        **fields,
        **event,
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")[:-6] + "Z",
        "level": record.levelname.lower(),
        "logger": record.name,
    }
    return {name: given[name] for name in _FIRST if name in given} | given


def _cleaned(event: EventDict, redactor: Redactor) -> EventDict:
    """Without secrets, and no longer than a line may be. What it was made of is left as it is."""
    left = LONGEST_LINE
    line: EventDict = {}
    for number, (name, value) in enumerate(event.items()):
        if number >= MOST_ITEMS or left <= 0:
            line["left_out"] = f"{len(event) - number} fields"
            break
        if name in _OURS:
            line[name] = value
            continue
        longest = min(left, LONGEST_EXCEPTION if name == EXCEPTION else LONGEST_TEXT)
        shown = _shown(name, value, redactor, DEEPEST)
        if isinstance(shown, dict | list) and len(text := str(shown)) > longest:
            shown = text
        if isinstance(shown, str):
            shown = shortened(shown, longest)
            left -= len(shown)
        elif isinstance(shown, dict | list):
            left -= len(str(shown))
        line[redactor(name)] = shown
    return line


def shortened(text: str, longest: int) -> str:
    """Begin and end of a text that is too long: a traceback says what happened in its last line."""
    if len(text) <= longest:
        return text
    begin = longest * 2 // 3
    end = longest - begin
    return f"{text[:begin]} [{len(text) - longest} characters left out] {text[len(text) - end :]}"


def _shown(name: str, value: object, redactor: Redactor, depth: int) -> JsonValue:
    """A field as JSON can say it. The name tells of some that they are secrets."""
    if isinstance(value, bool) or value is None:
        return value
    if names_a_secret(name):
        return HIDDEN
    match value:
        case str():
            return redactor(value)
        case int() | float():
            finite = isinstance(value, int) or math.isfinite(value)  # JSON knows no other numbers
            if finite and not redactor.hides_numbers:
                return value
            text = redactor(repr(value))
            return value if finite and text == repr(value) else text
        case Mapping() if depth > 0:
            items = list(cast("Mapping[object, object]", value).items())[:MOST_ITEMS]
            return {redactor(str(key)): _shown(str(key), item, redactor, depth - 1) for key, item in items}
        case list() | tuple() | set() | frozenset() if depth > 0:
            members = list(cast("Iterable[object]", value))[:MOST_ITEMS]
            return [_shown(name, item, redactor, depth - 1) for item in members]
        case _:
            return redactor(str(value))


def _as_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return _JSON.encode(event)


def _on_one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """For a terminal, which must not be steered by what a stranger sent. Tracebacks keep their lines there."""
    shown = {name: one_line(value) if isinstance(value, str) else value for name, value in event.items()}
    if EXCEPTION in event:
        shown[EXCEPTION] = "\n".join(map(one_line, str(event[EXCEPTION]).splitlines()))
    return shown


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> Any:
    if issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, traceback)
    return logging.getLogger("dbserve").critical("uncaught: %s", kind.__name__, exc_info=(kind, error, traceback))


def _uncaught_in_thread(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is not None and not isinstance(failure.exc_value, SystemExit):
        name = failure.thread.name if failure.thread else "a thread"
        told = (failure.exc_type, failure.exc_value, failure.exc_traceback)
        logging.getLogger("dbserve").error("%s ended: %s", name, failure.exc_type.__name__, exc_info=told)

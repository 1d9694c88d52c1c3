"""What a process logs: lines that a program reads, lines that people read, and nothing that steers their terminal."""

import asyncio
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import structlog

from dbserve.contracts.status import Run
from dbserve.loglines import at_least, log_text
from dbserve.logs import (
    LONGEST_EXCEPTION,
    LONGEST_LINE,
    LONGEST_TEXT,
    LineFormatter,
    Printer,
    about,
    concerning,
    configure,
)
from dbserve.redaction import Redactor
from dbserve.settings import read_settings

RUN = Run(job_id="j1", task="block-0", attempt=2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """`configure` is for a process of its own; this one goes on."""
    root = logging.getLogger()
    handlers, level, hooks = root.handlers[:], root.level, (sys.excepthook, threading.excepthook)
    logging.captureWarnings(False)  # whoever captured them before: pytest has taken them back since
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def out() -> io.StringIO:
    """What a process writes whose stderr is no terminal."""
    stream = io.StringIO()
    configure(read_settings(), stream)
    return stream


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def fail() -> None:
    raise ValueError("two\nlines")


def test_an_event_is_one_line_with_when_how_grave_who_and_what(out: io.StringIO) -> None:
    logging.getLogger("dbserve.test").warning("two\nlines of %s", "text", extra={"step": 3})
    assert out.getvalue().count("\n") == 1
    [line] = lines(out)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"level": "warning", "event": "two\nlines of text", "logger": "dbserve.test", "step": 3}
    assert list(lines(out)[0]) == ["timestamp", "level", "event", "logger", "step"]


def test_a_traceback_is_one_field(out: io.StringIO) -> None:
    try:
        fail()
    except ValueError:
        logging.getLogger("dbserve.test").exception("it failed")
    [line] = lines(out)
    assert line["event"] == "it failed"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: two\nlines")


def test_lines_are_about_the_run_in_whose_course_they_are_said_in_other_threads_too(out: io.StringIO) -> None:
    log = logging.getLogger("some.library")

    async def act() -> None:
        with concerning(RUN):
            await asyncio.to_thread(log.info, "inside")
        log.info("outside")

    asyncio.run(act())
    inside, outside = (line for line in lines(out) if line["logger"] == "some.library")
    assert {name: inside[name] for name in about(RUN)} == {
        "job_id": "j1",
        "block": "0",
        "task": "block-0",
        "attempt": 2,
    }
    assert not about(RUN).keys() & outside.keys()


def test_libraries_warnings_and_threads_that_die_come_out_the_same_way(out: io.StringIO) -> None:
    logging.getLogger("a.server").info("Started", extra={"color_message": "\x1b[1mStarted"})
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    thread = threading.Thread(target=fail, name="saver")
    thread.start()
    thread.join()
    structlog.get_logger("ours").info("by %s", "structlog", step=1)
    started, warned, died, ours = lines(out)
    assert "color_message" not in started
    assert (warned["logger"], warned["level"]) == ("py.warnings", "warning")
    assert (died["event"], died["level"]) == ("saver ended: ValueError", "error")
    assert "two\nlines" in died["exception"]
    assert (ours["event"], ours["step"], ours["logger"]) == ("by structlog", 1, "ours")


def test_an_error_that_nobody_met_is_one_line(out: io.StringIO) -> None:
    try:
        fail()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    [line] = lines(out)
    assert (line["level"], line["event"]) == ("critical", "uncaught: ValueError")


class Unsayable:
    def __str__(self) -> str:
        raise RuntimeError("secret")


@pytest.mark.parametrize("arguments", [("%d of %d", 1), ("%s", Unsayable())])
def test_a_line_that_cannot_be_rendered_ends_nothing(arguments: tuple[Any, ...]) -> None:
    log = logging.Logger("x")  # alone: the test's own capture would raise
    printer = Printer(out := io.StringIO())
    printer.setFormatter(LineFormatter(Redactor(())))
    log.addHandler(printer)
    log.info(*arguments)
    log.info("next", extra={"given": Unsayable(), "nan": float("nan")})
    first, second = lines(out)
    assert first["level"] == second["level"] == "info"
    assert "secret" not in out.getvalue()


def test_requests_that_we_make_are_not_told_since_their_urls_may_be_credentials(out: io.StringIO) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        client.post("https://hooks.example.com/services/T000/B000/XXXX")
    assert "XXXX" not in out.getvalue()


def test_a_huge_line_is_cut_and_keeps_its_end(out: io.StringIO) -> None:
    log = logging.getLogger("x")
    log.info("begin %s end", "x" * 1_000_000)
    log.info("many", extra={f"field{n}": "x" * 5000 for n in range(100)})
    try:
        raise ValueError("x" * 100_000 + " the reason")
    except ValueError:
        log.exception("failed")
    text, many, failed = lines(out)
    assert len(text["event"]) < LONGEST_TEXT + 100
    assert text["event"].startswith("begin")
    assert text["event"].endswith("end")
    assert len(json.dumps(many)) < LONGEST_LINE + 2000
    assert many["left_out"] == "93 fields"
    assert len(failed["exception"]) < LONGEST_EXCEPTION + 100
    assert failed["exception"].endswith("the reason")


def test_a_terminal_gets_lines_for_people_that_cannot_steer_it() -> None:
    out = Terminal()
    configure(read_settings(), out)
    logging.getLogger("x").info("forged\n2026 [info] line \x1b[2J", extra={"path": "/\x1b[2J\r\n"})
    assert out.getvalue().count("\n") == 1
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logging.getLogger("x").exception("failed")
    written = out.getvalue()
    assert "\nTraceback" in written, "for people"
    assert "\x1b[2J" not in written
    assert "forged\\n2026" in written


@pytest.mark.parametrize(("asked", "terminal", "json_expected"), [("json", True, True), ("console", False, False)])
def test_the_format_may_be_chosen(asked: str, terminal: bool, json_expected: bool) -> None:
    out = Terminal() if terminal else io.StringIO()
    configure(read_settings(log_format=asked), out)
    logging.getLogger("x").info("said")
    assert out.getvalue().startswith("{") is json_expected


def test_a_stream_that_is_gone_does_not_end_who_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    configure(read_settings(), out)
    out.close()
    logging.getLogger("x").info("password %s", "hunter2")
    assert capsys.readouterr().err == "", "the library would print the line as it stands"


def test_fields_of_the_process_stand_on_every_line() -> None:
    record = logging.getLogger("x").makeRecord("x", logging.INFO, "f", 1, "said", (), None)
    line = json.loads(LineFormatter(Redactor(()), fields=about(RUN)).format(record))
    assert (line["job_id"], line["attempt"]) == ("j1", 2)


def test_a_line_for_people_has_its_fields_behind_and_its_traceback_below() -> None:
    text = log_text("12:00Z", "block-0#2", "error", "failed\x1b", {"step": 3, "why": "a b", "exception": "T:\n  x"})
    assert text == '12:00Z block-0#2 error   failed\\x1b step=3 why="a b"\n    T:\n      x'


@pytest.mark.parametrize(
    ("level", "wanted", "shown"),
    [
        ("info", None, True),
        ("INFO", "info", True),
        ("info", "warning", False),
        ("error", "warning", True),
        ("notice", "critical", True),
    ],
)
def test_a_level_is_asked_for_with_all_above_it(level: str, wanted: Any, shown: bool) -> None:
    assert at_least(level, wanted) is shown

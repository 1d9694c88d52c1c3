"""Log lines as people read them, and which level is above which. Pure."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, get_args

if TYPE_CHECKING:  # the command line asks for the levels, and pydantic would cost --help half a second
    from pydantic import JsonValue

Level = Literal["debug", "info", "warning", "error", "critical"]

LEVELS: Final[tuple[str, ...]] = get_args(Level)
EXCEPTION: Final = "exception"  # the field that holds a traceback


def at_least(level: str, wanted: Level | None) -> bool:
    """Whether a line of `level` is wanted by who asks for `wanted` and above; a level that nobody knows always is."""
    level = level.lower()
    return wanted is None or level not in LEVELS or LEVELS.index(level) >= LEVELS.index(wanted)


def one_line(text: str) -> str:
    """The text with what would begin another line, or steer a terminal, written as an escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def log_text(when: str, place: str, level: str, message: str, fields: "Mapping[str, JsonValue]") -> str:
    """A line: its fields as key=value behind the message. What has lines of its own follows, indented."""
    first, *more = message.splitlines() or [""]
    shown = (f" {one_line(name)}={_value(value)}" for name, value in fields.items() if name != EXCEPTION)
    head = f"{when} {place} {level:<7} {one_line(first)}{''.join(shown)}"
    more += str(fields.get(EXCEPTION, "")).splitlines()
    return "\n    ".join((head, *map(one_line, more)))


def _value(value: "JsonValue") -> str:
    if isinstance(value, str) and value and not any(char in value for char in ' "=\\') and value.isprintable():
        return value
    return json.dumps(value, ensure_ascii=True)

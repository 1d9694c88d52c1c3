"""Reading Server-Sent Events (WHATWG HTML, section 9.2) from a stream of bytes."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Message(NamedTuple):
    """One event. `id` is the last id the stream has set."""

    event: str
    id: str | None
    data: str


def messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    """The events of a stream, comments left out. One that is cut off by the end of the stream is dropped."""
    event, last_id, data = "message", None, list[str]()
    for line in _lines(chunks):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Message(event, last_id, "\n".join(data))
            event, data = "message", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            event = value
        elif name == "id":
            last_id = value


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Split at line feeds alone: str.splitlines would also cut at characters that a log line may hold."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")

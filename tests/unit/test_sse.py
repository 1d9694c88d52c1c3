"""Reading Server-Sent Events."""

import pytest
from sse_starlette.event import ServerSentEvent

from dbserve.sse import Message, messages

TRICKY = "a line separator \u2028, a next line \x85 and a tab \t"
STREAM = (
    b": heartbeat\n\n"
    + ServerSentEvent('{"a":1}', event="started", id="5-0", sep="\n").encode()
    + ServerSentEvent("two\nlines", id="5-1", sep="\r\n").encode()
    + ServerSentEvent(TRICKY, event="log", sep="\n").encode()
    + b"event: cut off\ndata: never end"
)


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_messages_are_the_same_however_the_bytes_arrive(size: int) -> None:
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert list(messages(chunks)) == [
        Message("started", "5-0", '{"a":1}'),
        Message("message", "5-1", "two\nlines"),
        Message("log", "5-1", TRICKY),
    ]

"""One message over the wire, to receivers that are hard to reach or that talk nonsense."""

import contextlib
import socket
import threading
from collections.abc import Generator

import pytest

from dbserve.contracts.webhook import Answer, Topic, Webhook
from dbserve.webhooks import posting
from dbserve.webhooks.posting import Poster
from dbserve.webhooks.signing import new_secret, ping_of
from tests.receiver import receiving

SECRET_PATH = "/services/T0/B0/very-secret"


async def posted(url: str, *, seconds: float = 10.0) -> Answer:
    webhook = Webhook(id="w1", url=url, events=tuple(Topic), secret=new_secret(), created_at=0.0)
    return await Poster(private_hosts=True, timeout_seconds=seconds).post(webhook, ping_of(webhook, now=0.0))


@contextlib.contextmanager
def black_hole(address: str, port: int) -> Generator[None]:
    """An end that answers no attempt to connect: its queue is full, and nobody takes from it."""
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((address, port))
        yield


async def test_a_receiver_is_reached_though_its_first_address_swallows_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _lead_to(monkeypatch, "127.0.0.2", "127.0.0.1")
    with receiving() as receiver, black_hole("127.0.0.2", receiver.server.server_address[1]):
        answer = await posted(receiver.url, seconds=2.0)
    assert (answer.code, answer.error) == (200, None)
    assert len(receiver.sent) == 1


async def test_a_receiver_all_of_whose_addresses_swallow_everything_has_not_answered_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _lead_to(monkeypatch, "127.0.0.2", "127.0.0.2")
    with receiving() as receiver, black_hole("127.0.0.2", receiver.server.server_address[1]):
        answer = await posted(receiver.url, seconds=0.2)
    assert answer == Answer(error="no answer within 0.2 s")


def _lead_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Every name has these addresses."""

    def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    monkeypatch.setattr(posting, "_resolve", resolve)


async def test_what_went_wrong_does_not_repeat_the_path_though_the_receiver_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        echo = threading.Thread(target=_echo, args=(listener,))
        echo.start()
        answer = await posted(f"http://127.0.0.1:{listener.getsockname()[1]}{SECRET_PATH}")
        echo.join(10)
    assert answer == Answer(error="RemoteProtocolError: illegal status line")


def _echo(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(connection.recv(65_536))

"""The line between the leading worker of a task and another one: a TCP connection, at whose end both know of it.

Frames are 4 bytes of length (big-endian) and JSON. The other worker says first who it is, and the secret that it was
called with; the leader answers with its letter. From then on each says something once a second: who has heard nothing
for `silence` seconds, because the other is gone, is stopped or cannot be reached, takes it to be gone.
"""

import contextlib
import hmac
import logging
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, ValidationError

BEAT_SECONDS = 1.0
GREETING_SECONDS = 10.0  # in which whoever connects must have said who it is
_GREETING_BYTES = 4096
_LONGEST = 256 * 1024 * 1024  # bytes of a frame from somebody who knew the secret
_LENGTH = struct.Struct("!I")

log = logging.getLogger("dbserve.worker")


class Greeting(BaseModel, frozen=True):
    """Who connects."""

    secret: str
    rank: int
    node: str  # its host's name
    gpu: str | None = None  # its UUID


class Word(BaseModel, frozen=True):
    """What the leader is told by another worker, or, as a beat alone, tells it."""

    kind: Literal["beat", "ready", "log", "wanted", "failed", "done"] = "beat"
    level: int = logging.INFO  # of a line of its log
    text: str = ""
    reason: str = ""  # of what has failed, as dbserve.contracts.status.Reason has it


class Line:
    """One end of it. What is sent may come from several threads; one receives."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    @property
    def here(self) -> str:
        """This machine's address, as the other end sees it."""
        return str(self._connection.getsockname()[0])

    def send(self, said: BaseModel) -> None:
        """Raises OSError where the other end is gone, or takes nothing for as long as silence may last."""
        frame = said.model_dump_json().encode()
        with self._sending:
            self._connection.sendall(_LENGTH.pack(len(frame)) + frame)

    def receive(self, most: int = _LONGEST) -> bytes:
        """The next frame. Raises TimeoutError after silence, OSError where the other end is gone."""
        (size,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if size > most:
            raise ConnectionError(f"a frame of {size:,} bytes, more than {most:,}")
        return self._exactly(size)

    def silence(self, seconds: float) -> None:
        """How long the other end may say nothing."""
        self._connection.settimeout(seconds)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = self._connection.recv(min(size, 1 << 20))
            if not part:
                raise ConnectionError("the other end has closed the line")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def dial(host: str, port: int, greeting: Greeting, silence: float) -> Line:
    """The other worker's end, greeted. Raises OSError where nobody listens there."""
    line = Line(socket.create_connection((host, port), timeout=GREETING_SECONDS))
    line.silence(silence)
    line.send(greeting)
    return line


def keep_beating(lines: Callable[[], Sequence[Line]]) -> threading.Event:
    """Sends beats until the event that it returns is set; a line that takes none is its receiver's affair."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            for line in lines():
                with contextlib.suppress(OSError):
                    line.send(Word())

    threading.Thread(target=beat, name="beat", daemon=True).start()
    return over


class Switchboard:
    """The leader's ends of all lines: it lets in who knows the secret, once for every rank, and hears what they say.

    `hears` is called for every word but beats, `loses` once with whoever is gone without having said that it is done;
    both in threads of their own.
    """

    def __init__(
        self,
        host: str,
        secret: str,
        letter: BaseModel,
        *,
        size: int,
        silence: float,
        hears: Callable[[int, Word], None],
        loses: Callable[[int, str], None],
    ) -> None:
        self._secret, self._letter, self._size, self._silence = secret, letter, size, silence
        self._hears, self._loses = hears, loses
        self._lines: dict[int, Line] = {}
        self._greetings: dict[int, Greeting] = {}
        self._changed = threading.Lock()
        self._closed = False
        self._listening = socket.create_server((host, 0), backlog=size)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, name="switchboard", daemon=True).start()
        self._over = keep_beating(self._all)

    @property
    def greetings(self) -> dict[int, Greeting]:
        """Of those that have come, by rank."""
        with self._changed:
            return dict(self._greetings)

    def close(self) -> None:
        """Ends every line, and with it whoever is at the other end."""
        with self._changed:
            self._closed = True
        self._over.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for line in self._all():
            line.close()

    def _all(self) -> Sequence[Line]:
        with self._changed:
            return [*self._lines.values()]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(Line(connection),), name="line", daemon=True).start()

    def _serve(self, line: Line) -> None:
        rank = self._greeted(line)
        if rank is None:
            line.close()
            return
        why = "it has closed the line"
        try:
            line.send(self._letter)  # before any beat: it is the first word that is waited for
            with self._changed:
                self._lines[rank] = line
                closed = self._closed
            if closed:  # meanwhile
                line.close()
            while True:
                word = Word.model_validate_json(line.receive())
                if word.kind == "done":
                    return
                if word.kind != "beat":
                    self._hears(rank, word)
        except TimeoutError:
            why = f"it has not been heard of for {self._silence:.0f} s"
        except (OSError, ValidationError) as error:
            why = str(error)
        if not self._closed:
            self._loses(rank, why)

    def _greeted(self, line: Line) -> int | None:
        """The rank of who connects; None: a stranger, who is told nothing."""
        line.silence(GREETING_SECONDS)
        try:
            greeting = Greeting.model_validate_json(line.receive(_GREETING_BYTES))
        except (OSError, ValidationError) as error:
            log.warning("somebody called who is no worker of this task: %s", type(error).__name__)
            return None
        with self._changed:
            known = hmac.compare_digest(greeting.secret.encode(), self._secret.encode())
            if not known or self._closed or greeting.rank in self._greetings or not 0 < greeting.rank < self._size:
                log.warning("a worker that was not called was turned away")
                return None
            line.silence(self._silence)
            self._greetings[greeting.rank] = greeting
        return greeting.rank

"""The line between a leading worker and the others: who is let in, what is heard, and who is taken to be gone."""

import contextlib
import socket
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from dbserve.contracts.plan import TaskPlan
from dbserve.contracts.status import Reason
from dbserve.errors import WorkerLost
from tests.training import dataset, planned, spec_of
from workers import parallel
from workers.group import LOOPBACK, Together
from workers.line import Greeting, Line, Switchboard, Word, dial
from workers.orders import Orders
from workers.parallel import Call, Death, Watch, leading
from workers.subprocesses import Subprocesses

SECRET = "a" * 64


class Heard:
    def __init__(self) -> None:
        self.words: list[tuple[int, Word]] = []
        self.lost: list[tuple[int, str]] = []
        self.changed = threading.Condition()

    def hears(self, rank: int, word: Word) -> None:
        with self.changed:
            self.words.append((rank, word))
            self.changed.notify_all()

    def loses(self, rank: int, why: str) -> None:
        with self.changed:
            self.lost.append((rank, why))
            self.changed.notify_all()

    def until(self, true: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, timeout=60)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def board(heard: Heard) -> Iterator[Switchboard]:
    letter = Word(text="the letter")
    opened = Switchboard(LOOPBACK, SECRET, letter, size=3, silence=60.0, hears=heard.hears, loses=heard.loses)
    yield opened
    opened.close()


def call(board: Switchboard, rank: int = 1, secret: str = SECRET) -> Line:
    return dial(LOOPBACK, board.port, Greeting(secret=secret, rank=rank, node="n", gpu="GPU-a"), silence=60.0)


def test_who_knows_the_secret_gets_the_letter_and_is_heard(board: Switchboard, heard: Heard) -> None:
    line = call(board)
    assert Word.model_validate_json(line.receive()).text == "the letter"
    assert board.greetings[1].gpu == "GPU-a"
    line.send(Word())
    line.send(Word(kind="log", text="hello"))
    heard.until(lambda: len(heard.words) == 1)
    assert heard.words[0] == (1, Word(kind="log", text="hello"))
    line.close()


def test_no_beat_comes_before_the_letter(heard: Heard) -> None:
    class Long(Word):
        """While it is written down it is time for a beat."""

        def model_dump_json(self, **how: Any) -> str:
            for line in board._all():  # pyright: ignore[reportPrivateUsage]
                line.send(Word())
            return super().model_dump_json(**how)

    letter = Long(text="the letter")
    board = Switchboard(LOOPBACK, SECRET, letter, size=3, silence=60.0, hears=heard.hears, loses=heard.loses)
    try:
        line = call(board)
        assert Word.model_validate_json(line.receive()).text == "the letter"
        line.close()
    finally:
        board.close()


@pytest.mark.parametrize(("rank", "secret"), [(1, "b" * 64), (0, SECRET), (3, SECRET), (-1, SECRET)])
def test_strangers_and_ranks_that_there_are_none_of_are_told_nothing(
    board: Switchboard, rank: int, secret: str
) -> None:
    stranger = call(board, rank, secret)
    with pytest.raises(ConnectionError):
        stranger.receive()
    stranger.close()
    assert not board.greetings


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2{}", b"\xff" * 8], ids=repr)
def test_what_is_no_greeting_is_turned_away(board: Switchboard, said: bytes) -> None:
    with socket.create_connection((LOOPBACK, board.port), timeout=60) as stranger:
        stranger.sendall(said)
        with contextlib.suppress(OSError):  # where it was not heard to the end
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b""
    call(board).close()


def test_no_rank_is_taken_twice(board: Switchboard) -> None:
    first = call(board)
    first.receive()
    second = call(board)
    with pytest.raises(ConnectionError):
        second.receive()
    first.close()
    second.close()


def test_one_that_closes_its_line_is_lost_unless_it_was_done(board: Switchboard, heard: Heard) -> None:
    done, gone = call(board, 1), call(board, 2)
    done.send(Word(kind="done"))
    done.close()
    gone.close()
    heard.until(lambda: bool(heard.lost))
    assert heard.lost == [(2, "the other end has closed the line")]


def test_one_that_is_not_heard_of_is_lost(heard: Heard) -> None:
    board = Switchboard(LOOPBACK, SECRET, Word(), size=2, silence=0.2, hears=heard.hears, loses=heard.loses)
    line = call(board)
    heard.until(lambda: bool(heard.lost))
    assert heard.lost == [(1, "it has not been heard of for 0 s")]
    line.close()
    board.close()


def test_the_leaders_beats_come_and_end_with_it(board: Switchboard) -> None:
    line = call(board)
    line.receive()
    assert Word.model_validate_json(line.receive()) == Word()
    board.close()
    with pytest.raises(ConnectionError):
        listen_to_the_end(line)
    line.close()


def listen_to_the_end(line: Line) -> None:
    for _ in range(1000):
        line.receive()


class Threads(Subprocesses):
    """A crew whose workers do what a test says, in threads."""

    def hire(self, call: Call) -> "Thread":  # pyright: ignore[reportIncompatibleMethodOverride]
        return Thread(self.acts(call))

    def acts(self, call: Call) -> Callable[[], None]:
        raise NotImplementedError


class Thread:
    def __init__(self, act: Callable[[], None]) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._acting = self._pool.submit(act)

    def death(self, wait: float) -> Death | None:
        return None

    def end(self) -> None:
        self._acting.result(60)
        self._pool.shutdown()


def lead(crew: Subprocesses) -> WorkerLost:
    spec = spec_of()
    plan = planned(spec)
    task: TaskPlan = plan.task("block-0")
    with (
        pytest.raises(WorkerLost) as raised,
        leading(Orders(spec, plan, task, dataset().train), torch.device("cpu"), crew),
    ):
        raise AssertionError("it was led")
    return raised.value


def test_a_worker_that_does_not_come_is_said_to_be_late() -> None:
    class Absent(Threads):
        def acts(self, call: Call) -> Callable[[], None]:
            return lambda: None

    lost = lead(Absent(2, threads=1, come_seconds=0.0))
    assert str(lost) == "block-0: worker 1 of 2 did not come within 0 s of its call"


def test_a_worker_that_fails_tells_why_and_what_follows_from_it_is_not_the_reason() -> None:
    class Failing(Threads):
        def acts(self, call: Call) -> Callable[[], None]:
            failures = {
                1: Word(kind="failed", text="RuntimeError: connection reset", reason=Reason.WORKER_ERROR),
                2: Word(kind="failed", text="OutOfMemoryError: CUDA out of memory", reason=Reason.GPU_OOM),
            }

            def fail() -> None:
                greeting = Greeting(secret=call.secret, rank=call.rank, node="n")
                line = dial(call.host, call.port, greeting, silence=60.0)
                line.receive()
                line.send(failures[call.rank])
                line.close()

            return fail

    lost = lead(Failing(3, threads=1))
    assert str(lost) == "block-0: worker 2 of 3 failed: OutOfMemoryError: CUDA out of memory"
    assert lost.reason == Reason.GPU_OOM


def test_a_leader_that_saves_is_not_taken_to_hang_and_one_that_hangs_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[WorkerLost] = []
    watch = Watch(planned(spec_of()).task("block-0"), Subprocesses(2, threads=1, when_stuck=told.append))
    watch.hired[1] = Thread(lambda: None)
    watch.away.set()

    class Turns:
        """The third time that it is waited, the training is in a call again."""

        waits = 0

        def wait(self, _seconds: float) -> bool:
            self.waits += 1
            if self.waits == 3:
                watch.away.clear()
            return False

    monkeypatch.setattr(watch, "_over", Turns())
    watch.loses(1, "the other end has closed the line")
    assert watch._over.waits == 3  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    assert [str(lost) for lost in told] == ["block-0: worker 1 of 2 is lost: the other end has closed the line"]


def test_what_a_worker_lost_does_to_a_call_of_who_saves_is_said_of_that_worker() -> None:
    watch = Watch(planned(spec_of()).task("block-0"), Subprocesses(2, threads=1))
    watch.hired[1] = Thread(lambda: None)
    watch.away.set()
    within: list[bool] = []

    def capture() -> None:
        within.append(watch.away.is_set())
        watch._lost[1] = "the other end has closed the line"  # pyright: ignore[reportPrivateUsage]
        raise RuntimeError("Connection closed by peer [127.0.0.1]:4711")

    with pytest.raises(WorkerLost, match="worker 1 of 2 is lost: the other end has closed the line"):
        watch.in_call(capture)
    assert within == [False]
    assert watch.away.is_set()


def test_a_worker_that_cannot_read_its_letter_tells_its_leader(board: Switchboard, heard: Heard) -> None:
    call = Call(
        rank=1,
        size=3,
        host=LOOPBACK,
        port=board.port,
        store_port=1,
        secret=SECRET,
        silence_seconds=60.0,
        threads=1,
        device="cpu",
    )
    hired = Subprocesses(3, threads=1).hire(call)
    try:
        heard.until(lambda: bool(heard.lost))
    finally:
        hired.end()
    [(rank, word)] = heard.words
    assert (rank, word.kind) == (1, "failed")
    assert "validation errors for Letter" in word.text


class Patient(Threads):
    """Its worker comes, and stays until its line is closed."""

    def __init__(self) -> None:
        super().__init__(2, threads=1)
        object.__setattr__(self, "gone", threading.Event())

    gone: threading.Event

    def acts(self, call: Call) -> Callable[[], None]:
        def stay() -> None:
            line = dial(call.host, call.port, Greeting(secret=call.secret, rank=call.rank, node="n"), silence=60.0)
            line.receive()
            line.send(Word(kind="ready"))
            with contextlib.suppress(ConnectionError):
                listen_to_the_end(line)
            self.gone.set()
            line.close()

        return stay


@pytest.mark.parametrize("early", [True, False])
def test_a_training_that_is_ended_early_ends_the_others_before_their_group(
    monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    crew = Patient()
    stayed: list[bool] = []

    @contextlib.contextmanager
    def group(*_: object, **__: object) -> Generator[Together, None, None]:
        try:
            yield Together(0, 2, None, torch.device("cpu"))
        finally:
            stayed.append(not crew.gone.wait(60 if early else 0))

    monkeypatch.setattr(parallel, "together", group)
    spec = spec_of()
    orders = Orders(spec, planned(spec), planned(spec).task("block-0"), dataset().train)
    with contextlib.suppress(GeneratorExit), leading(orders, torch.device("cpu"), crew):
        if early:
            raise GeneratorExit
    assert stayed == [not early]

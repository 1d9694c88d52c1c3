"""A task of several workers, from the leading one's side: it calls the others, tells them, and ends them.

Rank 0 is the calling process. How the others are got is a Crew's affair: as processes of this machine
(workers.subprocesses), or through Ray on any node (workers.replicas). They connect to the leader's switchboard, build
the same network from the same seeds, take over rank 0's state, and take their parts of every step; gradients are summed
up by all-reduce. When the line closes, because the leader is done or gone, they end themselves.
"""

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import NamedTuple, Protocol, TypeVar

import torch
from pydantic import BaseModel

from dbserve.contracts.plan import TaskPlan
from dbserve.contracts.status import Reason
from dbserve.errors import DbserveError, WorkerLost
from workers.group import Together, leading_store, together
from workers.line import Switchboard, Word
from workers.orders import Orders, Rows, letter_of, shared_start
from workers.sharding import is_sharded

STOP_SECONDS = 10.0
SETTLE_SECONDS = 0.5  # after the first bad news: what one worker's death does to the others is heard first at times
_LOOK_SECONDS = 1.0

T = TypeVar("T")

log = logging.getLogger("dbserve.worker")


class Call(BaseModel, frozen=True):
    """What another worker is called with: enough to find its leader. Secret, as it lets in whoever has it."""

    rank: int
    size: int
    host: str  # where its leader is reached
    port: int  # of the switchboard
    store_port: int  # of the store through which process groups meet
    secret: str
    silence_seconds: float
    threads: int
    device: str


class Death(NamedTuple):
    """How another worker ended."""

    how: str  # e.g. "died (signal 9)"
    reason: str = ""  # as dbserve.contracts.status.Reason has it; "": it is lost


class Hired(Protocol):
    """Another worker, as its leader holds it."""

    def death(self, wait: float) -> Death | None:
        """How it ended, looked for over so many seconds; None: it has not, or nobody knows."""
        ...

    def end(self) -> None:
        """Ends it, if it does not by itself."""
        ...


class Crew(Protocol):
    """How a task's other workers are got."""

    @property
    def size(self) -> int:
        """Workers in all, the leading one included."""
        ...

    @property
    def host(self) -> str:
        """This machine's address, as the others reach it."""
        ...

    @property
    def threads(self) -> int:
        """Of each worker; the leading one's for as long as it leads."""
        ...

    @property
    def come_seconds(self) -> float:
        """In which every worker must have come."""
        ...

    @property
    def silence_seconds(self) -> float:
        """A worker that is not heard of for so long is gone."""
        ...

    def rows(self, orders: Orders) -> AbstractContextManager[Rows | None]:
        """Where the others find the rows, until they have them; None: they open the data themselves."""
        ...

    def device(self, rank: int, leading: torch.device) -> str:
        """Where the worker of that rank trains."""
        ...

    def hire(self, call: Call) -> Hired: ...

    def came(self, rank: int, node: str, gpu: str | None, /) -> None:
        """One has come, from that host."""
        ...

    def wanted(self, rank: int, /) -> None:
        """The machine of one is wanted: it stays for as long as it is let."""
        ...

    def stuck(self, lost: WorkerLost, /) -> None:
        """A worker is lost, and the training hangs in a call that does not see it. Called in a thread of its own."""
        ...


@contextlib.contextmanager
def leading(orders: Orders, device: torch.device, crew: Crew) -> Generator[tuple[Together, "Watch"], None, None]:
    """Rank 0 of crew.size workers; the others are called, and gone at the end.

    The watch is to be told when the training waits for who takes its reports: it is in no call with the others then.
    Raises WorkerLost naming the rank of one that died or did not come, with its reason where that is known;
    ConfigInvalid where the crew cannot be had, StorageError where rows cannot be written.
    """
    secret = secrets.token_hex(32)
    sharded = is_sharded(orders.spec, crew.size)
    store_port, store = leading_store(crew.size, secret, crew.host)
    watch = Watch(orders.task, crew)
    before = torch.get_num_threads()
    with ExitStack() as stack:
        placed = stack.enter_context(ExitStack())
        rows = placed.enter_context(crew.rows(orders))
        letter = letter_of(orders, rows, averaged=sharded)
        board = Switchboard(
            crew.host,
            secret,
            letter,
            size=crew.size,
            silence=crew.silence_seconds,
            hears=watch.hears,
            loses=watch.loses,
        )
        stack.callback(torch.set_num_threads, before)
        stack.callback(watch.end)
        stack.callback(board.close)
        with watch.blaming():
            for rank in range(1, crew.size):
                call = Call(
                    rank=rank,
                    size=crew.size,
                    host=crew.host,
                    port=board.port,
                    store_port=store_port,
                    secret=secret,
                    silence_seconds=crew.silence_seconds,
                    threads=crew.threads,
                    device=crew.device(rank, device),
                )
                watch.hired[rank] = crew.hire(call)
            torch.set_num_threads(crew.threads)
            log.info("waits for %d other workers", crew.size - 1)
            watch.await_all(board)
            log.info("all %d workers are there", crew.size)
            placed.close()
            workers = stack.enter_context(together(store, 0, crew.size, device, host=crew.host, registered=sharded))
            stack.push(_first_of_all(board.close))
            shared_start(letter, orders, workers)
            del orders  # its state would be one more copy in memory as long as it trains
            yield workers, watch


def _first_of_all(
    close: Callable[[], None],
) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    """Called where a training is ended early: the others wait in a call, and a group's end may wait for them."""

    def ended(kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        if kind is not None:
            close()

    return ended


class Watch:
    """What is known of the others: who is ready, who is lost, and why."""

    def __init__(self, task: TaskPlan, crew: Crew) -> None:
        self.hired: dict[int, Hired] = {}
        self.away = threading.Event()  # the training is in no call: who takes its reports has the thread, and may save
        self._task, self._crew = task, crew
        self._ready = set[int]()
        self._came = set[int]()
        self._failed: dict[int, Word] = {}  # their own last words
        self._lost: dict[int, str] = {}  # how their lines ended
        self._changed = threading.Condition()
        self._over = threading.Event()

    @contextlib.contextmanager
    def blaming(self) -> Generator[None, None, None]:
        """Raises WorkerLost for what goes wrong because a worker is lost."""
        try:
            yield
        except DbserveError:
            raise
        except Exception as error:  # of the process group, most likely: it knows an address where we know a rank
            if (lost := self.verdict(STOP_SECONDS)) is not None:
                raise lost from error
            raise

    def in_call(self, call: Callable[[], T]) -> T:
        """What call() gives, which the others take part in, made by who takes a report. Raises WorkerLost."""
        self.away.clear()
        try:
            with self.blaming():
                return call()
        finally:
            self.away.set()

    def hears(self, rank: int, word: Word) -> None:
        match word.kind:
            case "log":
                log.log(word.level, "worker %d: %s", rank, word.text)
            case "wanted":
                self._crew.wanted(rank)
            case "failed":
                with self._changed:
                    self._failed[rank] = word
                    self._changed.notify_all()
            case _:
                with self._changed:
                    self._ready.add(rank)
                    self._changed.notify_all()

    def loses(self, rank: int, why: str) -> None:
        """Whoever hangs in a call with it is freed where its end does that, and told of where it does not."""
        with self._changed:
            self._lost[rank] = why
            self._changed.notify_all()
        lost = self.verdict(0.0)
        assert lost is not None
        self.hired[rank].end()  # one that is stopped, or cut off, holds its connections open
        while not self._over.wait(STOP_SECONDS):
            if not self.away.is_set():
                self._crew.stuck(lost)
                return

    def await_all(self, board: Switchboard) -> None:
        """Until all have come and are ready. Raises WorkerLost."""
        began = time.monotonic()
        others = self.hired.keys()
        while True:
            with self._changed:
                if self._ready == others:
                    return
                if not self._lost:
                    self._changed.wait(_LOOK_SECONDS)
            for rank, greeting in board.greetings.items():
                if rank not in self._came:
                    self._came.add(rank)
                    self._crew.came(rank, greeting.node, greeting.gpu)
            if (lost := self._missing(began) or self.verdict(0.0)) is not None:
                raise lost

    def verdict(self, wait: float) -> WorkerLost | None:
        """Who was lost first and foremost, looked for over so many seconds; None: nobody."""
        deadline = time.monotonic() + wait
        with self._changed:
            while not self._lost:
                if (left := deadline - time.monotonic()) <= 0:
                    return None
                self._changed.wait(left)
        time.sleep(SETTLE_SECONDS)
        with self._changed:
            failed, lost = dict(self._failed), dict(self._lost)
        for rank, word in sorted(failed.items()):
            if word.reason != Reason.WORKER_ERROR:
                return self._worker_lost(rank, f"failed: {word.text}", word.reason)
        silent = [rank for rank in lost if rank not in failed]
        for rank in silent:
            if (how := self.hired[rank].death(SETTLE_SECONDS)) is not None:
                return self._worker_lost(rank, *how)
        if silent:
            return self._worker_lost(silent[0], f"is lost: {lost[silent[0]]}")
        rank, word = next(iter(failed.items()))
        return self._worker_lost(rank, f"failed: {word.text}", word.reason)

    def end(self) -> None:
        """Of all of them."""
        self._over.set()
        for hired in self.hired.values():
            hired.end()

    def _missing(self, began: float) -> WorkerLost | None:
        late = time.monotonic() - began > self._crew.come_seconds
        for rank, hired in self.hired.items():
            if rank in self._came:
                continue
            if (how := hired.death(0.0)) is not None:
                return self._worker_lost(rank, *how)
            if late:
                return self._worker_lost(rank, f"did not come within {self._crew.come_seconds:.0f} s of its call")
        return None

    def _worker_lost(self, rank: int, how: str, reason: str = "") -> WorkerLost:
        return WorkerLost(f"{self._task.name}: worker {rank} of {self._crew.size} {how}", reason=reason)

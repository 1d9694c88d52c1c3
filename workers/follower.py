"""Another worker of a task of several: it follows the leading one's orders, and ends with it, however that ends.

Run as python -m workers.follower by workers.subprocesses, and by nobody else; workers.replicas has actors follow.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import torch

from dbserve.contracts.job import AS_STORED
from workers.allocation import keep_freed_memory
from workers.blame import one_line, reason_of
from workers.data import Split
from workers.group import joined_store, together
from workers.line import Greeting, Line, Word, dial, keep_beating
from workers.orders import Letter, Orders, shared_start
from workers.parallel import Call
from workers.sharding import Captures, is_sharded
from workers.trainer import training

OpenRows = Callable[[Letter], tuple[Split, Split | None]]  # the training rows, and the validation rows

log = logging.getLogger("dbserve.worker")


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the leader gets it, too, and needs this worker for what it saves
    call = Call.model_validate_json(sys.stdin.buffer.readline())
    follow(call, _told)


def _told(letter: Letter) -> tuple[Split, Split | None]:
    if letter.rows is None:
        raise ValueError("a process of this machine is told where the rows are")
    return letter.rows.splits()


def follow(
    call: Call, open_rows: OpenRows, *, gpu: str | None = None, meet: Callable[[Callable[[], None]], None] | None = None
) -> None:
    """Takes this worker's parts of every step until the training is over.

    Ends the process, in whatever call it is, when the leader is gone. What goes wrong is told to it, and raised.
    `gpu` is the UUID of the one it has; `meet` gets what is to be called when this machine is wanted.
    """
    keep_freed_memory()
    greeting = Greeting(secret=call.secret, rank=call.rank, node=socket.gethostname(), gpu=gpu)
    line = dial(call.host, call.port, greeting, call.silence_seconds)
    try:
        letter = Letter.model_validate_json(line.receive(), context=AS_STORED)
        over = keep_beating(lambda: (line,))
        threading.Thread(target=_end_with, args=(line, over), name="watch-leader", daemon=True).start()
        if meet is not None:
            meet(lambda: line.send(Word(kind="wanted")))
        with _speaking(line):
            _train(call, letter, open_rows, line)
    except BaseException as error:
        if isinstance(error, Exception):
            with contextlib.suppress(OSError):
                line.send(Word(kind="failed", text=one_line(error), reason=reason_of(error)))
        raise
    over.set()
    line.send(Word(kind="done"))


def _train(call: Call, letter: Letter, open_rows: OpenRows, line: Line) -> None:
    torch.set_num_threads(call.threads)
    device = torch.device(call.device)
    if ":" in call.device:  # a process's own, where several see all GPUs: sharding takes the current one
        torch.cuda.set_device(device)
    train, validation = open_rows(letter)
    sharded = is_sharded(letter.spec, call.size)
    store = joined_store(call.host, call.store_port, call.size, call.secret)
    line.send(Word(kind="ready"))
    with together(store, call.rank, call.size, device, host=line.here, registered=sharded) as workers:
        orders = Orders(letter.spec, letter.plan, letter.task, train, validation=validation)
        captures = Captures(workers)
        for report in training(shared_start(letter, orders, workers), device, workers):
            if sharded:
                captures.attend(report.capture)


def _end_with(line: Line, over: threading.Event) -> None:
    """Hears the leader's beats; ends the process when there are no more."""
    with contextlib.suppress(OSError):
        while True:
            line.receive()
    if not over.is_set():
        sys.stderr.write("the worker ends: its leader is gone\n")
        sys.stderr.flush()
        os._exit(1)  # no clean-up: the training may be in a call that never returns


class _Handler(logging.Handler):
    """Lines of the log go to the leader, which ships them with its own."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            self._line.send(Word(kind="log", level=record.levelno, text=record.getMessage()))


@contextlib.contextmanager
def _speaking(line: Line):
    handler = _Handler(line)
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


if __name__ == "__main__":
    main()

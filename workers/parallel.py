"""A task of several workers: the others run as processes of this one, and end with it, however it ends.

Rank 0 is the calling process. The others are told where its store listens (on the loopback interface) and in which
directory their orders lie, build the same network from the same seeds, and take their rows of every step; gradients are
averaged by all-reduce. The pipe through which they are told stays open: when it closes, because we are done or gone,
they end themselves.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from pydantic import BaseModel

from dbserve.contracts.plan import TaskPlan
from dbserve.errors import ConfigInvalid, DbserveError, WorkerLost
from workers.group import START, Together, leading_store, process_group
from workers.orders import Orders, write_orders

STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.02


class Place(BaseModel, frozen=True):
    """What another worker is told through its pipe: one line of JSON."""

    rank: int
    size: int
    port: int  # of the store
    threads: int
    device: str
    directory: Path  # of the orders; gone once all have read them


@dataclass
class _Follower:
    rank: int
    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def last_line(self) -> str:
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@contextlib.contextmanager
def leading(orders: Orders, device: torch.device) -> Generator[Together, None, None]:
    """Rank 0 of task.workers; the others are started, and gone at the end.

    The threads of this process are shared out among them. Raises WorkerLost naming the rank of one that died,
    ConfigInvalid where there are fewer GPUs than workers, StorageError where orders cannot be written.
    """
    task = orders.task
    if device.type == "cuda" and torch.cuda.device_count() < task.workers:
        raise ConfigInvalid(
            f"{task.name} needs {task.workers} GPUs on one worker; it has {torch.cuda.device_count()}",
            "/resources/gpus_per_block",
        )
    before = torch.get_num_threads()
    threads = max(1, before // task.workers)
    port, store = leading_store(task.workers)
    followers: list[_Follower] = []
    try:
        followers.extend(_start(rank, threads) for rank in range(1, task.workers))
        with tempfile.TemporaryDirectory(prefix="dbserve-orders-") as name:  # nobody else may look into it
            write_orders(Path(name), orders)
            for follower in followers:
                on = f"cuda:{follower.rank}" if device.type == "cuda" else "cpu"
                place = Place(
                    rank=follower.rank, size=task.workers, port=port, threads=threads, device=on, directory=Path(name)
                )
                _tell(follower, place)
            torch.set_num_threads(threads)
            _await_all(store, followers)
        yield Together(0, task.workers, process_group(store, 0, task.workers, device))
    except DbserveError:
        raise
    except Exception as error:  # of the process group, most likely: it knows an address where we know a rank
        if (lost := _dead(followers, wait=STOP_SECONDS)) is not None:
            raise _lost(task, lost) from error
        raise
    finally:
        _stop(followers)
        torch.set_num_threads(before)


def _start(rank: int, threads: int) -> _Follower:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = tempfile.TemporaryFile()  # noqa: SIM115  it is read, and closed, when the process has ended
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.follower"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for us
    )
    return _Follower(rank, process, said)


def _tell(follower: _Follower, place: Place) -> None:
    pipe = follower.process.stdin
    assert pipe is not None
    pipe.write(place.model_dump_json().encode() + b"\n")
    pipe.flush()


def _await_all(store: Any, followers: Sequence[_Follower]) -> None:
    """Until every one has read its orders; TimeoutError when one is late, ChildProcessError when one has died."""
    deadline = time.monotonic() + START.total_seconds()
    while not store.check([ready_key(follower.rank) for follower in followers]):
        if _dead(followers) is not None:
            raise ChildProcessError("a worker ended before it began")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all workers were ready after {START.total_seconds():.0f} s")
        time.sleep(_LOOK_SECONDS)


def ready_key(rank: int) -> str:
    """Set in the store by a worker that has read its orders."""
    return f"ready/{rank}"


def _dead(followers: Sequence[_Follower], wait: float = 0.0) -> _Follower | None:
    """One that has ended, whose end may take a moment to be seen."""
    for follower in followers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            follower.process.wait(wait / len(followers))
            return follower
    return None


def _lost(task: TaskPlan, follower: _Follower) -> WorkerLost:
    code = follower.process.returncode
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return WorkerLost(f"{task.name}: worker {follower.rank} of {task.workers} died ({how}): {follower.last_line()}")


def _stop(followers: Sequence[_Follower]) -> None:
    for follower in followers:
        if follower.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                follower.process.stdin.close()
    for follower in followers:
        try:
            follower.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            follower.process.kill()
            follower.process.wait()
        follower.said.close()

"""A task of several workers: the others run as processes of this one, and end with it, however it ends.

Rank 0 is the calling process. The others are told where its store listens (on the loopback interface), build the same
network from the same seeds, and take their rows of every step; gradients are averaged by all-reduce. The pipe through
which they are told stays open: when it closes, because we are done or gone, they end themselves.
"""

import contextlib
import io
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan, TaskPlan
from dbserve.errors import ConfigInvalid, DbserveError, WorkerLost
from workers.checkpoint import TrainingState
from workers.data import Dataset
from workers.group import START, Together, leading_store, process_group

STOP_SECONDS = 10.0
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Orders:
    """What another worker is told."""

    rank: int
    port: int  # of the store
    threads: int
    device: str
    spec: JobSpec
    plan: JobPlan
    task: TaskPlan
    data: Dataset
    state: TrainingState | None
    initial_weights: dict[str, Tensor] | None


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
def leading(
    spec: JobSpec,
    plan: JobPlan,
    task: TaskPlan,
    data: Dataset,
    state: TrainingState | None,
    initial_weights: dict[str, Tensor] | None,
    device: torch.device,
) -> Generator[Together, None, None]:
    """Rank 0 of task.workers; the others are started, and gone at the end.

    The threads of this process are shared out among them. Raises WorkerLost naming the rank of one that died,
    ConfigInvalid where there are fewer GPUs than workers.
    """
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
        for follower in followers:
            on = f"cuda:{follower.rank}" if device.type == "cuda" else "cpu"
            _tell(
                follower,
                Orders(follower.rank, port, threads, on, spec, plan, task, data, state, initial_weights),
            )
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


def _tell(follower: _Follower, orders: Orders) -> None:
    pipe = follower.process.stdin
    assert pipe is not None
    pipe.write(pickled(orders))
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


def pickled(content: object) -> bytes:
    letter = io.BytesIO()
    _Pickler(letter, protocol=pickle.HIGHEST_PROTOCOL).dump(content)
    return letter.getvalue()


class _Pickler(pickle.Pickler):
    """Arrays that are mapped from a file travel as the file's name, and are mapped again: no copy for each worker."""

    def reducer_override(self, obj: object) -> Any:
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        array = cast("NDArray[Any]", obj)
        file = _file_under(array)
        if file is None or not array.flags.c_contiguous:
            return NotImplemented
        place = int(file.offset) + array.ctypes.data - file.ctypes.data
        return _mapped, (str(file.filename), array.dtype.str, array.shape, place)


def _file_under(array: NDArray[Any]) -> Any:
    """The mapped file (an np.memmap) that the array is a part of; None: it is in memory."""
    base: Any = array
    while base is not None:
        if isinstance(base, np.memmap) and isinstance(cast(Any, base).base, mmap.mmap):
            return cast(Any, base)
        base = getattr(base, "base", None)
    return None


def _mapped(path: str, dtype: str, shape: tuple[int, ...], place: int) -> NDArray[Any]:
    return np.memmap(path, dtype=np.dtype(dtype), mode="r", offset=place, shape=shape).view(np.ndarray)

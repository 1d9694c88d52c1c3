"""Another worker of a task of several: python -m workers.follower, started by workers.parallel and by nobody else."""

import os
import pickle
import sys
import threading
from typing import IO, cast

import torch

from workers.allocation import keep_freed_memory
from workers.group import Together, joined_store, process_group
from workers.parallel import Orders, ready_key
from workers.trainer import training


def main() -> None:
    pipe = sys.stdin.buffer
    orders = cast(Orders, pickle.load(pipe))  # noqa: S301  written by our parent
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(orders.threads)
    store = joined_store(orders.port, orders.task.workers)
    store.set(ready_key(orders.rank), "")
    device, size = torch.device(orders.device), orders.task.workers
    workers = Together(orders.rank, size, process_group(store, orders.rank, size, device))
    steps = training(
        orders.spec, orders.plan, orders.task, orders.data, orders.state, orders.initial_weights, device, workers
    )
    for _ in steps:
        pass


def _end_with(pipe: IO[bytes]) -> None:
    """Waits for the other end to be closed, then ends the process, in whatever call it is."""
    pipe.read()
    os._exit(1)


if __name__ == "__main__":
    main()

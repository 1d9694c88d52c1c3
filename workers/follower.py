"""Another worker of a task of several: python -m workers.follower, started by workers.parallel and by nobody else."""

import os
import sys
import threading
from typing import IO

import torch

from workers.allocation import keep_freed_memory
from workers.group import Together, joined_store, process_group
from workers.orders import read_orders
from workers.parallel import Place, ready_key
from workers.trainer import training


def main() -> None:
    keep_freed_memory()
    pipe = sys.stdin.buffer
    place = Place.model_validate_json(pipe.readline())
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    torch.set_num_threads(place.threads)
    orders = read_orders(place.directory)
    store = joined_store(place.port, place.size)
    store.set(ready_key(place.rank), "")
    device = torch.device(place.device)
    workers = Together(place.rank, place.size, process_group(store, place.rank, place.size, device))
    for _ in training(orders, device, workers):
        pass


def _end_with(pipe: IO[bytes]) -> None:
    """Waits for the other end to be closed, then ends the process, in whatever call it is."""
    pipe.read()
    os._exit(1)


if __name__ == "__main__":
    main()

"""Other workers of a task, kept from one training to the next: starting a process takes longer than a small training.

Run as python -m tests.fellows: each line of its input is a Turn, and each is answered by an empty line.
"""

import os
import subprocess
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from pydantic import BaseModel

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan, TaskPlan
from tests.training import dataset
from workers.checkpoint import TrainingState
from workers.data import Dataset
from workers.group import together
from workers.orders import Letter, Orders, letter_of, place_rows, shared_start
from workers.sharding import Captures, is_sharded
from workers.trainer import StepReport, training

CPU = torch.device("cpu")


class Turn(BaseModel, frozen=True):
    letter: Letter
    rank: int
    size: int
    store: Path


class Fellows:
    """Up to so many processes besides this one; with fewer workers, some of them rest."""

    def __init__(self, count: int, directory: Path) -> None:
        self._directory = directory
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.fellows"]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for _ in range(count)
        ]

    def train(
        self,
        size: int,
        spec: JobSpec,
        plan: JobPlan,
        task: TaskPlan,
        *,
        state: TrainingState | None = None,
        data: Dataset | None = None,
    ) -> list[tuple[StepReport, TrainingState]]:
        """Every report of a task trained by `size` workers, each with the state captured at it."""
        data = data or dataset()
        place = self._directory / uuid.uuid4().hex
        place.mkdir()
        sharded = is_sharded(spec, size)
        orders = Orders(spec, plan, task, data.train, state, None, data.validation)
        letter = letter_of(orders, place_rows(place, orders), averaged=sharded)
        others = self._processes[: size - 1]
        for rank, process in enumerate(others, start=1):
            turn = Turn(letter=letter, rank=rank, size=size, store=place / "store")
            assert process.stdin is not None
            process.stdin.write(turn.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        store = _store(place / "store", size)
        with together(store, 0, size, CPU, registered=sharded) as workers:
            reports = training(shared_start(letter, orders, workers), CPU, workers)
            course = [(report, report.capture()) for report in reports]
        for process in others:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n", "another worker has failed"
        return course

    def close(self) -> None:
        for process in self._processes:
            with ExitStack() as closing:
                closing.callback(process.wait, 60)
                closing.enter_context(cast(Any, process.stdin))
                closing.callback(cast(Any, process.stdout).close)


def _store(path: Path, size: int) -> Any:
    return cast(Any, dist).FileStore(str(path), size)


def _take(turn: Turn) -> None:
    assert turn.letter.rows is not None
    train, validation = turn.letter.rows.splits()
    letter, sharded = turn.letter, is_sharded(turn.letter.spec, turn.size)
    with together(_store(turn.store, turn.size), turn.rank, turn.size, CPU, registered=sharded) as workers:
        orders = Orders(letter.spec, letter.plan, letter.task, train, validation=validation if sharded else None)
        captures = Captures(workers)
        for report in training(shared_start(letter, orders, workers), CPU, workers):
            if sharded:
                captures.attend(report.capture)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        _take(Turn.model_validate_json(line))
        print(flush=True)


if __name__ == "__main__":
    main()

"""Several workers on one task. Every test starts real processes."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from dbserve.errors import NonfiniteLoss, StorageError, WorkerLost
from tests.training import dataset, planned, run, same, spec_of
from tests.waiting import wait_for
from workers.checkpoint import TrainingState
from workers.data import Split
from workers.group import CALL, together
from workers.orders import Letter, Orders, letter_of, place_rows, shared_start
from workers.subprocesses import Subprocesses
from workers.trainer import StepReport, build_network, train_block

pytestmark = pytest.mark.usefixtures("one_thread")

TASK = "data_parallel"


def followers(parent: int) -> list[psutil.Process]:
    children = psutil.Process(parent).children(recursive=True)
    return [child for child in children if "workers.follower" in child.cmdline()]


def by_one_worker(**training: Any) -> list[tuple[StepReport, TrainingState]]:
    """The same task on one worker, which takes both workers' rows of a step."""
    spec = spec_of(training={"steps": 8, "batch_size": 64, **training})
    plan = planned(spec)
    task = plan.task(TASK).model_copy(update={"workers": 1})
    return [(report, report.capture()) for report in train_block(spec, plan, task, dataset())]


def test_two_workers_train_what_one_with_both_their_batches_would_and_resume_bit_for_bit() -> None:
    spec = spec_of(training={"steps": 8, "ema": 0.9}, options={"dropout": 0.0})
    whole = run(spec, TASK)
    assert [report.samples for report, _ in whole] == [64, 128, 192, 256]
    tensors = whole[0][1].weights.values()
    gradients = sum(4 * tensor.numel() for tensor in tensors)
    assert [report.sent_bytes for report, _ in whole] == [gradients + 4] * 4, "every gradient, and the loss"
    assert not followers(os.getpid())

    in_two_parts = by_one_worker(accumulate=2, ema=0.9)
    assert [report.loss for report, _ in whole] == [report.loss for report, _ in in_two_parts]
    assert same(whole[-1][1], in_two_parts[-1][1])
    at_once = by_one_worker(ema=0.9)
    for name, tensor in at_once[0][1].weights.items():
        torch.testing.assert_close(whole[0][1].weights[name], tensor, atol=2e-5, rtol=0)

    resumed = run(spec, TASK, state=whole[1][1])
    assert [report.step for report, _ in resumed] == [3, 4]
    assert same(resumed[-1][1], whole[-1][1])


def begun() -> tuple[Generator[StepReport], psutil.Process]:
    """A long training of two workers that has taken a step, and the process of the other one."""
    spec = spec_of(training={"steps": 10_000})
    plan = planned(spec)
    training = train_block(spec, plan, plan.task(TASK), dataset())
    next(training)
    (other,) = followers(os.getpid())
    return training, other


def test_a_worker_that_dies_ends_the_task_naming_its_rank_and_leaves_no_process() -> None:
    training, other = begun()
    other.send_signal(signal.SIGKILL)
    with pytest.raises(WorkerLost, match=r"data_parallel: worker 1 of 2 died \(signal 9\)"):
        for _ in training:
            pass
    assert not followers(os.getpid())


def test_workers_on_a_machine_that_is_wanted_stay_for_what_their_leader_saves() -> None:
    training, other = begun()
    other.send_signal(signal.SIGTERM)
    for _ in range(50):
        next(training)
    assert other.is_running()
    training.close()
    assert not followers(os.getpid())


def test_what_a_training_began_with_is_let_go_of_and_rows_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spec = spec_of(training={"steps": 10_000})
    plan = planned(spec)

    def first_state() -> TrainingState:
        (_, state), *_ = run(spec_of(training={"steps": 2, "warmup": 1}), "end_to_end")
        return state

    state = first_state()
    tensors = [weakref.ref(tensor) for tensor in state.weights.values()]
    training = train_block(spec, plan, plan.task(TASK), dataset(), state=state)
    del state
    next(training)
    gc.collect()
    assert not any(tensor() is not None for tensor in tensors)
    assert not [*tmp_path.glob("dbserve-rows-*")]
    training.close()


def test_where_the_last_step_is_saved_nobody_is_called() -> None:
    class Refusing(Subprocesses):
        def hire(self, call: object) -> Any:
            raise AssertionError("somebody was called")

    spec = spec_of(training={"steps": 2, "warmup": 1})
    plan = planned(spec)
    ((_, _), (_, state)) = run(spec, "end_to_end")
    crew = Refusing(2, threads=1)
    assert not [*train_block(spec, plan, plan.task(TASK), dataset(), state=state, crew=crew)]


@pytest.mark.parametrize("registered", [False, True])
def test_the_others_may_wait_in_a_call_for_as_long_as_their_leader_saves(registered: bool) -> None:
    with together(dist.HashStore(), 0, 1, torch.device("cpu"), registered=registered) as workers:
        processes: Any = workers.processes
        if registered:
            processes = processes._get_backend(torch.device("cpu"))
        assert processes.options._timeout == CALL


def test_a_training_that_is_closed_ends_its_workers() -> None:
    spec = spec_of(training={"steps": 10_000})
    plan = planned(spec)
    training = train_block(spec, plan, plan.task(TASK), dataset())
    next(training)
    assert len(followers(os.getpid())) == 1
    training.close()
    assert not followers(os.getpid())


def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "from tests.training import *\n"
        "spec = spec_of(training={'steps': 1_000_000})\n"
        "plan = planned(spec)\n"
        "for report in train_block(spec, plan, plan.task('data_parallel'), dataset()):\n"
        "    if report.step == 1: print('stepping', flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"stepping\n"
        others = followers(parent.pid)
        assert len(others) == 1
    finally:
        parent.kill()
        parent.communicate()
    wait_for(
        lambda: not any(other.is_running() and other.status() != psutil.STATUS_ZOMBIE for other in others),
        seconds=60,
        what="the followers have ended, too",
    )


def test_a_loss_that_is_no_number_at_one_worker_stops_them_all() -> None:
    spec = spec_of()
    plan = planned(spec)
    poisoned = build_network(spec, plan, plan.task(TASK)).state_dict()
    poisoned["head.bias"] = torch.full_like(poisoned["head.bias"], torch.nan)
    with pytest.raises(NonfiniteLoss, match="data_parallel: the loss of step 1"):
        run(spec, TASK, initial_weights=poisoned)
    assert not followers(os.getpid())


def test_mapped_rows_are_told_by_the_name_of_their_file_and_others_are_written_beside(tmp_path: Path) -> None:
    rows = np.arange(40_000, dtype=np.uint8).reshape(100, 20, 20, 1)
    rows.tofile(tmp_path / "rows.bin")
    mapped = np.memmap(tmp_path / "rows.bin", dtype=np.uint8, mode="r", shape=rows.shape).view(np.ndarray)
    spec = spec_of()
    plan = planned(spec)
    told: list[Split] = []
    for name, inputs in (("whole", mapped[10:60]), ("strided", mapped[10:60, ::2])):
        place = tmp_path / name
        place.mkdir()
        split = Split(inputs, np.arange(50))
        train, validation = place_rows(place, Orders(spec, plan, plan.task(TASK), split, validation=split)).splits()
        assert validation is not None
        for read in (train, validation):
            assert np.array_equal(read.inputs, inputs)
            assert np.array_equal(read.targets, np.arange(50))
        told.append(train)
    assert not (tmp_path / "whole" / "train.inputs.bin").exists()
    (tmp_path / "whole" / "train.labels.bin").unlink()
    assert told[0].targets[49] == 49  # all is read, or held open
    assert not told[0].inputs.flags.writeable


def test_a_state_and_first_weights_are_told_bit_for_bit_less_the_average() -> None:
    spec = spec_of(training={"ema": 0.9, "steps": 2, "warmup": 1})
    plan = planned(spec)
    ((_, _), (_, state)) = run(spec, "block-0")
    assert state.average
    shared = torch.randn(4, 6)
    initial = {"matrix": shared.T, "part": shared[0], "tied": shared}
    leader = Orders(spec, plan, plan.task(TASK), dataset().train, state, initial)
    letter = Letter.model_validate_json(letter_of(leader, None, averaged=False).model_dump_json())
    other = Orders(letter.spec, letter.plan, letter.task, dataset().train)
    store = dist.HashStore()

    def start(rank: int) -> Orders:
        with together(store, rank, 2, torch.device("cpu")) as workers:
            return shared_start(letter, (leader, other)[rank], workers)

    with ThreadPoolExecutor(2) as threads:
        kept, told = threads.map(start, range(2))
    assert kept.state is not None
    assert same(kept.state, state)
    assert told.state is not None
    assert same(told.state, replace(state, average={}))
    assert told.state.summary == state.summary
    assert told.initial_weights is not None
    assert all(torch.equal(told.initial_weights[name], tensor) for name, tensor in initial.items())


def test_rows_that_cannot_be_written_are_a_fault_of_the_disk(tmp_path: Path) -> None:
    spec = spec_of()
    plan = planned(spec)
    with pytest.raises(StorageError, match="data_parallel"):
        place_rows(tmp_path / "missing", Orders(spec, plan, plan.task(TASK), dataset().train))

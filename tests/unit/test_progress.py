"""How far a job has come and when it will be done, read off one snapshot."""

import pytest

from dbserve.contracts.snapshot import JobSnapshot
from dbserve.contracts.status import TaskState
from dbserve.progress import eta_seconds, measured_memory_ratio, step_of, task_eta_seconds
from tests.jobs import small_spec
from tests.snapshots import baselines_spec, checkpoint, memory, running, snapshot

SUCCEEDED = {"state": TaskState.SUCCEEDED}
ONLY_BLOCKS = small_spec()  # 2 blocks of 20 steps, batch size 32


def test_an_attempt_that_has_told_nothing_stands_at_its_last_checkpoint() -> None:
    job = snapshot(block__0={"state": TaskState.LAUNCHED, "attempt": 2, "checkpoints": (checkpoint(5), checkpoint(10))})
    assert step_of(job, "block-0") == 10
    assert step_of(job, "block-1") == 0
    begins = snapshot(block__0={**running(0), "checkpoints": (checkpoint(15),)})
    assert step_of(begins, "block-0") == 15, "an attempt that begins does not fall behind its checkpoint"


def test_a_task_that_succeeded_has_all_its_steps_even_when_its_progress_is_gone() -> None:
    assert step_of(snapshot(block__0=dict(SUCCEEDED)), "block-0") == 20


def test_a_task_takes_its_remaining_steps_at_its_own_speed() -> None:
    job = snapshot(ONLY_BLOCKS, block__0=running(10, samples_per_second=64.0))  # 2 steps/s
    assert task_eta_seconds(job, "block-0") == pytest.approx(5.0)
    assert task_eta_seconds(job, "block-1") is None


def test_tasks_that_run_together_take_as_long_as_the_slowest() -> None:
    job = snapshot(ONLY_BLOCKS, block__0=running(10, 64.0), block__1=running(0, 32.0))
    assert eta_seconds(job) == pytest.approx(20.0)


def test_tasks_that_wait_share_the_workers_of_those_that_run() -> None:
    job = snapshot(ONLY_BLOCKS, block__0=running(10, 64.0))  # 5 s left, then block 1 at 2 steps/s on the same worker
    assert eta_seconds(job) == pytest.approx(5.0 + 10.0)


def test_a_waiting_task_of_more_layers_is_taken_to_be_slower() -> None:
    spec = baselines_spec(evaluation={"baselines": ["end_to_end"]})
    job = snapshot(spec, block__0=dict(SUCCEEDED), block__1=running(10, 64.0))
    assert eta_seconds(job) == pytest.approx(5.0 + 20.0), "2 layers at half the speed of 1"


@pytest.mark.parametrize("speed", [None, 0.0])
def test_nothing_is_promised_before_a_task_has_told_its_speed(speed: float | None) -> None:
    assert eta_seconds(snapshot(block__0=running(1, speed))) is None


def test_nothing_is_left_of_a_job_that_succeeded_and_nothing_is_promised_of_one_that_failed() -> None:
    done = {name: dict(SUCCEEDED) for name in ("block__0", "block__1", "assembly", "evaluation")}
    assert eta_seconds(snapshot(ONLY_BLOCKS, **done)) == 0.0
    failed = {name: {"state": TaskState.FAILED} for name in done}
    assert eta_seconds(snapshot(ONLY_BLOCKS, **failed)) is None


def test_the_memory_ratio_is_measured_when_every_block_and_the_baseline_were() -> None:
    first, second, whole = 30, 40, 100

    def job(**tasks: int) -> JobSnapshot:
        return snapshot(**{name: running(1, memory=memory(size)) for name, size in tasks.items()})

    assert measured_memory_ratio(job(block__0=first, block__1=second)) is None
    assert measured_memory_ratio(job(block__0=first, end_to_end=whole)) is None
    assert measured_memory_ratio(job(block__0=first, block__1=second, end_to_end=whole)) == pytest.approx(0.4)


def test_a_data_parallel_task_takes_a_batch_for_each_worker_in_one_step_and_has_all_layers() -> None:
    spec = small_spec(evaluation={"baselines": ["data_parallel", "shallow_long"]})
    done = {"block__0": dict(SUCCEEDED), "block__1": dict(SUCCEEDED)}
    job = snapshot(spec, **done, shallow_long=dict(SUCCEEDED), data_parallel=running(0, 64.0))  # 10 steps of 2 x 32
    assert eta_seconds(job) == pytest.approx(10.0)
    waiting = snapshot(spec, **done, shallow_long=running(20, 64.0))  # 10 s left; then 10 steps of twice the layers
    assert eta_seconds(waiting) == pytest.approx(10.0 + 10.0)

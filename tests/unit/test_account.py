"""What an attempt says it did, against what it was told of."""

from typing import Any

from dbserve.contracts.status import MemoryBytes, Run
from dbserve.contracts.work import STEP_BOUNDS, BandLoss, CheckpointStage
from workers.account import POINTS, Account
from workers.trainer import StepReport

RUN = Run(job_id="j", task="block-0", attempt=2)


def report(step: int, **changes: Any) -> StepReport:
    def no_capture() -> Any:
        raise AssertionError

    told = {
        "step": step, "total": 1000, "loss": 1.0, "grad_norm": 2.0, "learning_rate": 1e-3, "samples": step * 8,
        "step_seconds": 0.03, "data_wait_seconds": 0.01, "memory": None, "capture": no_capture,
    }  # fmt: skip
    return StepReport(**{**told, **changes})


def account(**changes: Any) -> Account:
    return Account(RUN, **{"steps": 1000, "batch_size": 8, **changes})


def test_an_attempt_counts_its_own_steps_not_those_before_it() -> None:
    ours = account()
    ours.note(report(401))  # it went on from a checkpoint of step 400
    ours.note(report(402, step_seconds=0.3, read_bytes=64, sent_bytes=5))
    told = ours.progress()
    assert (told.step, told.samples_total) == (402, 402 * 8)
    assert (told.work.steps, told.work.samples, told.work.tokens) == (2, 16, 0)
    assert (told.work.read_bytes, told.work.sent_bytes) == (64, 5)
    assert told.work.step_seconds.counts[STEP_BOUNDS.index(0.05)] == 1
    assert told.work.step_seconds.counts[STEP_BOUNDS.index(0.5)] == 1


def test_a_report_of_many_steps_counts_them_all() -> None:
    ours = account(sequence_length=16)
    ours.note(report(1))
    ours.note(report(21))
    work = ours.progress().work
    assert (work.steps, work.step_seconds.count, work.tokens) == (21, 21, 21 * 8 * 16)
    assert round(work.data_wait_seconds, 6) == 0.21


def test_what_is_told_but_once_stays() -> None:
    ours = account()
    band = BandLoss(low=0.1, high=1.0, loss=0.5)
    ours.note(report(1, memory=MemoryBytes(peak=100), eval_loss=(band,)))
    ours.note(report(2))
    told = ours.progress()
    assert (told.memory.peak, told.eval_loss) == (100, (band,))
    assert told.memory.host
    assert told.memory.device
    assert told.memory.device > told.memory.host


def test_a_gpu_is_the_memory_that_is_trained_in() -> None:
    ours = account()
    ours.note(report(1, memory=MemoryBytes(peak=100, device=24 << 30)))
    assert ours.progress().memory.device == 24 << 30


def test_points_are_few_however_many_steps_there_are_and_hold_the_first_and_the_last() -> None:
    ours = account()
    for step in range(1, 1001):
        ours.note(report(step, loss=float(step)))
    points = ours.take_points()
    assert (points[0].step, points[-1].step) == (1, 1000)
    assert POINTS - 20 <= len(points) <= POINTS + 2
    assert (points[1].step, points[1].loss) == (9, sum(range(2, 10)) / 8), "the mean since the point before"
    assert {point.attempt for point in points} == {2}
    assert ours.take_points() == []
    ours.put_back(points)
    assert ours.take_points() == points


def test_reports_that_skip_steps_still_make_points() -> None:
    ours = account()
    for step in (1, *range(20, 1001, 20)):
        ours.note(report(step))
    assert len(ours.take_points()) == 51


def test_what_goes_wrong_is_counted() -> None:
    ours = account()
    ours.nonfinite_step()
    ours.saved(0.4)
    for stage in (*CheckpointStage, CheckpointStage.OVERRUN):
        ours.checkpoint_failed(stage)
    work = ours.progress().work
    assert work.nonfinite_steps == 1
    assert (work.save_seconds.count, work.save_seconds.seconds) == (1, 0.4)
    assert work.failed_checkpoints == {"save": 1, "overrun": 2, "restore": 1}

from tests.jobs import small_plan
from tests.training import planned, spec_of
from workers.checkpoint import TrainingSummary
from workers.evaluation.costs import cost_row

SUMMARY = TrainingSummary(samples=640, train_seconds=10.0, learning_rate=3e-3)


def test_a_cost_counts_every_worker_of_a_task() -> None:
    plan = planned(spec_of())
    task = plan.task("data_parallel")
    row = cost_row(plan, task, SUMMARY, None, 32)
    assert (row.workers, row.layers, row.steps, row.batch_size) == (2, 2, 5, 32)
    assert row.layer_evaluations == 2 * 2 * 5 * 32
    assert row.learning_rate == 3e-3


def test_a_cost_counts_the_trials_of_a_scan() -> None:
    plan = small_plan()
    summary = SUMMARY.model_copy(update={"scan_steps": 80, "scan_seconds": 5.0})
    row = cost_row(plan, plan.task("block-0"), summary, None, 32)
    assert row.layer_evaluations == (20 + 80) * 32
    assert row.wall_seconds == 15.0
    assert row.step_seconds_mean == 0.5  # of the training alone

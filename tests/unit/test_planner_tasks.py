"""The job's graph: which baselines are trained, for how long, and on how many workers."""

from typing import Any

from dbserve.contracts.plan import TaskKind
from tests.plans import planned, refused


def baselines(*names: str, **changes: Any) -> list[tuple[str, TaskKind, int, int]]:
    """(name, kind, steps, workers) of the baselines' tasks; 3 blocks, 2000 steps."""
    plan = planned(evaluation={"baselines": list(names)}, **changes)
    compared = [task for task in plan.tasks if task.name in plan.task("evaluation").after]
    return [(task.name, task.kind, task.steps, task.workers) for task in compared]


def test_a_shallow_network_is_the_first_member_of_its_ensemble() -> None:
    one = [("shallow-0", TaskKind.SHALLOW, 2000, 1)]
    three = [(f"shallow-{index}", TaskKind.SHALLOW, 2000, 1) for index in range(3)]
    assert baselines("shallow") == one
    assert baselines("shallow_ensemble") == three
    assert baselines("shallow", "shallow_ensemble") == three
    assert baselines("shallow_ensemble", "shallow") == three


def test_a_long_shallow_network_takes_the_steps_of_all_blocks_together() -> None:
    assert baselines("shallow_long") == [("shallow_long", TaskKind.SHALLOW_LONG, 6000, 1)]


def test_data_parallel_takes_the_batches_of_all_blocks_in_as_many_fewer_steps() -> None:
    assert baselines("data_parallel") == [("data_parallel", TaskKind.DATA_PARALLEL, 667, 3)]
    assert baselines("data_parallel", training={"steps": 1999}) == [("data_parallel", TaskKind.DATA_PARALLEL, 667, 3)]
    assert baselines("data_parallel", training={"steps": 1998}) == [("data_parallel", TaskKind.DATA_PARALLEL, 666, 3)]


def test_data_parallel_on_one_worker_is_refused_as_what_it_is() -> None:
    message = refused(
        "/evaluation/baselines/1", blocks={"count": 1}, evaluation={"baselines": ["shallow", "data_parallel"]}
    )
    assert "end_to_end again" in message


def test_the_job_holds_what_its_blocks_hold_together_or_its_widest_task() -> None:
    everything = planned(resources={"gpus_per_block": 0.5})
    assert everything.gpus == 1.5
    one_block: dict[str, Any] = {"blocks": {"count": 3, "train": [1]}, "resources": {"gpus_per_block": 0.5}}
    assert planned(**one_block, evaluation={"baselines": ["end_to_end"]}).gpus == 0.5
    assert planned(**one_block, evaluation={"baselines": ["data_parallel"]}).gpus == 3.0, "one for each of its workers"


def test_nothing_waits_for_a_baseline_but_the_evaluation_which_can_do_without() -> None:
    names = ("end_to_end", "shallow", "shallow_ensemble", "shallow_long", "data_parallel")
    plan = planned(evaluation={"baselines": list(names)}, blocks={"count": 3, "branch": {"steps": 5}})
    for task in plan.tasks:
        assert not set(task.needs) & set(plan.task("evaluation").after)
    assert set(plan.task("evaluation").after) == {
        "end_to_end",
        "data_parallel",
        "shallow-0",
        "shallow-1",
        "shallow-2",
        "shallow_long",
    }
    assert plan.task("assembly").after == ()

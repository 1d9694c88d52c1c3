"""decide(): a truth table of what must be done. No cluster, no store."""

from collections.abc import Iterable

from dbserve.contracts.cluster import Capacity, Resources
from dbserve.contracts.snapshot import JobSnapshot
from dbserve.contracts.status import (
    Abandoned,
    CancelRequested,
    Held,
    Intent,
    JobRecord,
    JobStatus,
    Reason,
    Run,
    Stopped,
    Task,
    TaskState,
)
from dbserve.lifecycle import new_tasks
from dbserve.reconciler import Action, GiveUp, Launch, Note, Stop, decide, task_resources
from tests.jobs import small_plan, small_spec

NOW = 1000.0
TWO_CPUS = Capacity((Resources(2.0, 0.0),))


def a_job(
    job_id: str = "j1", *, intent: Intent = Intent.RUN, gpus: float = 0.0, **tasks: dict[str, object]
) -> JobSnapshot:
    """A job of two blocks, an assembly and an evaluation; keywords change tasks (block_0={...})."""
    spec = small_spec(resources={"gpus_per_block": gpus})
    plan = small_plan(spec)
    fresh = {task.run.task: task for task in new_tasks(job_id, plan, spec.retry, now=0.0)}
    for name, changes in tasks.items():
        key = name.replace("_", "-")
        fresh[key] = fresh[key].model_copy(update={"cluster": "c1", **changes})
    return JobSnapshot(
        record=JobRecord(id=job_id, name="small", labels={}, created_at=0.0, intent=intent),
        status=JobStatus.RUNNING,
        spec=spec,
        plan=plan,
        tasks=fresh,
        progress={},
    )


def run_of(job_id: str, task: str, attempt: int = 1) -> Run:
    return Run(job_id=job_id, task=task, attempt=attempt)


def decided(jobs: Iterable[JobSnapshot], alive: Iterable[Run] = (), capacity: Capacity = TWO_CPUS) -> list[Action]:
    return list(decide(list(jobs), set(alive), capacity, "c1", NOW))


RUNNING: dict[str, object] = {"state": TaskState.RUNNING}
SUCCEEDED: dict[str, object] = {"state": TaskState.SUCCEEDED}


def test_blocks_of_a_new_job_are_launched_and_what_needs_them_waits() -> None:
    assert [action.run.task for action in decided([a_job()]) if isinstance(action, Launch)] == ["block-0", "block-1"]


def test_a_task_of_several_workers_holds_what_all_of_them_need_and_assembly_needs_no_gpu() -> None:
    spec = small_spec(
        resources={"cpus_per_block": 2.0, "gpus_per_block": 0.5}, evaluation={"baselines": ["data_parallel"]}
    )
    plan = small_plan(spec)
    held = {task.name: task_resources(task, spec.resources) for task in plan.tasks}
    assert held["block-0"] == Resources(2.0, 0.5)
    assert held["data_parallel"] == Resources(4.0, 1.0)
    assert held["assembly"] == Resources(1.0, 0.0)


def test_nothing_is_launched_beyond_what_the_cluster_has() -> None:
    actions = decided([a_job("j1"), a_job("j2")])
    assert [action.run for action in actions if isinstance(action, Launch)] == [
        run_of("j1", "block-0"),
        run_of("j1", "block-1"),
    ], "first come, first served"


def test_a_cancelling_worker_keeps_its_place_until_it_is_gone() -> None:
    job = a_job(intent=Intent.CANCEL, block_0={"state": TaskState.CANCELLING}, block_1={"state": TaskState.CANCELLED})
    other = a_job("j2")
    alive = [run_of("j1", "block-0")]
    launched = [action.run for action in decided([job, other], alive) if isinstance(action, Launch)]
    assert launched == [run_of("j2", "block-0")]


def test_what_runs_as_wanted_is_left_alone() -> None:
    job = a_job(block_0=RUNNING, block_1=RUNNING)
    assert decided([job], [run_of("j1", "block-0"), run_of("j1", "block-1")]) == []


def test_a_worker_that_is_gone_is_given_up_and_waits_its_backoff() -> None:
    job = a_job(block_0=RUNNING, block_1=RUNNING)
    [action] = decided([job], [run_of("j1", "block-1")])
    assert isinstance(action, GiveUp)
    assert (action.task.run, action.reason, action.retry_at) == (run_of("j1", "block-0"), Reason.WORKER_LOST, NOW)


def test_a_worker_lost_with_its_whole_cluster_is_a_preemption() -> None:
    job = a_job(block_0={**RUNNING, "cluster": "before-the-restart"}, block_1=SUCCEEDED)
    [action] = decided([job])
    assert isinstance(action, GiveUp)
    assert action.reason is Reason.PREEMPTED


def test_a_superseded_attempt_that_still_lives_is_stopped() -> None:
    job = a_job(block_0={**RUNNING, "run": run_of("j1", "block-0", 2)}, block_1=SUCCEEDED)
    assert decided([job], [run_of("j1", "block-0", 1), run_of("j1", "block-0", 2)]) == [
        Stop(run_of("j1", "block-0", 1))
    ]


def test_a_worker_of_a_job_nobody_knows_is_stopped() -> None:
    assert decided([], [run_of("gone", "block-0")]) == [Stop(run_of("gone", "block-0"))]


def test_cancel_asks_first_stops_then_and_confirms_last() -> None:
    run = run_of("j1", "block-0")
    rest: dict[str, dict[str, object]] = {
        "block_1": {"state": TaskState.CANCELLED},
        "assembly": {"state": TaskState.CANCELLED},
        "evaluation": {"state": TaskState.CANCELLED},
    }
    asked = a_job(intent=Intent.CANCEL, block_0=RUNNING, **rest)
    assert decided([asked], [run]) == [Note(CancelRequested(run=run, at=NOW))]
    cancelling = a_job(intent=Intent.CANCEL, block_0={"state": TaskState.CANCELLING, "node": "n", "pid": 7}, **rest)
    assert decided([cancelling], [run]) == [Stop(run, "n", 7)]
    assert decided([cancelling]) == [Note(Stopped(run=run, at=NOW))]


def test_what_needs_a_failed_block_is_abandoned() -> None:
    job = a_job(block_0={"state": TaskState.FAILED}, block_1=SUCCEEDED)
    assert decided([job]) == [Note(Abandoned(run=run_of("j1", "assembly"), at=NOW, message="block-0 did not succeed"))]


def test_a_task_that_no_node_can_ever_hold_says_so_once() -> None:
    job = a_job(gpus=1.0)
    notes = [action.event for action in decided([job]) if isinstance(action, Note)]
    assert [event.run.task for event in notes] == ["block-0", "block-1"]
    assert isinstance(notes[0], Held)
    assert notes[0].message == "needs 1 CPUs and 1 GPUs on one node; the largest node has 2 CPUs and 0 GPUs"
    told: dict[str, object] = {"reason": Reason.UNSCHEDULABLE, "message": notes[0].message}
    assert decided([a_job(gpus=1.0, block_0=told, block_1=told)]) == []


def test_two_small_nodes_do_not_make_a_large_one() -> None:
    job = a_job(gpus=2.0)
    two = Capacity((Resources(4.0, 1.0), Resources(4.0, 1.0)))
    assert not [action for action in decided([job], capacity=two) if isinstance(action, Launch)]


def test_a_task_in_backoff_waits() -> None:
    waiting: Task = a_job().tasks["block-0"]
    job = a_job(block_0={"not_before": NOW + 1}, block_1=SUCCEEDED)
    assert waiting.state is TaskState.PENDING
    assert decided([job]) == []


def test_a_wide_task_that_waits_is_not_overtaken_by_narrow_ones_that_came_later() -> None:
    wide = small_spec(evaluation={"baselines": ["data_parallel"]})
    plan = small_plan(wide)
    done = {task.run.task: task for task in new_tasks("j1", plan, wide.retry, now=0.0)}
    done |= {name: done[name].model_copy(update={"cluster": "c1", **SUCCEEDED}) for name in ("block-0", "block-1")}
    first = a_job("j1").model_copy(update={"spec": wide, "plan": plan, "tasks": done})
    busy = a_job("j2", block_0=RUNNING)
    alive = [run_of("j2", "block-0")]

    launched = [action.run for action in decided([first, busy], alive) if isinstance(action, Launch)]

    assert launched == [], "the CPU that is free is kept for data_parallel, which needs two"

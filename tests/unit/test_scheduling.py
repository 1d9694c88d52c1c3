"""decide(): a truth table of what must be done. No cluster, no store."""

from collections import Counter
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbserve.contracts.cluster import Capacity, Resources
from dbserve.contracts.plan import TaskKind
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import (
    NO_TIME,
    Abandoned,
    CancelRequested,
    Crashed,
    Held,
    Intent,
    JobStatus,
    PauseRequested,
    Reason,
    Resumed,
    Run,
    Stopped,
    Task,
    TaskState,
)
from dbserve.lifecycle import new_tasks
from dbserve.scheduling import Bury, Launch, Limits, Note, Stop, resources_of, turns
from dbserve.sight import Silence
from tests.jobs import small_plan, small_spec
from tests.scenes import NOW, RUNNING, SUCCEEDED, a_job, cluster_of, decided, launched, on_gpus, run_of


def test_blocks_of_a_new_job_are_launched_and_what_needs_them_waits() -> None:
    assert [action.run.task for action in decided([a_job()]) if isinstance(action, Launch)] == ["block-0", "block-1"]


def test_a_task_of_several_workers_holds_what_all_of_them_need_and_assembly_needs_no_gpu() -> None:
    spec = small_spec(
        resources={"cpus_per_block": 2.0, "gpus_per_block": 0.5}, evaluation={"baselines": ["data_parallel"]}
    )
    held = {task.run.task: resources_of(task) for task in new_tasks("j1", small_plan(spec), spec, now=0.0)}
    assert held["block-0"] == Resources(2.0, 0.5)
    assert held["data_parallel"] == Resources(4.0, 2.0), "its workers share no GPU"
    assert held["assembly"] == Resources(1.0, 0.0)


def test_nothing_is_launched_beyond_what_the_cluster_has() -> None:
    actions = decided([a_job("j1"), a_job("j2")])
    assert launched(actions) == [run_of("j1", "block-0"), run_of("j1", "block-1")], "first come, first served"


def test_a_cancelling_worker_keeps_its_place_until_it_is_gone() -> None:
    job = a_job(intent=Intent.CANCEL, block_0={"state": TaskState.CANCELLING}, block_1={"state": TaskState.CANCELLED})
    other = a_job("j2")
    alive = [run_of("j1", "block-0")]
    assert launched(decided([job, other], alive)) == [run_of("j2", "block-0")]


def test_what_runs_as_wanted_is_left_alone() -> None:
    job = a_job(block_0=RUNNING, block_1=RUNNING)
    assert decided([job], [run_of("j1", "block-0"), run_of("j1", "block-1")]) == []


def test_a_worker_that_is_gone_is_given_up_and_waits_its_backoff() -> None:
    spec = small_spec(retry={"backoff_seconds": 2.0})
    job = a_job(spec=spec, block_0={**RUNNING, "crashes": 1}, block_1=RUNNING)
    [action] = decided([job], [run_of("j1", "block-1")])
    assert isinstance(action, Bury)
    assert isinstance(action.event, Crashed)
    assert action.task.run == action.event.run == run_of("j1", "block-0")
    assert (action.event.reason, action.event.retry_after) == (Reason.WORKER_LOST, 4.0), "the second crash"


def test_a_worker_lost_with_its_whole_cluster_is_a_preemption() -> None:
    job = a_job(block_0={**RUNNING, "cluster": "before-the-restart"}, block_1=SUCCEEDED)
    [action] = decided([job])
    assert isinstance(action, Bury)
    assert isinstance(action.event, Crashed)
    assert action.event.reason is Reason.PREEMPTED


def test_a_superseded_attempt_that_still_lives_is_stopped() -> None:
    job = a_job(block_0={**RUNNING, "run": run_of("j1", "block-0", 2)}, block_1=SUCCEEDED)
    assert decided([job], [run_of("j1", "block-0", 1), run_of("j1", "block-0", 2)]) == [
        Stop(run_of("j1", "block-0", 1))
    ]


HEARD = Silence(heartbeat=1.0, step=1.0)


@pytest.mark.parametrize(
    ("silence", "replaced"),
    [
        (HEARD, False),
        (Silence(heartbeat=17.0, step=17.0), False),
        (Silence(heartbeat=19.0, step=19.0), True),
        (Silence(heartbeat=1.0, step=1799.0), False),
        (Silence(heartbeat=1.0, step=1801.0), True),
    ],
)
def test_liveness_and_progress_have_deadlines_of_their_own(silence: Silence, replaced: bool) -> None:
    run = run_of("j1", "block-0")
    job = a_job(block_0=RUNNING, block_1=SUCCEEDED)
    actions = decided([job], [run], silence={run: silence})
    assert [action.event.reason for action in actions if isinstance(action, Bury)] == [Reason.STALLED] * replaced  # pyright: ignore[reportAttributeAccessIssue]


def test_a_worker_that_was_not_looked_at_is_not_called_silent() -> None:
    run = run_of("j1", "block-0")
    assert decided([a_job(block_0=RUNNING, block_1=SUCCEEDED)], [run], silence={}) == []


def test_an_evaluation_takes_no_steps_and_is_not_given_up_for_it() -> None:
    run = run_of("j1", "evaluation")
    job = a_job(block_0=SUCCEEDED, block_1=SUCCEEDED, assembly=SUCCEEDED, evaluation=RUNNING)
    assert decided([job], [run], silence={run: Silence(heartbeat=1.0, step=1e6)}) == []


def test_a_worker_that_another_reconciler_recorded_is_asked_for_again_whether_or_not_it_is_there() -> None:
    run = run_of("j1", "block-0")
    job = a_job(block_0={"state": TaskState.LAUNCHED}, block_1=SUCCEEDED)
    for alive in ([], [run]):
        assert decided([job], alive, asked=set()) == [Launch(run, Resources(1.0, 0.0))]
    [action] = decided([job], [], asked={run})
    assert isinstance(action, Bury), "asked for, and not there: it died"
    assert decided([job], [run], asked={run}) == []


def test_a_worker_that_never_begins_is_given_up() -> None:
    run = run_of("j1", "block-0")
    job = a_job(block_0={"state": TaskState.LAUNCHED}, block_1=SUCCEEDED)
    assert decided([job], [run], silence={run: Silence(299.0, 299.0)}) == []
    [action] = decided([job], [run], silence={run: Silence(301.0, 301.0)})
    assert isinstance(action, Bury)


def test_a_worker_of_a_job_nobody_knows_is_stopped() -> None:
    assert decided([], [run_of("gone", "block-0")]) == [Stop(run_of("gone", "block-0"))]


REST: dict[str, dict[str, object]] = {
    "block_1": {"state": TaskState.CANCELLED},
    "assembly": {"state": TaskState.CANCELLED},
    "evaluation": {"state": TaskState.CANCELLED},
}


def test_cancel_asks_first_kills_after_its_grace_and_confirms_last() -> None:
    run = run_of("j1", "block-0")
    asked = a_job(intent=Intent.CANCEL, block_0=RUNNING, **REST)
    assert decided([asked], [run]) == [Note(CancelRequested(run=run, stop_by=NOW + 30.0))]
    cancelling = a_job(
        intent=Intent.CANCEL, block_0={"state": TaskState.CANCELLING, "stop_by": NOW + 1, "pid": 7}, **REST
    )
    task = cancelling.tasks["block-0"]
    assert decided([cancelling], [run]) == [], "it saves its last checkpoint"
    assert decided([cancelling], [run], now=NOW + 2) == [Stop(run, task)]
    assert decided([cancelling]) == [Bury(task, Stopped(run=run))]
    forced = a_job(intent=Intent.CANCEL, block_0={"state": TaskState.CANCELLING, "stop_by": NO_TIME, "pid": 7}, **REST)
    assert decided([forced], [run]) == [Stop(run, forced.tasks["block-0"])]


@pytest.mark.parametrize("state", [TaskState.LAUNCHED, TaskState.RUNNING])
def test_what_has_nothing_to_save_gets_no_grace(state: TaskState) -> None:
    run = run_of("j1", "evaluation")
    kind = {"kind": TaskKind.EVALUATION}
    rest = dict.fromkeys(("block_0", "block_1", "assembly"), SUCCEEDED)
    job = a_job(intent=Intent.CANCEL, evaluation={"state": state, **kind}, **rest)
    assert decided([job], [run]) == [Note(CancelRequested(run=run, stop_by=NOW))]


def test_a_pause_stops_what_runs_and_keeps_what_waits_from_starting() -> None:
    run = run_of("j1", "block-0")
    job = a_job(intent=Intent.PAUSE, block_0=RUNNING)
    asked = [action.event for action in decided([job], [run]) if isinstance(action, Note)]
    assert asked[0] == PauseRequested(run=run, stop_by=NOW + 30.0)
    assert {event.run.task for event in asked} == {"block-0", "block-1", "assembly", "evaluation"}
    assert not launched(decided([job], [run]))


def test_a_resumed_job_wakes_what_was_still_stopping_when_it_was_resumed() -> None:
    job = a_job(block_0={"state": TaskState.PAUSED}, block_1=SUCCEEDED)
    assert decided([job]) == [Note(Resumed(run=run_of("j1", "block-0")))]


def test_past_its_total_deadline_a_job_is_ended_and_its_workers_get_their_grace() -> None:
    spec = small_spec(deadlines={"total_seconds": NOW - 1.0})
    run = run_of("j1", "block-0")
    events = [
        action.event for action in decided([a_job(spec=spec, block_0=RUNNING)], [run]) if isinstance(action, Note)
    ]
    assert len(events) == 4
    for event in events:
        assert isinstance(event, CancelRequested)
        assert event.reason is Reason.DEADLINE_EXCEEDED
    assert [event.stop_by for event in events if isinstance(event, CancelRequested)] == [NOW + 30.0, NOW, NOW, NOW]
    later = small_spec(deadlines={"total_seconds": NOW + 1.0})
    assert decided([a_job(spec=later, block_0=RUNNING, block_1=SUCCEEDED)], [run]) == []


def test_the_queue_deadline_ends_only_what_has_not_begun() -> None:
    spec = small_spec(deadlines={"queue_seconds": NOW - 1.0})
    waits = decided([a_job(spec=spec, status=JobStatus.QUEUED)])
    assert {type(action.event) for action in waits if isinstance(action, Note)} == {CancelRequested}
    assert launched(decided([a_job(spec=spec)])), "it has begun before"


def test_higher_priorities_start_first() -> None:
    urgent = small_spec(queue={"priority": 5})
    assert launched(decided([a_job("j1"), a_job("j2", spec=urgent)])) == [
        run_of("j2", "block-0"),
        run_of("j2", "block-1"),
    ]


def test_owners_take_turns_and_whoever_holds_fewer_workers_is_next() -> None:
    four = cluster_of(Resources(4.0, 0.0))
    greedy = [a_job(f"j{number}", owner="a") for number in range(1, 4)]
    other = a_job("j9", owner="b")
    started = launched(decided([*greedy, other], capacity=four))
    assert [(run.job_id, run.task) for run in started] == [
        ("j1", "block-0"), ("j9", "block-0"), ("j1", "block-1"), ("j9", "block-1"),
    ]  # fmt: skip
    busy = a_job("j0", owner="b", block_0=RUNNING, block_1=RUNNING)
    alive = [run_of("j0", "block-0"), run_of("j0", "block-1")]
    assert {run.job_id for run in launched(decided([*greedy, other, busy], alive, capacity=four))} == {"j1"}


def in_turn(jobs: list[JobOutline], by_owner: Mapping[str, int]) -> list[Run]:
    """As turns() is defined: of all tasks that are next in their owner's line, always the one of the owner with the
    fewest workers, and among these of the oldest job."""
    share, order = Counter(by_owner), list[Run]()
    for priority in sorted({job.record.queue.priority for job in jobs}, reverse=True):
        lines: dict[str, list[Run]] = {}
        for job in sorted(jobs, key=lambda job: job.record.id):
            if job.record.queue.priority == priority:
                runs = [task.run for task in job.tasks.values() if not task.needs]
                lines.setdefault(job.record.owner, []).extend(runs)
        while lines:
            owner = min(lines, key=lambda one: (share[one], lines[one][0].job_id))
            order.append(lines[owner].pop(0))
            share[owner] += 1
            if not lines[owner]:
                del lines[owner]
    return order


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-1, 1)), max_size=12),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5)),
)
def test_turns_are_taken_as_they_are_defined(submitted: list[tuple[str, int]], by_owner: dict[str, int]) -> None:
    jobs = [
        a_job(f"j{place:02}", owner=owner, spec=small_spec(queue={"priority": priority}))
        for place, (owner, priority) in enumerate(submitted)
    ]
    assert [task.run for _, task in turns(jobs[::-1], by_owner, NOW)] == in_turn(jobs, by_owner)


def test_a_job_holds_no_more_workers_than_it_may() -> None:
    one = small_spec(queue={"max_concurrent_blocks": 1})
    assert launched(decided([a_job("j1", spec=one), a_job("j2")])) == [run_of("j1", "block-0"), run_of("j2", "block-0")]


def test_the_deployments_limits_hold() -> None:
    four = cluster_of(Resources(4.0, 0.0))
    jobs = [a_job("j1"), a_job("j2")]
    assert [run.job_id for run in launched(decided(jobs, capacity=four, limits=Limits(jobs=1)))] == ["j1", "j1"]
    assert len(launched(decided(jobs, capacity=four, limits=Limits(tasks=3)))) == 3


def test_what_needs_a_failed_block_is_abandoned() -> None:
    job = a_job(block_0={"state": TaskState.FAILED}, block_1=SUCCEEDED)
    assert decided([job]) == [Note(Abandoned(run=run_of("j1", "assembly"), message="block-0 did not succeed"))]


def test_a_task_that_no_node_can_ever_hold_says_so_once() -> None:
    job = a_job(spec=on_gpus(1.0))
    notes = [action.event for action in decided([job]) if isinstance(action, Note)]
    assert [event.run.task for event in notes] == ["block-0", "block-1"]
    assert isinstance(notes[0], Held)
    assert notes[0].message == "needs 1 CPUs and 1 GPUs on one node; the largest node has 2 CPUs and 0 GPUs"
    told: dict[str, object] = {"reason": Reason.UNSCHEDULABLE, "message": notes[0].message}
    assert decided([a_job(spec=on_gpus(1.0), block_0=told, block_1=told)]) == []


def test_two_small_nodes_do_not_make_a_large_one() -> None:
    job = a_job(spec=on_gpus(2.0))
    two = cluster_of(Resources(4.0, 1.0), Resources(4.0, 1.0))
    assert not launched(decided([job], capacity=two))


def test_a_task_in_backoff_waits() -> None:
    waiting: Task = a_job().tasks["block-0"]
    job = a_job(block_0={"not_before": NOW + 1}, block_1=SUCCEEDED)
    assert waiting.state is TaskState.PENDING
    assert decided([job]) == []


def test_a_wide_task_that_waits_is_not_overtaken_by_narrow_ones_that_came_later() -> None:
    wide = small_spec(evaluation={"baselines": ["data_parallel"]})
    first = a_job("j1", spec=wide, block_0=SUCCEEDED, block_1=SUCCEEDED)
    busy = a_job("j2", block_0=RUNNING)
    alive = [run_of("j2", "block-0")]
    assert launched(decided([first, busy], alive)) == [], (
        "the CPU that is free is kept for data_parallel, which needs two"
    )


def test_a_cluster_that_shows_no_node_yet_makes_nothing_unschedulable() -> None:
    assert decided([a_job()], capacity=Capacity(())) == []

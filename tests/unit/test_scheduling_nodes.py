"""decide() on a cluster of nodes: which go, which come, what waits for one. No cluster, no store."""

from dataclasses import replace

import pytest

from dbserve.contracts.cluster import Capacity, Demand, Growth, Resources
from dbserve.contracts.status import (
    Crashed,
    Held,
    MoveRequested,
    Reason,
    TaskState,
)
from dbserve.scheduling import Bury, Grow, Launch, Note
from tests.jobs import small_spec
from tests.scenes import NOW, RUNNING, SUCCEEDED, a_job, cluster_of, decided, launched, on_gpus, run_of


def on(node: str, **more: object) -> dict[str, object]:
    return {**RUNNING, "node_id": node, "nodes": (node,), **more}


def going(leaves_in: float | None = None, *, cpus: float = 2.0) -> Capacity:
    """n0 is about to go, n1 stays."""
    first, second = cluster_of(Resources(cpus, 0.0), Resources(cpus, 0.0)).nodes
    return Capacity((replace(first, draining=True, leaves_in=leaves_in), second))


@pytest.mark.parametrize(
    ("leaves_in", "grace", "told"),
    [(None, 30.0, "host0 is about to go"), (20.0, 17.0, "host0 is about to go in 20 s"), (1.0, 0.0, None)],
)
def test_who_works_on_a_node_that_is_about_to_go_saves_while_there_is_time_and_moves(
    leaves_in: float | None, grace: float, told: str | None
) -> None:
    run = run_of("j1", "block-0")
    job = a_job(block_0=on("n0"), block_1=on("n1"))
    alive = [run, run_of("j1", "block-1")]
    [action] = decided([job], alive, capacity=going(leaves_in))
    assert isinstance(action, Note)
    assert isinstance(action.event, MoveRequested)
    assert (action.event.run, action.event.stop_by) == (run, NOW + grace)
    assert told is None or action.event.message == told


def test_a_task_moves_when_any_of_its_replicas_is_on_a_node_that_is_about_to_go() -> None:
    job = a_job(block_0=on("n1", nodes=("n1", "n0")), block_1=SUCCEEDED)
    [action] = decided([job], [run_of("j1", "block-0")], capacity=going())
    assert isinstance(action, Note)
    assert isinstance(action.event, MoveRequested)


def test_who_moves_is_given_up_as_preempted_when_it_is_gone_or_out_of_time_and_goes_on_elsewhere() -> None:
    run = run_of("j1", "block-0")
    moving = a_job(block_0=on("n0", stop_by=NOW + 1.0, crashes=2), block_1=SUCCEEDED)
    assert decided([moving], [run], capacity=going()) == [], "it saves"
    for alive, now in (([], NOW), ([run], NOW + 2.0)):
        [action] = decided([moving], alive, capacity=going(), now=now)
        assert isinstance(action, Bury)
        assert isinstance(action.event, Crashed)
        assert (action.event.reason, action.event.retry_after) == (Reason.PREEMPTED, 0.0)
    after = a_job(block_0={"run": run.next()}, block_1=SUCCEEDED)
    assert [(one.run, one.nodes) for one in decided([after], capacity=going()) if isinstance(one, Launch)] == [
        (run.next(), ("n1",))
    ]


@pytest.mark.parametrize(("leaves_in", "moves"), [(None, False), (60.0, False), (2.0, True)])
def test_what_has_nothing_to_save_stays_until_its_node_goes(leaves_in: float | None, moves: bool) -> None:
    done = dict.fromkeys(("block_0", "block_1", "assembly"), SUCCEEDED)
    job = a_job(evaluation=on("n0"), **done)
    actions = decided([job], [run_of("j1", "evaluation")], capacity=going(leaves_in))
    assert [type(action) for action in actions] == [Note] * moves


def test_a_worker_that_was_asked_for_on_a_node_that_is_gone_is_not_asked_for_again() -> None:
    job = a_job(block_0={"state": TaskState.LAUNCHED, "nodes": ("lost",)}, block_1=SUCCEEDED)
    [action] = [one for one in decided([job], []) if not isinstance(one, Launch)]
    assert isinstance(action, Bury)


@pytest.mark.parametrize(("node", "reason"), [("lost", "preempted"), ("n0", "preempted"), ("n1", "worker_lost")])
def test_a_worker_that_had_not_begun_when_its_node_went_is_not_to_blame(node: str, reason: str) -> None:
    job = a_job(block_0={"state": TaskState.LAUNCHED, "nodes": (node,)}, block_1=SUCCEEDED)
    [action] = decided([job], [], capacity=going(), asked=frozenset({run_of("j1", "block-0")}))
    assert isinstance(action, Bury)
    assert isinstance(action.event, Crashed)
    assert action.event.reason == reason


def test_a_task_of_several_replicas_is_launched_on_a_node_for_each() -> None:
    job = a_job(spec=small_spec(resources={"replicas": 4, "min_replicas": 2}), block_1=SUCCEEDED)
    three = cluster_of(Resources(2.0, 0.0), Resources(1.0, 0.0))
    assert decided([job], capacity=three) == [Launch(run_of("j1", "block-0"), Resources(1.0, 0.0), ("n0", "n0", "n1"))]
    assert decided([job], capacity=cluster_of(Resources(2.0, 0.0))) == [
        Launch(run_of("j1", "block-0"), Resources(1.0, 0.0), ("n0", "n0"))
    ]
    [held] = decided([job], capacity=cluster_of(Resources(1.0, 0.0)))
    assert isinstance(held, Note)
    assert isinstance(held.event, Held)
    assert held.event.message == (
        "needs 2 replicas; each needs 1 CPUs and 0 GPUs on one node; the nodes together hold 1"
    )


def test_what_could_not_be_held_merely_waits_once_there_is_a_node_for_it() -> None:
    told: dict[str, object] = {"reason": Reason.UNSCHEDULABLE, "message": "no node has GPU type A100"}
    job = a_job(block_0=told, block_1=SUCCEEDED)
    busy = a_job("j2", block_0=on("n0"), block_1=on("n0"))
    alive = [run_of("j2", "block-0"), run_of("j2", "block-1")]
    assert decided([job, busy], alive) == [Note(Held(run=run_of("j1", "block-0")))]


def test_an_autoscaler_is_told_what_waits_beside_what_is_in_use_until_nothing_waits() -> None:
    growing = replace(cluster_of(Resources(2.0, 0.0)), growth=Growth())
    actions = decided([a_job("j1"), a_job("j2", spec=on_gpus(1.0))], capacity=growing)
    assert launched(actions) == [run_of("j1", "block-0"), run_of("j1", "block-1")]
    assert [action for action in actions if isinstance(action, Grow)] == [
        Grow((Demand(Resources(1.0, 0.0), count=2),), (Demand(Resources(1.0, 1.0), count=2),))
    ]
    notes = [action.event for action in actions if isinstance(action, Note)]
    assert [(event.run.job_id, event.reason) for event in notes if isinstance(event, Held)] == [("j2", None)] * 2
    assert {event.message for event in notes if isinstance(event, Held)} == {
        "waiting for a node: needs 1 CPUs and 1 GPUs on one node; the largest node has 2 CPUs and 0 GPUs"
    }
    quiet = decided([a_job("j1", block_0=RUNNING, block_1=RUNNING)], [run_of("j1", "block-0"), run_of("j1", "block-1")],
                    capacity=growing)  # fmt: skip
    assert quiet == [Grow((), ())], "nodes that nobody needs may go"


def test_nodes_of_replicas_are_kept_though_nothing_waits_for_they_look_idle_until_those_are_called() -> None:
    growing = replace(cluster_of(Resources(1.0, 0.0), Resources(1.0, 0.0)), growth=Growth())
    job = a_job(block_0=on("n0", nodes=("n0", "n1"), replicas=2, min_replicas=2), block_1=SUCCEEDED)
    assert decided([job], [run_of("j1", "block-0")], capacity=growing) == [
        Grow((Demand(Resources(1.0, 0.0), count=2),), ())
    ]


def test_an_empty_cluster_that_may_grow_is_asked_to() -> None:
    head = replace(cluster_of(Resources(0.0, 0.0)), growth=Growth())
    [grow, *notes] = decided([a_job("j1")], capacity=head)
    assert grow == Grow((), (Demand(Resources(1.0, 0.0), count=2),))
    assert len(notes) == 2


def test_a_limit_on_the_tasks_of_a_job_is_no_want_of_nodes() -> None:
    growing = replace(cluster_of(Resources(1.0, 0.0)), growth=Growth())
    one_at_a_time = a_job("j1", spec=small_spec(queue={"max_concurrent_blocks": 1}), block_0=RUNNING)
    actions = decided([one_at_a_time], [run_of("j1", "block-0")], capacity=growing)
    assert actions == [Grow((), ())]

"""decide() on a cluster of nodes: which go, which come, what waits for one. No cluster, no store."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from dbserve import scheduling
from dbserve.contracts.cluster import Capacity, Demand, Growth, Resources
from dbserve.contracts.job import JobSpec
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import (
    Crashed,
    Held,
    MoveRequested,
    Reason,
    TaskState,
)
from dbserve.scheduling import Action, Bury, Grow, Launch, Limits, Note
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
        Grow((Demand(Resources(2.0, 0.0)),), (Demand(Resources(1.0, 1.0), count=2),))
    ], "the node has no room for what waits: it counts as a whole"
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


FOUR_GPUS = replace(cluster_of(*[Resources(4.0, 1.0)] * 4), growth=Growth())


def grown(actions: Iterable[Action]) -> Grow:
    [grow] = [action for action in actions if isinstance(action, Grow)]
    return grow


def test_what_the_nodes_could_not_hold_if_they_were_empty_keeps_none_from_those_behind_it() -> None:
    wide = small_spec(resources={"gpus_per_block": 1.0, "replicas": 8})
    jobs = [a_job("j1", spec=wide, block_1=SUCCEEDED), *(a_job(f"j{n}", spec=on_gpus(1.0)) for n in (2, 3))]
    assert [run.job_id for run in launched(decided(jobs, capacity=FOUR_GPUS))] == ["j2", "j2", "j3", "j3"]


def test_a_task_that_the_nodes_could_hold_has_room_kept_however_many_before_it_they_could_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduling, "MOST_KEPT", 1)
    wide = small_spec(resources={"gpus_per_block": 1.0, "replicas": 8})
    all_four = small_spec(resources={"gpus_per_block": 1.0, "replicas": 4})
    busy = a_job("j9", spec=on_gpus(1.0), block_0=on("n0", gpus=1.0), block_1=SUCCEEDED)
    jobs = [
        a_job("j1", spec=wide, block_1=SUCCEEDED),
        a_job("j2", spec=all_four, block_1=SUCCEEDED),
        a_job("j3", spec=on_gpus(1.0)),
        busy,
    ]
    assert launched(decided(jobs, [run_of("j9", "block-0")], capacity=FOUR_GPUS)) == []


@pytest.mark.parametrize(
    ("limits", "most"), [(Limits(), 6), (Limits(tasks=3), 2), (Limits(jobs=2), 2), (Limits(tasks=1), 0)]
)
def test_no_nodes_are_asked_for_that_the_deployments_limits_would_leave_idle(limits: Limits, most: int) -> None:
    growing = replace(cluster_of(Resources(1.0, 0.0)), growth=Growth())
    busy = a_job("j0", block_0=on("n0"), block_1=SUCCEEDED)
    jobs = [busy, *(a_job(f"j{n}") for n in (1, 2, 3))]
    actions = decided(jobs, [run_of("j0", "block-0")], capacity=growing, limits=limits)
    assert sum(demand.count for demand in grown(actions).waiting) == most


def test_no_more_than_so_many_are_told_of_also_where_cpus_are_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dbserve.growing.MOST_WAITING", 3)
    growing = replace(cluster_of(Resources(8.0, 0.0)), growth=Growth())
    actions = decided([a_job(f"j{n}", spec=on_gpus(1.0)) for n in range(4)], capacity=growing)
    assert grown(actions).waiting == (Demand(Resources(1.0, 1.0), count=3),)


def of_cpus(count: float, **resources: object) -> JobSpec:
    return small_spec(resources={"cpus_per_block": count, **resources})


def holding(job_id: str, *nodes: str, cpus: float = 2.0) -> JobOutline:
    """A block on each of one or two nodes."""
    second = on(nodes[1], cpus=cpus) if len(nodes) > 1 else SUCCEEDED
    return a_job(job_id, block_0=on(nodes[0], cpus=cpus), block_1=second)


def test_a_node_without_room_for_what_waits_is_asked_for_as_a_whole() -> None:
    growing = replace(cluster_of(*[Resources(4.0, 0.0)] * 2), growth=Growth())
    busy = holding("j0", "n0", "n1")
    alive = [run_of("j0", "block-0"), run_of("j0", "block-1")]
    waits = a_job("j1", spec=of_cpus(4.0), block_1=SUCCEEDED)
    assert grown(decided([busy, waits], alive, capacity=growing)) == Grow(
        (Demand(Resources(4.0, 0.0), count=2),), (Demand(Resources(4.0, 0.0)),)
    )


def test_a_node_with_room_for_a_replica_of_what_waits_is_asked_for_as_far_as_it_is_in_use() -> None:
    growing = replace(cluster_of(*[Resources(4.0, 0.0)] * 2), growth=Growth())
    busy = holding("j0", "n0", "n1")
    alive = [run_of("j0", "block-0"), run_of("j0", "block-1")]
    waits = a_job("j1", spec=of_cpus(2.0, replicas=4), block_1=SUCCEEDED)
    assert grown(decided([busy, waits], alive, capacity=growing)) == Grow(
        (Demand(Resources(2.0, 0.0), count=2),), (Demand(Resources(2.0, 0.0), count=4),)
    ), "room that is kept for it is its own"


def test_a_node_that_drains_is_not_asked_for_and_what_it_holds_is() -> None:
    first, second = cluster_of(*[Resources(4.0, 0.0)] * 2).nodes
    growing = Capacity((replace(first, draining=True), second), Growth())
    busy = holding("j0", "n0", "n1", cpus=1.0)
    alive = [run_of("j0", "block-0"), run_of("j0", "block-1")]
    waits = a_job("j1", spec=of_cpus(4.0), block_1=SUCCEEDED)
    assert grown(decided([busy, waits], alive, capacity=growing)).in_use == (
        Demand(Resources(4.0, 0.0)),
        Demand(Resources(1.0, 0.0)),
    )


def test_a_node_that_does_not_answer_is_no_room_for_what_waits() -> None:
    [only] = cluster_of(Resources(4.0, 0.0)).nodes
    growing = Capacity((replace(only, silent=True),), Growth())
    assert grown(decided([a_job("j1", block_1=SUCCEEDED)], capacity=growing)).in_use == (Demand(Resources(4.0, 0.0)),)


def test_a_whole_node_is_asked_for_by_what_those_who_wait_ask_of_it() -> None:
    first, second = cluster_of(*[Resources(4.0, 0.0)] * 2).nodes
    growing = Capacity((replace(first, labels={"zone": "1", "disk": "fast"}), second), Growth())
    busy = holding("j0", "n0")
    waits = a_job("j1", spec=of_cpus(4.0, node_labels={"zone": "1"}), block_1=SUCCEEDED)
    assert grown(decided([busy, waits], [run_of("j0", "block-0")], capacity=growing)).in_use == (
        Demand(Resources(4.0, 0.0), (("zone", "1"),)),
    )

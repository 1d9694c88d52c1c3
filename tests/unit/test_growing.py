"""What an autoscaler is asked for: against Ray's own, which decides what it would add."""

from dataclasses import replace

import pytest
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint  # pyright: ignore[reportAttributeAccessIssue]

from dbserve.cluster import _bundle  # pyright: ignore[reportPrivateUsage]
from dbserve.contracts.cluster import Capacity, Demand, Node, Resources
from dbserve.growing import LEFT_OUT_SECONDS, MORE_SECONDS, VERDICT_SECONDS, Asking, kind_of, whole_nodes
from dbserve.placement import Ask, Books
from tests.scenes import cluster_of

CPU, GPU = Demand(Resources(1.0, 0.0)), Demand(Resources(1.0, 1.0))
QUIET = AutoscalerEventLogger(None)  # pyright: ignore[reportArgumentType]


def times(demand: Demand, count: int) -> Demand:
    return replace(demand, count=count)


def nodes_added(request: tuple[Demand, ...], *, most: int = 10, cpus: int = 2, gpus: int = 0) -> int | None:
    """By Ray's autoscaler, of nodes with so many CPUs and GPUs, where there is none; None: it refuses the request."""
    requests = [_bundle(demand) for demand in request for _ in range(demand.count)]
    constraint = ClusterResourceConstraint(
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(one) for one in requests])
    )
    kind = NodeTypeConfig(
        name="workers", min_worker_nodes=0, max_worker_nodes=most, resources={"CPU": cpus, "GPU": gpus}
    )
    reply = ResourceDemandScheduler(QUIET).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs={"workers": kind},
            cluster_resource_constraints=[constraint] if requests else [],
        )
    )
    if reply.infeasible_cluster_resource_constraints:
        assert not reply.to_launch
        return None
    return sum(launch.count for launch in reply.to_launch)


def told_until_taken(asking: Asking, waiting: list[Demand], **cluster: int) -> tuple[int, int]:
    """Nodes that are added in the end, and how often it took to ask."""
    for turn in range(1, 30):
        added = nodes_added(asking.request([], waiting, now=0.0), **cluster)
        if added is not None:
            return added, turn
        asking.refused(now=0.0)
    raise AssertionError("it was refused for ever")


def test_what_fits_is_asked_for_at_once_and_taken_back_when_nothing_waits() -> None:
    asking = Asking()
    assert asking.request([times(CPU, 2)], [times(CPU, 4)], now=0.0) == (times(CPU, 2), times(CPU, 4))
    assert nodes_added((times(CPU, 2), times(CPU, 4))) == 3, "what is in use counts, too"
    assert asking.request([times(CPU, 6)], [], now=1.0) == (times(CPU, 6),), "it is to be kept"
    assert asking.request([], [], now=2.0) == ()
    assert nodes_added(()) == 0


def test_more_than_may_be_added_is_asked_for_by_half_until_it_is_taken() -> None:
    assert nodes_added((times(CPU, 100),)) is None, "Ray adds nothing where it cannot add all"
    added, turns = told_until_taken(Asking(), [times(CPU, 100)])
    assert (added, turns) == (6, 4), "for 12 of the 20 that there could be; more is asked for later"
    asking = Asking()
    told_until_taken(asking, [times(CPU, 100)])
    assert asking.request([], [times(CPU, 100)], now=MORE_SECONDS) == (times(CPU, 24),)


def test_what_no_node_could_hold_does_not_keep_nodes_from_those_behind_it() -> None:
    asking = Asking()
    assert told_until_taken(asking, [GPU, times(CPU, 3)])[0] in {1, 2}
    assert asking.left_out == {GPU}
    assert asking.request([], [GPU], now=1.0) == ()
    assert asking.request([], [GPU], now=LEFT_OUT_SECONDS) == (GPU,), "there may be such nodes by now"


@pytest.mark.parametrize("part", [1.0, 0.7, 0.5, 0.4, 1 / 3, 0.3, 0.15, 1 / 7, 0.1, 0.07])
@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_parts_of_gpus_take_as_many_nodes_as_we_fill_with_them(part: float, gpus: int) -> None:
    each = Resources(0.1, part)
    books = Books(Capacity((Node("n", "n", Resources(99.0, gpus)),)))
    fit = 0
    while books.place(Ask(each), "j"):
        fit += 1
    assert nodes_added((Demand(each, count=fit),), cpus=99, gpus=gpus) == 1
    assert nodes_added((Demand(each, count=fit + 1),), cpus=99, gpus=gpus) == 2


def test_parts_of_cpus_fill_a_node() -> None:
    tenths = Demand(Resources(0.1, 0.0), count=40)
    assert [nodes_added((tenths,), cpus=4), nodes_added((tenths, CPU), cpus=4)] == [1, 2]


def test_whole_nodes_leave_no_room_where_what_is_left_of_them_is_in_pieces() -> None:
    in_pieces, waits = times(Demand(Resources(2.0, 0.0)), 2), Demand(Resources(4.0, 0.0))
    assert nodes_added((in_pieces, waits), cpus=4) == 2, "as many as there are: the two halves go together"
    nodes = cluster_of(Resources(4.0, 0.0), Resources(4.0, 0.0)).nodes
    assert nodes_added((*whole_nodes(nodes, [Ask(waits.resources)]), waits), cpus=4) == 3


def seconds_until_all_are_asked_for(waiting: list[Demand], beyond: set[Demand]) -> float:
    """Of those that are not beyond an autoscaler that answers whenever it is looked at, and adds nothing meanwhile."""
    asking, wanted = Asking(), [demand for demand in waiting if kind_of(demand) not in beyond]
    for look in range(2000):
        request = asking.request([], waiting, now=(now := look * VERDICT_SECONDS))
        if list(request) == wanted:
            return now
        if any(kind_of(demand) in beyond for demand in request):
            asking.refused(now)
    raise AssertionError("never")


@pytest.mark.parametrize(("beyond", "most_seconds"), [(1, 180.0), (5, 180.0), (40, 600.0)])
def test_what_cannot_be_had_delays_many_behind_it_by_minutes_at_most(beyond: int, most_seconds: float) -> None:
    none = [Demand(Resources(1.0, float(gpus))) for gpus in range(1, beyond + 1)]
    assert seconds_until_all_are_asked_for([*none, times(CPU, 1000)], {*none}) <= most_seconds


@pytest.mark.parametrize("waiting", [1, 2, 7])
def test_a_cluster_at_its_largest_is_asked_for_nothing_before_long(waiting: int) -> None:
    asking = Asking()
    assert told_until_taken(asking, [times(CPU, waiting)], most=0)[0] == 0
    assert asking.left_out == {CPU}

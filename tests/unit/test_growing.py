"""What an autoscaler is asked for: against Ray's own, which decides what it would add."""

from dataclasses import replace

import pytest
from ray.autoscaler.v2.event_logger import AutoscalerEventLogger
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint  # pyright: ignore[reportAttributeAccessIssue]

from dbserve.cluster import _bundle  # pyright: ignore[reportPrivateUsage]
from dbserve.contracts.cluster import Demand, Resources
from dbserve.growing import LEFT_OUT_SECONDS, MORE_SECONDS, Asking

CPU, GPU = Demand(Resources(1.0, 0.0)), Demand(Resources(1.0, 1.0))
QUIET = AutoscalerEventLogger(None)  # pyright: ignore[reportArgumentType]


def times(demand: Demand, count: int) -> Demand:
    return replace(demand, count=count)


def nodes_added(request: tuple[Demand, ...], *, most: int = 10, cpus: int = 2) -> int | None:
    """By Ray's autoscaler, of nodes with so many CPUs and no GPU; None: it refuses the request."""
    requests = [_bundle(demand) for demand in request for _ in range(demand.count)]
    constraint = ClusterResourceConstraint(
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(one) for one in requests])
    )
    kind = NodeTypeConfig(name="workers", min_worker_nodes=0, max_worker_nodes=most, resources={"CPU": cpus})
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


@pytest.mark.parametrize("waiting", [1, 2, 7])
def test_a_cluster_at_its_largest_is_asked_for_nothing_before_long(waiting: int) -> None:
    asking = Asking()
    assert told_until_taken(asking, [times(CPU, waiting)], most=0)[0] == 0
    assert asking.left_out == {CPU}

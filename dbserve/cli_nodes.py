"""The command about the cluster's nodes."""

from typing import TYPE_CHECKING

from dbserve.cli_options import DEFAULT_URL, ApiKey, AsJson, Url, connected

if TYPE_CHECKING:
    from dbserve.contracts.cluster_view import NodeView


def nodes(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """The cluster's nodes: what is free, what runs where, which are about to go."""
    from dbserve.cli_print import console, print_json, print_table

    with connected(url, api_key) as client:
        cluster = client.cluster()
    if as_json:
        print_json(cluster)
        return
    rows = [
        (
            node.name,
            f"{node.cpus_free:g}/{node.cpus:g}",
            f"{node.gpus_free:g}/{node.gpus:g}" + (f" {node.gpu_type}" if node.gpu_type else ""),
            _going(node),
            _workers(node),
        )
        for node in cluster.nodes
    ]
    empty = "no node" if cluster.seen_at else "no reconciler has looked at a cluster yet"
    print_table(("Node", "CPUs free", "GPUs free", "", "Runs"), rows, empty=empty)
    if cluster.waiting:
        console().print(f"{cluster.waiting} tasks could start and wait for room")


def _going(node: "NodeView") -> str:
    if not node.draining:
        return ""
    return "draining" if node.leaves_in_seconds is None else f"draining, goes in {node.leaves_in_seconds:.0f} s"


def _workers(node: "NodeView") -> str:
    own = [
        f"{worker.job_id}/{worker.task}"
        + (f" x{worker.replicas}" if worker.replicas > 1 else "")
        + (" (moving)" if worker.moving else "")
        for worker in node.workers
    ]
    return ", ".join([*own, *([f"{node.others} of other projects"] if node.others else [])])

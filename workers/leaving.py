"""A node that must go: Ray is told, and the workers on it are waited for. The preStop hook of a worker's pod.

`python -m workers.leaving --seconds 90`, run where the node runs and with its environment. Ray's word makes the
reconciler move the blocks, each with a last checkpoint, and start nothing new here. Where that does not happen (no
head, no reconciler), the workers get the SIGTERM at half time that Kubernetes sends to a container's first process
alone.
"""

# ray ships no usable type stubs; what it returns is narrowed here.
# pyright: basic, reportAttributeAccessIssue=false

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import psutil

LOOK_SECONDS = 0.5
RAY_SECONDS = 10.0  # for the head to answer; it may be what is gone


def leave(seconds: float, *, announce: Callable[[float], None], workers: Callable[[], list[int]]) -> bool:
    """Announces, and waits until no worker is left, `seconds` at most. Whether none is left.

    `workers`: their pids. Those that are still there at half time get SIGTERM, once.
    """
    began = time.monotonic()
    announcing = threading.Thread(target=announce, args=(seconds,), daemon=True)
    announcing.start()
    announcing.join(min(RAY_SECONDS, seconds / 4))
    told = False
    while left := workers():
        waited = time.monotonic() - began
        if waited >= seconds:
            return False
        if not told and waited >= seconds / 2:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            told = True
        time.sleep(LOOK_SECONDS)
    return True


def workers_of(node: str) -> list[int]:
    """Pids of the processes in which `node` (its RAY_CLOUD_INSTANCE_ID) runs an actor or a task; Ray names them so."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = "".join(process.info["cmdline"] or [])
        if not title.startswith("ray::") or title.startswith("ray::IDLE") or "Agent" in title:
            continue
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RAY_CLOUD_INSTANCE_ID") == node:
                found.append(process.pid)
    return found


def drain(environment: Mapping[str, str], seconds: float) -> None:
    """Tells Ray that this node goes within `seconds`. Says on stderr what kept it from that.

    `environment` is the node's: RAY_ADDRESS, and RAY_CLOUD_INSTANCE_ID, as KubeRay sets them.
    """
    import ray._raylet  # late: tests of the waiting do without
    from ray.core.generated import autoscaler_pb2

    try:
        gcs = ray._raylet.GcsClient(address=environment["RAY_ADDRESS"])
        name = environment["RAY_CLOUD_INSTANCE_ID"]
        node = next((node_id for node_id, node in _living(gcs).items() if node.instance_id == name), None)
        if node is None:
            sys.stderr.write(f"cannot tell Ray that this node goes: it knows none of {name}\n")
            return
        by = int((time.time() + seconds) * 1000)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why_not = gcs.drain_node(node.hex(), reason, "its pod is being removed", by)
        if not accepted:
            sys.stderr.write(f"Ray does not drain this node: {why_not}\n")
    except Exception as error:  # ray raises its own, by mood; the wait matters more
        sys.stderr.write(f"cannot tell Ray that this node goes: {type(error).__name__}: {error}\n")


def _living(gcs: Any) -> dict[Any, Any]:
    """NodeID -> GcsNodeInfo of those that are not dead."""
    from ray.core.generated import gcs_pb2

    nodes = gcs.get_all_node_info(timeout=RAY_SECONDS)
    return {node_id: node for node_id, node in nodes.items() if node.state == gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, required=True, help="how long to wait at most")
    seconds = options.parse_args().seconds
    node = os.environ["RAY_CLOUD_INSTANCE_ID"]
    gone = leave(seconds, announce=lambda within: drain(os.environ, within), workers=lambda: workers_of(node))
    sys.exit(0 if gone else 1)


if __name__ == "__main__":
    main()

"""RayCluster: the one control-plane place that knows Ray."""

# ray ships no usable type stubs; what it returns is narrowed here.
# pyright: basic

import contextlib
import logging
import socket
import time
from collections.abc import Sequence
from typing import Any, Self

import grpc
import ray
import ray.exceptions
from ray._private import state as books
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dbserve.contracts.cluster import Capacity, Demand, Growth, Node, Presence, Resources
from dbserve.contracts.status import Reason, Run, Task
from dbserve.errors import ClusterUnavailable, StartupRefused
from dbserve.growing import VERDICT_SECONDS, Asking
from dbserve.settings import Settings, is_loopback
from workers.actor import BlockActor, WorkerConfig
from workers.presence import end, look

log = logging.getLogger(__name__)

GPU_TYPE_LABEL = "ray.io/accelerator-type"
GPU_TYPE = "accelerator_type:"  # begins the name of a resource that every node with such a GPU has
ASK_AGAIN_SECONDS = 30.0  # Ray's books may have been lost with its head
_WHO_IS_THERE = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
STRANGER_SECONDS = 10.0  # for Ray to turn a stranger away
LOOK_SECONDS = 2.0  # for another node to say what it sees; then it is not known, until it does
POLL_SECONDS = 0.01  # for what it says to be fetched
REMEMBERED_WORKERS = 4096  # whose death may still be explained


class RayCluster:
    """Workers as detached actors named after their Run, so that a restarted control plane finds them again."""

    def __init__(self, identity: str, config: WorkerConfig, *, autoscaling: bool = False) -> None:
        self.identity = identity
        self._config = config
        self._autoscaling = autoscaling
        self._asking = Asking()
        self._asked_for: tuple[tuple[Demand, ...], float] = ((), float("-inf"))  # and when (monotonic seconds)
        self._verdict_at = float("-inf")  # the same, when its answer was last looked at
        self._works: dict[
            Run, Any
        ] = {}  # what Ray promised of work(); it never ends well, since the process ends first
        self._living: frozenset[str] | None = None  # nodes, at the last look; None: there was none
        # what other nodes have been asked and have not answered, and when (monotonic seconds)
        self._looks: dict[Run, tuple[Any, float]] = {}

    @classmethod
    def connect(cls, settings: Settings, deployment: str) -> Self:
        """Joins the cluster at `settings.ray_address` as a driver, and sees the workers of `deployment` alone.

        Raises:
            ClusterUnavailable: nothing answers there, or it refuses our token or version.
        """
        try:
            ray.init(
                address=settings.ray_address,
                namespace=f"dbserve-{deployment}",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # ray raises ConnectionError, RuntimeError, ValueError and its own, by mood
            raise ClusterUnavailable(f"no Ray cluster at {settings.ray_address}: {error}") from error
        identity = ray.get_runtime_context().worker.node.session_name
        config = WorkerConfig(
            redis_url=settings.redis.told(),
            artifacts=settings.artifacts,
            cache_dir=settings.cache_dir,
            lease_seconds=settings.lease_seconds,
            otlp_endpoint=settings.otlp_endpoint,
            data_allow=str(settings.data_rules),
        )
        return cls(identity, config, autoscaling=settings.autoscaling)

    def refuse_open_doors(self) -> None:
        """Raises StartupRefused where a cluster that can be reached from outside answers whoever asks.

        It is asked as a stranger would: a token of ours says nothing of whether others need one.
        """
        address = ray.get_runtime_context().gcs_address
        if is_loopback(address.rpartition(":")[0].strip("[]")):
            return
        with grpc.insecure_channel(address) as stranger:
            try:
                stranger.unary_unary(_WHO_IS_THERE)(b"", timeout=STRANGER_SECONDS)
            except grpc.RpcError as refused:
                if refused.code() is grpc.StatusCode.UNAUTHENTICATED:
                    return
                raise ClusterUnavailable(f"Ray at {address} does not say whether it asks for a token") from refused
        raise StartupRefused(
            f"the Ray cluster at {address} can be reached from outside and answers without a token: start all its "
            "nodes with RAY_AUTH_MODE=token and the same token, whose file DBSERVE_RAY_AUTH_TOKEN_PATH names"
        )

    def disconnect(self) -> None:
        ray.shutdown()

    def capacity(self) -> Capacity:
        """What every living node offers, in use or not, and which of them are about to go."""
        with _reaching_ray():
            nodes, draining = ray.nodes(), books.state.get_draining_nodes()
        now = time.time()
        living = tuple(_node(node, draining, now) for node in nodes if node["Alive"])
        self._living = frozenset(node.id for node in living)
        return Capacity(living, Growth(left_out=self._asking.left_out) if self._autoscaling else None)

    def alive(self) -> set[Run]:
        """Runs whose actor exists or still waits for its resources."""
        with _reaching_ray():
            names = list_named_actors()
        return {run for name in names if (run := _run(name)) is not None}

    def launch(self, run: Run, resources: Resources, nodes: Sequence[str]) -> None:
        """Asks for the leading actor and returns at once. Harmless when it exists already, and works or does not yet.

        `nodes` are those of the replicas, the leading one's first; none: anywhere.
        """
        told = resources.told
        with _reaching_ray():
            actor = BlockActor.options(
                name=_name(run),
                lifetime="detached",
                get_if_exists=True,
                num_cpus=told.cpus,
                num_gpus=told.gpus,
                scheduling_strategy=_pinned(nodes[0]) if nodes else "DEFAULT",
            ).remote(run.model_dump_json(), self._config, resources.cpus, resources.gpus)
            self._works[run] = actor.work.remote()
        _forget_the_oldest(self._works)

    def stop(self, run: Run, *, task: Task | None) -> None:
        """Kills the actor, and its process where it outlives the actor, on whatever node that can be reached."""
        with _reaching_ray(), contextlib.suppress(ValueError):  # ValueError: no such actor any more
            ray.kill(ray.get_actor(_name(run)), no_restart=True)
        if task is None or task.pid is None:
            return
        if task.node == socket.gethostname():
            end(task.pid, task.born)
        elif task.node_id is not None and task.run not in self._looks and self._node_lives(task.node_id):
            _on_node(task.node_id, _END).remote(task.pid, task.born)

    def presence(self, task: Task) -> Presence:
        """Whether the worker of `task` still has its process, and the GPU it held. Waits for nobody.

        ASKED: its node was asked less than LOOK_SECONDS ago, and has not answered yet. UNKNOWN: it has not for longer,
        or is dead in Ray's books, which the process may survive.
        """
        if task.pid is None:
            return Presence.PRESENT if task.run in self.alive() else Presence.GONE
        gpu = task.gpu is not None
        if task.node == socket.gethostname():
            return look(task.pid, task.born, gpu=gpu)
        if task.node_id is None or not self._node_lives(task.node_id):
            self._looks.pop(task.run, None)
            return Presence.UNKNOWN
        if task.run not in self._looks:
            question = _on_node(task.node_id, _LOOK).remote(task.pid, task.born, gpu=gpu)
            self._looks[task.run] = question, time.monotonic()
            _forget_the_oldest(self._looks)
        question, asked_at = self._looks[task.run]
        try:
            with _reaching_ray():
                answer = ray.get(question, timeout=POLL_SECONDS)
        except ray.exceptions.GetTimeoutError:  # the same question stands
            return Presence.ASKED if time.monotonic() - asked_at < LOOK_SECONDS else Presence.UNKNOWN
        except ray.exceptions.RayError:
            answer = Presence.UNKNOWN
        del self._looks[task.run]
        return Presence(answer)

    def cause_of_death(self, run: Run) -> tuple[Reason, str] | None:
        """What Ray knows of the end of a worker that this driver launched. None: nothing that would explain it.

        Never blocks.
        """
        work = self._works.get(run)
        if work is None or not ray.wait([work], timeout=0)[0]:
            return None
        try:
            ray.get(work, timeout=1.0)
        except ray.exceptions.RayError as error:
            return explained(error)
        return None

    def grow(self, in_use: Sequence[Demand], waiting: Sequence[Demand]) -> None:
        """Tells the autoscaler what it is to have room for, which it remembers until it is told something else."""
        from ray.autoscaler.sdk import request_resources  # late: most clusters have no autoscaler, and it is large
        from ray.autoscaler.v2.utils import is_autoscaler_v2

        now = time.monotonic()
        with _reaching_ray():
            if waiting and now - self._verdict_at >= VERDICT_SECONDS:
                if self._asked_for[0] and _refuses(self._asked_for[0]):
                    self._asking.refused(now)
                self._verdict_at = now
            wanted = self._asking.request(in_use, waiting, now)
            if wanted == self._asked_for[0] and now - self._asked_for[1] < ASK_AGAIN_SECONDS:
                return
            bundles = [_bundle(demand) for demand in wanted for _ in range(demand.count)]
            selectors = [_selector(demand) for demand in wanted for _ in range(demand.count)]
            is_autoscaler_v2(fetch_from_server=True)  # which Ray would remember from before there was one
            try:
                request_resources(bundles=bundles, bundle_label_selectors=selectors)
            except ValueError as refused:  # of a label that it could not be, which an earlier version took
                log.warning("Ray does not take a request for nodes: %s", refused)
                self._asking.refused(now)
                return
        self._asked_for = wanted, now

    def _node_lives(self, node_id: str) -> bool:
        """As of the last look at the cluster's capacity, with which a reconciler begins every turn."""
        if self._living is None:
            self.capacity()
        return self._living is not None and node_id in self._living


def _node(node: dict[str, Any], draining: dict[str, int], now: float) -> Node:
    """`draining`: by the node's id, unix milliseconds at which it goes; 0: that was not said."""
    held, labels, node_id = node["Resources"], node["Labels"], node["NodeID"]
    goes_at = draining.get(node_id, 0) / 1000.0
    types = (name.removeprefix(GPU_TYPE) for name in held if name.startswith(GPU_TYPE))
    return Node(
        id=node_id,
        name=node["NodeManagerHostname"],
        resources=Resources(held.get("CPU", 0.0), held.get("GPU", 0.0)),
        labels=labels,
        gpu_type=labels.get(GPU_TYPE_LABEL) or next(types, None),
        draining=node_id in draining,
        leaves_in=max(0.0, goes_at - now) if goes_at else None,
    )


def _bundle(demand: Demand) -> dict[str, float]:
    told = demand.resources.reserved
    return {name: count for name, count in (("CPU", told.cpus), ("GPU", told.gpus)) if count}


def _selector(demand: Demand) -> dict[str, str]:
    typed = {} if demand.gpu_type is None else {GPU_TYPE_LABEL: demand.gpu_type}
    return {**dict(demand.labels), **typed}


def _refuses(asked: Sequence[Demand]) -> bool:
    """Whether the autoscaler has found a request for as many to be beyond it. Of the first one nothing is known."""
    from ray.core.generated import autoscaler_pb2

    told: bytes = ray.get_runtime_context().worker.gcs_client.get_cluster_status()
    reply: Any = autoscaler_pb2.GetClusterStatusReply.FromString(told)  # pyright: ignore[reportAttributeAccessIssue]
    beyond = reply.autoscaling_state.infeasible_cluster_resource_constraints
    count = sum(demand.count for demand in asked)
    return any(sum(one.count for one in constraint.resource_requests) == count for constraint in beyond)


def explained(error: Exception) -> tuple[Reason, str] | None:
    """What Ray's error says of a worker's death, where it says more than that the worker is dead."""
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return Reason.HOST_OOM, next(filter(None, lines), "Ray's memory monitor killed the worker")
    if isinstance(error, ray.exceptions.ActorUnschedulableError):
        return Reason.PREEMPTED, "its node was gone before it had begun"
    if isinstance(error, ray.exceptions.ActorDiedError):
        said = next((line for line in lines if "node has died" in line), None)
        reason = Reason.PREEMPTED if error.preempted else Reason.WORKER_LOST
        return None if said is None else (reason, said)
    return None


_AT_ONCE: Any = ray.remote(num_cpus=0, max_retries=0)
_END, _LOOK = _AT_ONCE(end), _AT_ONCE(look)


def _on_node(node_id: str, task: Any) -> Any:
    """The task, to run on that node and no other, whatever is free there."""
    return task.options(scheduling_strategy=_pinned(node_id))


def _pinned(node_id: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _forget_the_oldest(remembered: dict[Run, Any]) -> None:
    while len(remembered) > REMEMBERED_WORKERS:
        del remembered[next(iter(remembered))]


def _name(run: Run) -> str:
    return f"{run.job_id}/{run.task}/{run.attempt}"


def _run(name: str) -> Run | None:
    """The Run that an actor's name says; None for an actor that is not ours."""
    match name.split("/"):
        case [job_id, task, attempt] if attempt.isdecimal():
            return Run(job_id=job_id, task=task, attempt=int(attempt))
        case _:
            return None


@contextlib.contextmanager
def _reaching_ray():
    try:
        yield
    except (ray.exceptions.RaySystemError, ray.exceptions.RpcError, ConnectionError) as error:
        raise ClusterUnavailable(f"Ray does not answer: {error}") from error

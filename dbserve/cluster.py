"""RayCluster: the one control-plane place that knows Ray."""

# ray ships no usable type stubs; what it returns is narrowed here.
# pyright: basic

import contextlib
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Self

import ray
import ray.exceptions
from ray.util import list_named_actors

from dbserve.contracts.cluster import Capacity, Resources
from dbserve.contracts.status import Run
from dbserve.errors import ClusterUnavailable
from dbserve.settings import Settings
from workers.actor import BlockActor, WorkerConfig


class RayCluster:
    """Workers as detached actors named after their Run, so that a restarted control plane finds them again."""

    def __init__(self, identity: str, config: WorkerConfig) -> None:
        self.identity = identity
        self._config = config

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
        config = WorkerConfig(redis_url=settings.redis_url, artifacts=settings.artifacts, cache_dir=settings.cache_dir)
        return cls(identity, config)

    def disconnect(self) -> None:
        ray.shutdown()

    def capacity(self) -> Capacity:
        """What every living node offers, in use or not."""
        with _reaching_ray():
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return Capacity(tuple(Resources(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes))

    def alive(self) -> set[Run]:
        """Runs whose actor exists or still waits for its resources."""
        with _reaching_ray():
            names = list_named_actors()
        return {run for name in names if (run := _run(name)) is not None}

    def launch(self, run: Run, resources: Resources) -> None:
        """Asks for an actor and returns at once. Harmless when it exists already, and works or does not yet."""
        with _reaching_ray():
            actor = BlockActor.options(
                name=_name(run),
                lifetime="detached",
                get_if_exists=True,
                num_cpus=round(resources.cpus, 4),  # finer ones Ray refuses
                num_gpus=round(resources.gpus, 4),
            ).remote(run.model_dump_json(), self._config, resources.cpus, resources.gpus)
            actor.work.remote()

    def stop(self, run: Run, *, node: str | None, pid: int | None) -> None:
        """Kills the actor, and its process where it outlives the actor on this machine."""
        with _reaching_ray(), contextlib.suppress(ValueError):  # ValueError: no such actor any more
            ray.kill(ray.get_actor(_name(run)), no_restart=True)
        if pid is not None and self.process_exists(node=node, pid=pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def process_exists(self, *, node: str | None, pid: int | None) -> bool:
        """Whether a worker's process is still there. Only this machine can be looked at; others are Ray's word."""
        if node != socket.gethostname() or pid is None:
            return False
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return command.startswith(b"ray::") and state != "Z"


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

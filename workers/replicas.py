"""Replicas: a task's other workers as Ray actors, on whichever nodes they were granted, owned by the leading one's.

Ray ends an actor whose owner is gone, wherever they are; the line between them ends it where Ray cannot be asked.
"""

# ray ships no usable type stubs; what it returns is narrowed here.
# pyright: basic

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions
from ray.util import get_node_ip_address
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dbserve.admission import parse_allowed
from dbserve.contracts.cluster import Resources
from dbserve.contracts.status import Reason
from dbserve.datasets.reach import limit_reach
from dbserve.errors import WorkerLost
from workers.presence import gpu_uuids
from workers.watchdog import end_with_parent

if TYPE_CHECKING:  # torch takes seconds to come
    import torch

    from workers.data import Split
    from workers.orders import Letter, Orders, Rows
    from workers.parallel import Call, Death, Hired

COME_SECONDS = 180.0  # a process, torch, and a line to the leader: the nodes are there already
STOP_SECONDS = 5.0  # that a replica gets to end by itself


@dataclass(frozen=True)
class ReplicaCrew:
    """The replicas of one attempt: `nodes` are Ray's names for theirs, the leading one's first, whose process this is.

    `cpus` and `gpus` are held by each of them. `wanted` is called with the rank of one whose machine is wanted, `stuck`
    with what was lost where the training cannot see it, each in a thread of its own.
    """

    nodes: Sequence[str]
    cpus: float
    gpus: float
    silence_seconds: float
    cache_dir: Path
    data_allow: str | None
    came: Callable[[int, str, str | None], None]
    wanted: Callable[[int], None]
    stuck: Callable[[WorkerLost], None]
    come_seconds: float = COME_SECONDS

    @property
    def size(self) -> int:
        return len(self.nodes)

    @property
    def host(self) -> str:
        return get_node_ip_address()

    @property
    def threads(self) -> int:
        return max(1, int(self.cpus))

    def rows(self, orders: "Orders") -> "AbstractContextManager[Rows | None]":
        """They open the data themselves: the shards are decoded once a node, whoever asks first."""
        return nullcontext()

    def device(self, rank: int, leading: "torch.device") -> str:
        """The first GPU that it sees: Ray shows each actor its own alone."""
        return leading.type

    def hire(self, call: "Call") -> "Hired":
        told = Resources(self.cpus, self.gpus).told
        actor = ReplicaActor.options(
            num_cpus=told.cpus,
            num_gpus=told.gpus,
            scheduling_strategy=NodeAffinitySchedulingStrategy(self.nodes[call.rank], soft=False),
        ).remote(call.model_dump_json(), self.cache_dir, self.data_allow)
        return _Actor(actor, actor.work.remote())


@ray.remote(max_restarts=0, max_task_retries=0)  # the reconciler retries, and nobody else
class ReplicaActor:
    """Follows the leading replica in a process of its own, which ends with it.

    Its method is a plain one: Ray runs those in the main thread, where alone SIGTERM can be met. Its leader is told of
    it, and saves and stops for both; until then the replica is needed.
    """

    def __init__(self, call: str, cache_dir: Path, data_allow: str | None) -> None:
        self._call = call
        self._cache_dir = cache_of_node(os.environ, cache_dir)
        if data_allow is not None:
            limit_reach(parse_allowed(data_allow), own=self._cache_dir)
        self._came = False
        self._tell: Callable[[], None] | None = None
        signal.signal(signal.SIGTERM, self._remember)

    def work(self) -> None:
        end_with_parent()
        try:
            self._follow()
        except Exception:
            traceback.print_exc()  # what follows takes its place
        finally:  # a worker that stayed would look as if it worked
            ray.actor.exit_actor()  # pyright: ignore[reportAttributeAccessIssue]

    def _follow(self) -> None:
        from workers.data import open_dataset
        from workers.follower import follow
        from workers.parallel import Call

        def rows(letter: "Letter") -> "tuple[Split, Split | None]":
            data = open_dataset(letter.plan.data, letter.spec.data, cache_dir=self._cache_dir)
            return data.train, data.validation

        call = Call.model_validate_json(self._call)
        follow(call, rows, gpu=gpus_held(), meet=self._meet)

    def _meet(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        if self._came:
            tell()

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._tell is not None:  # not in the signal's handler: whoever it interrupted may be sending
            threading.Thread(target=self._tell, name="wanted", daemon=True).start()


class _Actor:
    def __init__(self, actor: Any, work: Any) -> None:
        self._actor, self._work = actor, work

    def death(self, wait: float) -> "Death | None":
        from workers.parallel import Death

        if not ray.wait([self._work], timeout=wait)[0]:
            return None
        try:
            ray.get(self._work, timeout=1.0)
        except ray.exceptions.ActorUnschedulableError:  # it was gone before it was asked: no fault of the training's
            return Death("was not begun: its node is gone", Reason.PREEMPTED)
        except ray.exceptions.OutOfMemoryError as error:
            return Death(f"died: {_said(error)}", Reason.HOST_OOM)
        except ray.exceptions.ActorDiedError as error:
            return Death(f"died: {_said(error)}", Reason.PREEMPTED if error.preempted else "")
        except Exception as error:
            return Death(f"died: {_said(error)}")
        return Death("ended")

    def end(self) -> None:
        with contextlib.suppress(Exception):  # it is gone, or Ray is: it ends with its owner
            ray.wait([self._work], timeout=STOP_SECONDS)
            ray.kill(self._actor, no_restart=True)


def _said(error: Exception) -> str:
    """The sentence of Ray's that tells most: of a node's end, where it speaks of one, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in lines if "node has died" in line), lines[0] if lines else type(error).__name__)
    return telling.partition(". ")[0]


def gpus_held() -> str | None:
    """UUIDs of the GPUs that this actor was given, with commas, as far as they are known; None: it was given none."""
    return ",".join(gpu_uuids([str(gpu) for gpu in ray.get_gpu_ids()])) or None


def cache_of_node(environment: Mapping[str, str], told: Path) -> Path:
    """Where a node's workers keep decoded shards: where its own environment says, whose disks it knows.

    A relative path is another one in every process, and is passed over.
    """
    own = Path(environment.get("DBSERVE_CACHE_DIR", ""))
    return own if own.is_absolute() else told

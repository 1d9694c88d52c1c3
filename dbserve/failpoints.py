"""Places where a process can be made to die, between two durable effects. Only tests and soaks arm them.

DBSERVE_FAILPOINTS="checkpoint.manifest=/tmp/a,stop.killed=/tmp/b": whoever first reaches a named point, and can make
the file beside it, kills itself with SIGKILL. So each armed point fires once over all processes, and the file tells
that it did.
"""

import os
import signal
from functools import lru_cache
from pathlib import Path

VARIABLE = "DBSERVE_FAILPOINTS"

FAILPOINTS = frozenset(
    {
        "submit.planned",  # the job is planned; nothing of it is stored
        "submit.stored",  # the job is stored; its client has not been answered
        "launch.recorded",  # Launched is stored; the cluster has not been asked for a worker
        "launch.asked",  # the cluster was asked for a worker; the reconciler has not gone on
        "actor.started",  # Started is stored; no work has begun
        "checkpoint.staged",  # every file lies on the node; nothing is visible in the artefact store
        "checkpoint.content",  # object storage: the content is there; the manifest (of a model too) is not
        "checkpoint.manifest",  # the manifest is visible; the task's pointer has not moved
        "checkpoint.pointer",  # the pointer has moved; the checkpoints before it still lie there
        "finish.pointer",  # the last checkpoint is committed; Finished is not told
        "assembly.files",  # the model's files are visible; its record is not stored
        "evaluation.report",  # the report is stored; Finished is not told
        "giveup.stopped",  # the worker of an attempt given up is confirmed gone; its Crashed is not stored
        "webhook.claimed",  # a message is claimed; it has not been sent
        "webhook.answered",  # its receiver has answered; that is not noted
        "stop.killed",  # the worker of a task that is to stop is confirmed gone; Stopped is not stored
    }
)


def failpoint(name: str) -> None:
    """Ends the process here if DBSERVE_FAILPOINTS says so.

    Raises ValueError, at the first point reached at all, when the variable is not name=/path,... of known names.
    """
    assert name in FAILPOINTS, name
    marker = _armed().get(name)
    if marker is None:
        return
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@lru_cache(maxsize=1)
def _armed() -> dict[str, Path]:
    armed: dict[str, Path] = {}
    for entry in filter(None, os.environ.get(VARIABLE, "").split(",")):
        name, _, marker = entry.partition("=")
        if name not in FAILPOINTS or not Path(marker).is_absolute():
            raise ValueError(f"{VARIABLE}: {entry!r} is not <failpoint>=</absolute/path>; known: {sorted(FAILPOINTS)}")
        armed[name] = Path(marker)
    return armed

"""Whether a worker is there: real processes, a fake nvidia-smi, and what Ray says of a death. No cluster is started."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray.exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo  # pyright: ignore

from dbserve.cluster import explained
from dbserve.contracts.cluster import Presence
from dbserve.contracts.status import Reason
from workers.presence import birth, end, gpu_uuids, look


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(["sleep", "600"])
    yield running
    running.kill()
    running.wait(20)


def nvidia_smi(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = directory / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_a_process_is_told_by_its_pid_and_its_birth(process: subprocess.Popen[bytes]) -> None:
    born = birth(process.pid)
    assert born is not None
    assert look(process.pid, born, gpu=False) is Presence.PRESENT
    assert look(process.pid, born + 0.01, gpu=False) is Presence.GONE, "the pid was given again"


def test_no_other_process_is_killed_for_having_the_pid(process: subprocess.Popen[bytes]) -> None:
    born = birth(process.pid)
    assert born is not None
    end(process.pid, born - 100.0)
    end(process.pid, None)  # a record without a birth: only what Ray named may be killed
    assert process.poll() is None
    end(process.pid, born)
    assert process.wait(20) == -signal.SIGKILL


def test_a_worker_of_a_record_without_a_birth_is_told_by_the_name_that_ray_gave_it() -> None:
    code = "import time; time.sleep(600)"
    worker = subprocess.Popen(["ray::BlockActor.work", "-c", code], executable=sys.executable)
    try:
        assert look(worker.pid, None, gpu=False) is Presence.PRESENT
        end(worker.pid, None)
        assert worker.wait(20) == -signal.SIGKILL
    finally:
        worker.kill()
        worker.wait(20)


def test_a_stopped_process_is_there_and_a_dead_one_that_nobody_waited_for_is_not(
    process: subprocess.Popen[bytes],
) -> None:
    born = birth(process.pid)
    process.send_signal(signal.SIGSTOP)
    assert look(process.pid, born, gpu=False) is Presence.PRESENT
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}").exists()
    assert look(process.pid, born, gpu=False) is Presence.GONE


@pytest.mark.parametrize(
    ("script", "presence"),
    [
        ("echo {pid}; echo 99999999", Presence.PRESENT),
        ("echo 99999999; echo 1{pid}", Presence.GONE),
        ("true", Presence.GONE),
        ("exit 9", Presence.UNKNOWN),
    ],
)
def test_a_dead_worker_is_gone_when_the_driver_counts_no_gpu_memory_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, presence: Presence
) -> None:
    dead = subprocess.Popen(["sleep", "600"])
    born = birth(dead.pid)
    dead.kill()
    dead.wait(20)
    nvidia_smi(tmp_path, monkeypatch, script.format(pid=dead.pid))
    assert look(dead.pid, born, gpu=True) is presence
    assert look(dead.pid, born, gpu=False) is Presence.GONE, "it held none"


def test_gpu_memory_of_another_process_with_the_pid_is_not_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes]
) -> None:
    nvidia_smi(tmp_path, monkeypatch, f"echo {process.pid}")
    assert look(process.pid, 1.0, gpu=True) is Presence.GONE


def test_gpus_are_called_what_the_driver_calls_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_uuids(["0"]) == ("0",), "without a driver to ask"
    nvidia_smi(tmp_path, monkeypatch, "echo '0, GPU-aa'; echo '1, GPU-bb'")
    assert gpu_uuids(["1", "0"]) == ("GPU-bb", "GPU-aa")
    assert gpu_uuids(["7", "MIG-cc"]) == ("7", "MIG-cc")
    nvidia_smi(tmp_path, monkeypatch, "exit 9")
    assert gpu_uuids(["1"]) == ("1",)


def actor_died(message: str, *, drained: bool = False) -> ray.exceptions.ActorDiedError:
    context = ActorDiedErrorContext(error_message=message, class_name="BlockActor", actor_id=bytes(16))  # pyright: ignore
    if drained:
        context.node_death_info.reason = NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED  # pyright: ignore
    return ray.exceptions.ActorDiedError(context)  # pyright: ignore


def test_a_death_that_ray_can_explain_has_its_reason() -> None:
    assert explained(actor_died("Worker unexpectedly exits with a connection error code 2.")) is None
    node = "The actor died because its node has died. Node Id: ab"
    assert explained(actor_died(node)) == (Reason.WORKER_LOST, node)
    assert explained(actor_died(node, drained=True)) == (Reason.PREEMPTED, node)
    full = ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory was 9 GB")
    assert explained(full) == (Reason.HOST_OOM, "Task was killed due to the node running low on memory.")

"""A worker killed between any two durable effects of a checkpoint: the next attempt goes on at the last committed step.

A first attempt commits step 4; a second, in a process of its own, is killed at the failpoint; a third trains on.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dbserve.artefacts import Artefacts, open_artefacts, task_directory
from dbserve.contracts.status import Crashed, Finished, Reason, TaskState
from dbserve.failpoints import VARIABLE
from dbserve.store import JobStore
from tests.attempts import STEPS, TASK, OneTask, Orders, attempt, final_state, save_before_going_on, training_spec
from tests.integration.training_process import begin
from tests.object_storage import object_storage
from tests.training import planned, same
from workers.checkpoint import MANIFEST, TrainingState
from workers.pulse import Interrupted, Order

SPEC = training_spec()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many as the process that is killed: sums over other parts differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fast_store(monkeypatch: pytest.MonkeyPatch) -> None:
    save_before_going_on(monkeypatch)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_storage() as server:
        yield server.location("killed")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainingState:
    """What a training ends with that nobody kills."""
    store, artefacts = OneTask(SPEC), open_artefacts(str(tmp_path_factory.mktemp("undisturbed")))
    asyncio.run(attempt(store, artefacts, SPEC))
    return final_state(artefacts, store.task, SPEC)


async def killed_at(failpoint: str, marker: Path, *arguments: str) -> None:
    """Runs the pending attempt in a process, and sees it die at the failpoint."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.training_process", *arguments),
        env=os.environ | {VARIABLE: f"{failpoint}={marker}", "OMP_NUM_THREADS": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()
    assert await asyncio.to_thread(marker.exists)


async def lost(store: JobStore, job_id: str) -> None:
    run = (await store.task(job_id, TASK)).run
    await store.apply(Crashed(run=run, reason=Reason.PREEMPTED, message="killed"))


def lying(artefacts: Artefacts, job_id: str) -> dict[str, bool]:
    """Every directory under the task's attempts, and whether it is a whole checkpoint."""
    home = task_directory(job_id, TASK)
    found = [home / name / child for name in artefacts.names(home) for child in artefacts.names(home / name)]
    return {str(at): not at.name.startswith(".") and MANIFEST in artefacts.names(at) for at in found}


@pytest.mark.parametrize(
    ("kind", "failpoint", "committed", "whole", "partial"),
    [
        ("directory", "checkpoint.staged", 4, 2, 1),  # 2 and 4, and what was being staged
        ("directory", "checkpoint.manifest", 4, 3, 0),  # and 6, which nothing points at
        ("directory", "checkpoint.pointer", 6, 3, 0),  # and 6; 2 is still to be removed
        ("directory", "finish.pointer", STEPS, 2, 0),
        ("bucket", "checkpoint.content", 4, 2, 1),
        ("bucket", "checkpoint.manifest", 4, 3, 0),
    ],
)
async def test_a_worker_killed_in_the_middle_of_a_save_loses_nothing_that_was_committed(
    store: JobStore,
    redis_url: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    undisturbed: TrainingState,
    kind: str,
    failpoint: str,
    committed: int,
    whole: int,
    partial: int,
) -> None:
    location = str(tmp_path / "root") if kind == "directory" else request.getfixturevalue("bucket")
    artefacts = open_artefacts(location)
    made, _ = await store.create_job(SPEC, planned(SPEC), idempotency_key=None, request_digest="d")
    job_id = made.record.id

    first = await begin(store, job_id)
    stop = Orders(lambda step: Order.SAVE_AND_STOP if step == 4 else Order.GO)
    with pytest.raises(Interrupted):
        await attempt(store, artefacts, SPEC, stop, task=first)
    await lost(store, job_id)

    await killed_at(failpoint, tmp_path / "marker", redis_url, job_id, location)
    task = await store.task(job_id, TASK)
    assert (task.state, task.checkpoints[-1].step) == (TaskState.RUNNING, committed)
    left = lying(artefacts, job_id)
    assert (sum(left.values()), len(left) - sum(left.values())) == (whole, partial)
    await lost(store, job_id)

    third, pulse = await begin(store, job_id), Orders()
    await attempt(store, artefacts, SPEC, pulse, task=third)
    assert pulse.steps == list(range(committed + 1, STEPS + 1))
    assert not any(event.data.get("lost") for event in await store.history.events(job_id)), "no checkpoint was damaged"
    done = await store.apply(Finished(run=third.run))
    assert set(lying(artefacts, job_id)) == {ref.path for ref in done.checkpoints}, "nothing else is left"
    assert same(final_state(artefacts, done, SPEC), undisturbed)

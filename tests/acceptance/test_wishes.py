"""A user pauses, resumes, cancels and takes up again; a block that keeps dying ends alone. Real Ray, real Redis."""

import os
import signal
from collections.abc import Callable

import psutil
import pytest

from dbserve.client import Client, Conflict
from dbserve.contracts.status import JobStatus, Reason, TaskState
from dbserve.contracts.views import BlockView
from tests.acceptance.conftest import Service
from tests.acceptance.digests import digests
from tests.acceptance.jobs import digits_job, long_job, patient_job
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(600)  # a shared machine can be three times slower than itself


def trains(client: Client, job_id: str, block: int = 0, *, attempt: int = 1) -> Callable[[], bool]:
    def begun() -> bool:
        seen = client.blocks(job_id)[block]
        return seen.status is TaskState.RUNNING and seen.attempt == attempt and seen.step > 10

    return begun


def gone(blocks: tuple[BlockView, ...]) -> bool:
    return not any(block.pid is not None and _holds_anything(block.pid) for block in blocks)


def _holds_anything(pid: int) -> bool:
    """A dead process that its raylet has not asked after yet is a number, and holds nothing."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_paused_job_leaves_its_workers_place_and_ends_with_the_same_bits(
    client: Client, service: Service, patient_digests: dict[str, str]
) -> None:
    job = client.submit(patient_job("paused"))
    wait_for(trains(client, job.id), seconds=120, what="block 0 trains")
    before = client.blocks(job.id)
    assert client.pause(job.id).status in {JobStatus.PAUSING, JobStatus.PAUSED}
    wait_for(lambda: client.job(job.id).status is JobStatus.PAUSED, seconds=60, what="it is paused")
    assert gone(before), "their processes are gone, and with them what they held"
    saved = {ref.task: ref.step for ref in client.checkpoints(job.id)}
    assert all(saved[block.name] >= block.step for block in before if block.step), "saved where they were"
    with pytest.raises(Conflict):
        client.retry(job.id)
    client.resume(job.id)
    ended = client.wait(job.id, timeout=400)
    assert ended.status is JobStatus.SUCCEEDED, ended
    blocks = client.blocks(job.id)
    assert blocks[0].attempt == 2, "it was paused; its sibling may have ended before"
    assert [block.restarts for block in blocks] == [{}, {}], "and no attempt was lost by it"
    assert digests(service.data_dir / "artifacts", job.id) == patient_digests


@pytest.mark.chaos
def test_a_cancelled_job_keeps_a_last_checkpoint_and_can_be_taken_up_again(
    client: Client, service: Service, patient_digests: dict[str, str]
) -> None:
    job = client.submit(patient_job("cancelled"))
    wait_for(trains(client, job.id), seconds=120, what="block 0 trains")
    before = client.blocks(job.id)
    client.cancel(job.id)
    assert client.wait(job.id, timeout=60).status is JobStatus.CANCELLED
    assert gone(before)
    saved = {ref.task: ref.step for ref in client.checkpoints(job.id)}
    assert saved["block-0"] >= before[0].step
    client.retry(job.id)
    assert client.wait(job.id, timeout=400).status is JobStatus.SUCCEEDED
    assert digests(service.data_dir / "artifacts", job.id) == patient_digests
    kinds = [event.kind for event in client.events(job.id)]
    assert (kinds.count("job_finished"), kinds.count("job_retry_requested"), kinds[-1]) == (2, 1, "job_finished")


@pytest.mark.chaos
def test_a_forced_cancel_saves_nothing_and_leaves_nobody(client: Client) -> None:
    job = client.submit(long_job(name="forced", checkpoint={"every_steps": 1_000_000}))
    wait_for(trains(client, job.id), seconds=120, what="block 0 trains")
    before = client.blocks(job.id)
    client.cancel(job.id, force=True)
    assert client.wait(job.id, timeout=60).status is JobStatus.CANCELLED
    assert gone(before)
    assert client.checkpoints(job.id) == ()


@pytest.mark.chaos
def test_a_block_that_always_dies_ends_with_its_reason_while_its_sibling_goes_on(client: Client) -> None:
    job = client.submit(digits_job(name="poison", retry={"max_attempts": 2, "backoff_seconds": 0.1}))
    killed: set[int] = set()

    def block_0_failed() -> bool:
        block = client.blocks(job.id)[0]
        if block.pid is not None and block.pid not in killed and block.status is TaskState.RUNNING:
            os.kill(block.pid, signal.SIGKILL)
            killed.add(block.pid)
        return block.status is TaskState.FAILED

    wait_for(block_0_failed, seconds=180, what="block 0 has no attempt left")
    assert len(killed) == 2, "the fault did happen, as often as there were attempts"
    ended = client.wait(job.id, timeout=300)
    poisoned, sibling = client.blocks(job.id)
    assert (ended.status, ended.reason) == (JobStatus.FAILED, Reason.WORKER_LOST)
    assert (poisoned.restarts, sibling.status) == ({Reason.WORKER_LOST: 2}, TaskState.SUCCEEDED)
    retried = client.retry_block(job.id, 0)
    assert (retried.status, retried.attempt) == (TaskState.PENDING, 3)
    assert client.wait(job.id, timeout=300).status is JobStatus.SUCCEEDED, "the block is trained, and what needs it"


@pytest.mark.chaos
def test_deadlines_end_a_job_with_their_reason(client: Client) -> None:
    late = client.submit(long_job(name="late", deadlines={"total_seconds": 15.0}))
    waiting = client.submit(
        digits_job(name="waiting", resources={"gpus_per_block": 1}, deadlines={"queue_seconds": 5.0})
    )
    for job, words in ((waiting, "no worker was free"), (late, "not done 15 s after")):
        ended = client.wait(job.id, timeout=120)
        assert (ended.status, ended.reason) == (JobStatus.FAILED, Reason.DEADLINE_EXCEEDED)
        assert words in (ended.message or "")
    assert gone(client.blocks(late.id))

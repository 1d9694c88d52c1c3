"""What users want of a job: that it pauses, goes on, ends, is tried again, is forgotten. The reconciler makes it so.

A wish is durable when it is answered, and may be repeated. What needs no worker's word happens in the same transaction.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.status import (
    NO_TIME,
    TERMINAL,
    TERMINAL_JOB,
    CancelRequested,
    Intent,
    JobStatus,
    PauseRequested,
    Reason,
    Resumed,
    Retried,
    Task,
    TaskState,
)
from dbserve.errors import JobNotPaused, JobNotTerminal, JobTerminal, NothingToRetry, QuotaExceeded
from dbserve.lifecycle import advance, job_state, standing
from dbserve.store import keys
from dbserve.store.attempts import retire, sums_so_far
from dbserve.store.codec import brief
from dbserve.store.connection import Seen, reaching_redis, read_job, transaction
from dbserve.store.history import close_if_ended, log_event
from dbserve.store.outbox import announce
from dbserve.store.scripts import UNFINISHED

Attempt = Callable[[Pipeline], Awaitable[None]]


class Wishes:
    """Every method may raise StoreUnavailable, and JobNotFound."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def cancel(self, job_id: str, *, force: bool = False) -> None:
        """The job is to end. Its workers save a last checkpoint first; with `force` they are killed at once.

        Raises:
            JobTerminal: the job succeeded or failed before.
        """

        async def attempt(pipe: Pipeline) -> None:
            seen = await read_job(pipe, job_id)
            status = _status(seen)
            if status in {JobStatus.SUCCEEDED, JobStatus.FAILED}:
                raise JobTerminal(f"job {job_id} has already {status}")
            if status is JobStatus.CANCELLED or (seen.intent is Intent.CANCEL and not force):
                return
            waiting = {TaskState.PENDING, TaskState.PAUSED}
            asked = waiting | ({*TaskState} - TERMINAL if force else set[TaskState]())
            changed = {
                name: advance(task, CancelRequested(run=task.run, at=seen.now, stop_by=NO_TIME))
                for name, task in seen.tasks.items()
                if task.state in asked
            }
            await _commit(pipe, seen, changed, Intent.CANCEL, "job_cancel_requested", {"force": force})

        await self._transaction(job_id, attempt)

    async def pause(self, job_id: str) -> None:
        """Its workers save a last checkpoint and make room; nothing of it is started until it is resumed.

        Raises:
            JobTerminal: the job has ended, or is being cancelled.
        """

        async def attempt(pipe: Pipeline) -> None:
            seen = await read_job(pipe, job_id)
            status = _status(seen)
            if status in TERMINAL_JOB or seen.intent is Intent.CANCEL:
                raise JobTerminal(f"job {job_id} is {status}: there is nothing to pause")
            if seen.intent is Intent.PAUSE:
                return
            changed = {
                name: advance(task, PauseRequested(run=task.run, at=seen.now, stop_by=seen.now))
                for name, task in seen.tasks.items()
                if task.state is TaskState.PENDING
            }
            await _commit(pipe, seen, changed, Intent.PAUSE, "job_pause_requested")

        await self._transaction(job_id, attempt)

    async def resume(self, job_id: str) -> None:
        """The job goes on from its last checkpoints. Repeated for a job that runs, it changes nothing.

        Raises:
            JobNotPaused: the job has ended, or is being cancelled.
        """

        async def attempt(pipe: Pipeline) -> None:
            seen = await read_job(pipe, job_id)
            status = _status(seen)
            if status in TERMINAL_JOB or seen.intent is Intent.CANCEL:
                raise JobNotPaused(f"job {job_id} is {status}: there is nothing to resume")
            if seen.intent is Intent.RUN:
                return
            changed = {
                name: advance(task, Resumed(run=task.run, at=seen.now))
                for name, task in seen.tasks.items()
                if task.state is TaskState.PAUSED
            }
            await _commit(pipe, seen, changed, Intent.RUN, "job_resume_requested")

        await self._transaction(job_id, attempt)

    async def retry(self, job_id: str, *, task: str | None = None, quota: int | None = None) -> None:
        """Another try, with fresh budgets and from the last checkpoints, for whatever failed, was cancelled, or waits
        to be tried again; of one task and what was abandoned because of it, where `task` is given.

        Raises:
            NothingToRetry: everything succeeded or is under way; or the job is being cancelled.
            QuotaExceeded: the job has ended, and its owner has `quota` others that have not.
        """

        async def attempt(pipe: Pipeline) -> None:
            seen = await read_job(pipe, job_id)
            if seen.intent is Intent.CANCEL and _status(seen) not in TERMINAL_JOB:
                raise NothingToRetry(f"job {job_id} is being cancelled: wait for its end")
            changed = {
                name: advance(found, Retried(run=found.run, at=seen.now))
                for name, found in seen.tasks.items()
                if _wants_retry(found, task, seen.now)
            }
            if not changed:
                raise NothingToRetry(f"nothing of {task or f'job {job_id}'} has failed, or waits to be tried again")
            if _status(seen) in TERMINAL_JOB:
                await _refuse_beyond(quota, pipe, seen.record.owner)
            await _commit(
                pipe, seen, changed, Intent.RUN, "job_retry_requested", {"tasks": sorted(changed)}, quota=quota
            )

        await self._transaction(job_id, attempt)

    async def delete(self, job_id: str) -> None:
        """Forgets a job that has ended; its model stays. The reconciler removes its artefacts afterwards.

        Raises:
            JobNotTerminal
        """

        async def attempt(pipe: Pipeline) -> None:
            seen = await read_job(pipe, job_id)
            if (status := _status(seen)) not in TERMINAL_JOB:
                raise JobNotTerminal(f"job {job_id} is {status}: cancel it first")
            pipe.multi()
            pipe.delete(
                *(of(job_id) for of in (keys.job, keys.tasks, keys.progress, keys.events, keys.logs)),
                *(keys.course(job_id, name) for name in seen.tasks),
            )
            pipe.zrem(keys.JOBS, job_id)
            pipe.zrem(keys.jobs_of(seen.record.project), job_id)
            pipe.zrem(keys.FINISHED, job_id)
            pipe.srem(keys.ACTIVE, job_id)
            if seen.record.owner:
                pipe.srem(keys.owner(seen.record.owner), job_id)
            pipe.sadd(keys.DELETED, job_id)
            await pipe.execute()

        await self._transaction(job_id, attempt)

    async def deleted(self) -> set[str]:
        """Jobs whose artefacts are still to be removed."""
        async with reaching_redis():
            return await cast(Awaitable[set[str]], self._redis.smembers(keys.DELETED))

    async def artefacts_removed(self, job_id: str) -> None:
        """Nothing of a deleted job is left in the artefact store."""
        async with reaching_redis("write"):
            await self._redis.srem(keys.DELETED, job_id)

    async def _transaction(self, job_id: str, attempt: Attempt) -> None:
        await transaction(self._redis, [keys.tasks(job_id), keys.job(job_id)], attempt)


def write_tasks(pipe: Pipeline, seen: Seen, changed: Mapping[str, Task], intent: Intent) -> JobStatus:
    """The changed tasks, and what goes with every change: the job's standing, and its revision, by which readers know
    what to read anew."""
    job_id = seen.record.id
    now_is = standing([*(seen.tasks | dict(changed)).values()], intent)
    if changed:
        pipe.hset(keys.tasks(job_id), mapping={name: brief(task) for name, task in changed.items()})
    pipe.hset(keys.job(job_id), "standing", brief(now_is))
    pipe.hincrby(keys.job(job_id), "revision", 1)
    return now_is.status


def _status(seen: Seen) -> JobStatus:
    return job_state(list(seen.tasks.values()), seen.intent)


def _wants_retry(task: Task, named: str | None, now: float) -> bool:
    if named is None or task.run.task == named:
        in_backoff = task.state is TaskState.PENDING and task.not_before > now
        return in_backoff or task.state in {TaskState.FAILED, TaskState.CANCELLED}
    return task.state is TaskState.CANCELLED and task.reason is Reason.DEPENDENCY_FAILED


async def _refuse_beyond(quota: int | None, pipe: Pipeline, owner: str) -> None:
    """Raises QuotaExceeded. Whoever makes or reopens a job meanwhile changes what is watched."""
    if quota is None:
        return
    await pipe.watch(keys.ACTIVE)
    unfinished = int(await pipe.eval(UNFINISHED, 2, keys.owner(owner), keys.ACTIVE))
    if unfinished >= quota:
        raise QuotaExceeded(f"{unfinished} other jobs of this API key's project have not ended; it may have {quota}")


async def _commit(
    pipe: Pipeline,
    seen: Seen,
    changed: Mapping[str, Task],
    intent: Intent,
    kind: str,
    data: Mapping[str, object] | None = None,
    *,
    quota: int | None = None,
) -> None:
    job_id, before = seen.record.id, _status(seen)
    ended = [seen.tasks[name].run for name, task in changed.items() if task.run != seen.tasks[name].run]
    sums = await sums_so_far(pipe, ended)
    pipe.multi()
    pipe.hset(keys.job(job_id), "intent", intent.value)
    status = write_tasks(pipe, seen, changed, intent)
    retire(pipe, ended, sums)
    if before in TERMINAL_JOB and status not in TERMINAL_JOB:  # it was over, and is no more
        pipe.hdel(keys.job(job_id), "finished_at")
        pipe.zrem(keys.FINISHED, job_id)
        pipe.sadd(keys.ACTIVE, job_id)
        if quota is not None:
            pipe.sadd(keys.owner(seen.record.owner), job_id)
    log_event(pipe, job_id, kind, status, at=seen.now, data=data)
    announce(pipe, seen, changed, intent)
    close_if_ended(pipe, seen.record, status, at=seen.now)
    await pipe.execute()

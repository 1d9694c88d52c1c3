"""JobStore: jobs and their tasks. History and results hang off it."""

import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Self, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.snapshot import JobSnapshot
from dbserve.contracts.status import (
    TERMINAL_JOB,
    CancelRequested,
    Intent,
    JobRecord,
    JobStatus,
    Progress,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.errors import (
    IdempotencyMismatch,
    JobNotFound,
    JobNotTerminal,
    JobTerminal,
    StaleRun,
    StoreUnavailable,
)
from dbserve.lifecycle import advance, job_state, new_tasks
from dbserve.store import keys
from dbserve.store.connection import open_redis, reaching_redis, read_tasks, transaction
from dbserve.store.history import JOB_CREATED, History, close_if_ended, log_event
from dbserve.store.lease import Lease
from dbserve.store.results import Results
from dbserve.store.snapshots import as_snapshot, matches

SCHEMA = "1"
IDEMPOTENCY_TTL_SECONDS = 24 * 3600
RECENTLY_SECONDS = 300.0  # how long /metrics still shows a job that has ended
PARSED_PLANS = 512  # specs and plans never change, so their parsed form is kept
SCAN = 50  # jobs looked at a time when a listing filters


class JobStore:
    """Jobs, tasks and progress in Redis (>= 6.2). Every method may raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._plans: OrderedDict[str, tuple[JobSpec, JobPlan]] = OrderedDict()
        self.history = History(redis)
        self.results = Results(redis)
        self.lease = Lease(redis)

    @classmethod
    def from_url(cls, url: str, *, timeout: float = 5.0) -> Self:
        """Raises ConfigInvalid unless the url is `redis://`, `rediss://` or `unix://`. Connects on first use."""
        return cls(open_redis(url, timeout=timeout))

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        """Raises StoreUnavailable unless Redis answers and holds a schema that this version understands."""
        async with reaching_redis():
            await self._redis.set(keys.SCHEMA_KEY, SCHEMA, nx=True)
            schema = await self._redis.get(keys.SCHEMA_KEY)
        if schema != SCHEMA:
            raise StoreUnavailable(f"Redis holds schema {schema!r}; this version speaks {SCHEMA!r}")

    async def deployment(self) -> str:
        """A name for what this Redis holds, made once. Two deployments may share a Ray cluster by it."""
        async with reaching_redis():
            await self._redis.set(keys.DEPLOYMENT, secrets.token_hex(4), nx=True)
            return cast(str, await self._redis.get(keys.DEPLOYMENT))

    # --- jobs

    async def create_job(
        self, spec: JobSpec, plan: JobPlan, *, idempotency_key: str | None, request_digest: str
    ) -> tuple[JobRecord, bool]:
        """Stores the job in one transaction; returns it and whether this call made it.

        Raises:
            IdempotencyMismatch: the key came before with another request.
        """
        now = time.time()
        record = JobRecord(
            id=keys.new_job_id(now), name=spec.name, labels=dict(spec.labels), created_at=now, intent=Intent.RUN
        )
        tasks = new_tasks(record.id, plan, spec.retry, now=now)
        seen = keys.idempotency(idempotency_key) if idempotency_key else None

        async def attempt(pipe: Pipeline) -> tuple[JobRecord, bool]:
            if seen is not None and (before := await _seen_before(pipe, seen, request_digest)) is not None:
                return before, False
            pipe.multi()
            fields = {
                "record": record.model_dump_json(),
                "intent": Intent.RUN.value,
                "spec": spec.model_dump_json(),
                "plan": plan.model_dump_json(),
            }
            _write_hash(pipe, keys.job(record.id), fields)
            _write_hash(pipe, keys.tasks(record.id), {task.run.task: task.model_dump_json() for task in tasks})
            pipe.zadd(keys.JOBS, {record.id: 0})
            pipe.sadd(keys.ACTIVE, record.id)
            log_event(pipe, record.id, JOB_CREATED, JobStatus.QUEUED, at=now, data={"name": spec.name})
            if seen is not None:
                value = json.dumps({"digest": request_digest, "job_id": record.id})
                pipe.set(seen, value, ex=IDEMPOTENCY_TTL_SECONDS)
            await pipe.execute()
            return record, True

        return await transaction(self._redis, [seen] if seen else [], attempt)

    async def recall(self, idempotency_key: str, request_digest: str) -> JobRecord | None:
        """The job that this very request made before, if it did. Raises IdempotencyMismatch, as create_job."""

        async def attempt(pipe: Pipeline) -> JobRecord | None:
            return await _seen_before(pipe, seen, request_digest)

        seen = keys.idempotency(idempotency_key)
        return await transaction(self._redis, [seen], attempt)

    async def snapshot(self, job_id: str) -> JobSnapshot:
        """One consistent look at a job. Raises JobNotFound."""
        found = await self._snapshots([job_id])
        if not found:
            raise JobNotFound(job_id)
        return found[0]

    async def list_jobs(
        self,
        *,
        limit: int,
        after: str | None = None,
        status: JobStatus | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[list[JobSnapshot], str | None]:
        """Newest first, and the cursor of the next page (None: this was the last).

        The cursor names the last job seen, so that jobs arriving meanwhile shift nothing.

        Raises:
            ConfigInvalid: the cursor is not one of ours.
        """
        start = "+" if after is None else f"({keys.open_cursor(after)}"
        size = max(limit + 1, SCAN)
        wanted: list[JobSnapshot] = []
        while True:
            async with reaching_redis():
                ids = cast(list[str], await self._redis.zrevrangebylex(keys.JOBS, start, "-", 0, size))
            for snapshot in await self._snapshots(ids):
                if not matches(snapshot, status, labels or {}):
                    continue
                if len(wanted) == limit:
                    return wanted, keys.make_cursor(wanted[-1].record.id)
                wanted.append(snapshot)
            if len(ids) < size:
                return wanted, None
            start = f"({ids[-1]}"

    async def active_snapshots(self) -> list[JobSnapshot]:
        """Every job that has not ended, oldest first."""
        async with reaching_redis():
            ids = sorted(await cast(Awaitable[set[str]], self._redis.smembers(keys.ACTIVE)))
        return await self._snapshots(ids)

    async def recent_snapshots(self) -> list[JobSnapshot]:
        """Every job that has not ended, or ended less than RECENTLY_SECONDS ago: what /metrics shows."""
        since = time.time() - RECENTLY_SECONDS
        async with reaching_redis():
            ended = cast(
                list[str],
                await self._redis.zrangebyscore(keys.FINISHED, since, "+inf"),  # pyright: ignore[reportUnknownMemberType]
            )
        return [*await self.active_snapshots(), *await self._snapshots(ended)]

    async def request_cancel(self, job_id: str) -> JobSnapshot:
        """Records the user's wish and cancels what has no worker yet; the reconciler does the rest. May be repeated.

        Raises:
            JobNotFound
            JobTerminal: the job succeeded or failed before.
        """

        async def attempt(pipe: Pipeline) -> None:
            tasks, intent = await read_tasks(pipe, job_id), await _read_intent(pipe, job_id)
            if (status := job_state(list(tasks.values()), intent)) in {JobStatus.SUCCEEDED, JobStatus.FAILED}:
                raise JobTerminal(f"job {job_id} has already {status}")
            if intent is Intent.CANCEL:
                return
            now = time.time()
            changed = {
                name: advance(task, CancelRequested(run=task.run, at=now))
                for name, task in tasks.items()
                if task.state is TaskState.PENDING
            }
            status = job_state(list((tasks | changed).values()), Intent.CANCEL)
            pipe.multi()
            pipe.hset(keys.job(job_id), "intent", Intent.CANCEL.value)
            _write_hash(pipe, keys.tasks(job_id), {name: task.model_dump_json() for name, task in changed.items()})
            log_event(pipe, job_id, "job_cancel_requested", status, at=now)
            close_if_ended(pipe, job_id, status, at=now)
            await pipe.execute()

        await transaction(self._redis, [keys.tasks(job_id), keys.job(job_id)], attempt)
        return await self.snapshot(job_id)

    async def delete_job(self, job_id: str) -> None:
        """Forgets a job that has ended; its model stays. The reconciler removes its artefacts afterwards.

        Raises:
            JobNotFound
            JobNotTerminal
        """

        async def attempt(pipe: Pipeline) -> None:
            tasks, intent = await read_tasks(pipe, job_id), await _read_intent(pipe, job_id)
            if (status := job_state(list(tasks.values()), intent)) not in TERMINAL_JOB:
                raise JobNotTerminal(f"job {job_id} is {status}: cancel it first")
            pipe.multi()
            pipe.delete(
                *(of(job_id) for of in (keys.job, keys.tasks, keys.progress, keys.events, keys.logs)),
            )
            pipe.zrem(keys.JOBS, job_id)
            pipe.zrem(keys.FINISHED, job_id)
            pipe.srem(keys.ACTIVE, job_id)
            pipe.sadd(keys.DELETED, job_id)
            await pipe.execute()

        await transaction(self._redis, [keys.tasks(job_id), keys.job(job_id)], attempt)
        self._plans.pop(job_id, None)

    async def deleted_jobs(self) -> set[str]:
        """Jobs whose artefacts are still to be removed."""
        async with reaching_redis():
            return await cast(Awaitable[set[str]], self._redis.smembers(keys.DELETED))

    async def artefacts_removed(self, job_id: str) -> None:
        """Nothing of a deleted job is left on disk."""
        async with reaching_redis():
            await self._redis.srem(keys.DELETED, job_id)

    # --- tasks

    async def apply(self, event: TaskEvent) -> Task:
        """Moves a task by one event and writes the history with it, or changes nothing.

        Raises:
            JobNotFound
            StaleRun: the attempt was given up.
            IllegalTransition: the event cannot happen to the task as it stands.
        """
        run = event.run

        async def attempt(pipe: Pipeline) -> Task:
            tasks = await read_tasks(pipe, run.job_id)
            if run.task not in tasks:
                raise StaleRun(f"{run}: the job has no such task")
            before = tasks[run.task]
            after = advance(before, event)
            if after == before:
                return after
            tasks[run.task] = after
            status = job_state(list(tasks.values()), await _read_intent(pipe, run.job_id))
            data = {"state": after.state.value, **event.model_dump(mode="json", exclude={"run", "at", "kind"})}
            pipe.multi()
            pipe.hset(keys.tasks(run.job_id), run.task, after.model_dump_json())
            log_event(pipe, run.job_id, event.kind, status, at=event.at, run=run, data=data)
            close_if_ended(pipe, run.job_id, status, at=event.at)
            await pipe.execute()
            return after

        return await transaction(self._redis, [keys.tasks(run.job_id), keys.job(run.job_id)], attempt)

    async def task(self, job_id: str, name: str) -> Task:
        """The task as it stands, whichever attempt is current. Raises JobNotFound when the job is gone."""
        async with reaching_redis():
            raw = await cast(Awaitable[str | None], self._redis.hget(keys.tasks(job_id), name))
        if raw is None:
            raise JobNotFound(job_id)
        return Task.model_validate_json(raw)

    async def record_progress(self, progress: Progress) -> Task:
        """Notes what an attempt said of itself; returns its task, by which the attempt sees whether it still counts.

        Keyed by Run: a stale attempt overwrites nobody, and a job that was deleted is not brought back.

        Raises:
            JobNotFound
        """
        run = progress.run

        async def attempt(pipe: Pipeline) -> Task:
            raw = await cast(Awaitable[str | None], pipe.hget(keys.tasks(run.job_id), run.task))
            if raw is None:
                raise JobNotFound(run.job_id)
            task = Task.model_validate_json(raw)
            if task.run == run:
                pipe.multi()
                pipe.hset(keys.progress(run.job_id), keys.progress_field(run), progress.model_dump_json())
                await pipe.execute()
            return task

        return await transaction(self._redis, [keys.tasks(run.job_id)], attempt)

    async def spec(self, job_id: str) -> JobSpec:
        """Raises JobNotFound."""
        return (await self._spec_and_plan(job_id))[0]

    async def plan(self, job_id: str) -> JobPlan:
        """Raises JobNotFound."""
        return (await self._spec_and_plan(job_id))[1]

    # --- inside

    async def _spec_and_plan(self, job_id: str) -> tuple[JobSpec, JobPlan]:
        if (known := self._plans.get(job_id)) is not None:
            self._plans.move_to_end(job_id)
            return known
        async with reaching_redis():
            spec, plan = await cast(Awaitable[list[str | None]], self._redis.hmget(keys.job(job_id), ["spec", "plan"]))
        if spec is None or plan is None:
            raise JobNotFound(job_id)
        parsed = JobSpec.model_validate_json(spec), JobPlan.model_validate_json(plan)
        self._plans[job_id] = parsed
        while len(self._plans) > PARSED_PLANS:
            self._plans.popitem(last=False)
        return parsed

    async def _snapshots(self, ids: Sequence[str]) -> list[JobSnapshot]:
        """Those of the jobs that exist, in the order of the ids."""
        if not ids:
            return []
        async with reaching_redis():
            pipe = self._redis.pipeline(transaction=True)
            for job_id in ids:
                pipe.hmget(keys.job(job_id), ["record", "intent", "finished_at"])
                pipe.hgetall(keys.tasks(job_id))
                pipe.hgetall(keys.progress(job_id))
            answers: list[Any] = await pipe.execute()
        found: list[JobSnapshot] = []
        for place, job_id in enumerate(ids):
            head, tasks, progress = answers[3 * place : 3 * place + 3]
            if head[0] is None:
                continue
            try:
                spec, plan = await self._spec_and_plan(job_id)
            except JobNotFound:  # deleted between the two reads
                continue
            found.append(as_snapshot(head, tasks, progress, spec, plan))
        return found


def _write_hash(pipe: Pipeline, key: str, fields: Mapping[str, str]) -> None:
    for name, value in fields.items():
        pipe.hset(key, name, value)


async def _read_intent(pipe: Pipeline, job_id: str) -> Intent:
    raw = await cast(Awaitable[str | None], pipe.hget(keys.job(job_id), "intent"))
    if raw is None:
        raise JobNotFound(job_id)
    return Intent(raw)


async def _seen_before(pipe: Pipeline, key: str, request_digest: str) -> JobRecord | None:
    """The job that an idempotency key made, unless it was deleted since."""
    before = cast(str | None, await pipe.get(key))
    if before is None:
        return None
    known = json.loads(before)
    if known["digest"] != request_digest:
        raise IdempotencyMismatch(f"this Idempotency-Key made {known['job_id']} from another body")
    raw = await cast(Awaitable[str | None], pipe.hget(keys.job(known["job_id"]), "record"))
    return None if raw is None else JobRecord.model_validate_json(raw)

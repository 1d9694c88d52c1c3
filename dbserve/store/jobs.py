"""JobStore: jobs and their tasks. What users want of them, their history and their results hang off it."""

import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Mapping, Sequence
from itertools import chain
from typing import Any, Self, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.access import RedisAccess
from dbserve.contracts.job import JobSpec
from dbserve.contracts.key import DEFAULT_PROJECT
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.snapshot import JobOutline, JobSnapshot, ListedJob
from dbserve.contracts.status import (
    TERMINAL_JOB,
    Intent,
    JobRecord,
    JobStatus,
    Progress,
    Restored,
    Started,
    Task,
    TaskEvent,
)
from dbserve.errors import IdempotencyMismatch, JobNotFound, QuotaExceeded, StaleRun
from dbserve.lifecycle import advance, new_tasks, standing
from dbserve.store import keys
from dbserve.store.api_keys import ApiKeys
from dbserve.store.attempts import retire, sums_so_far
from dbserve.store.audit import AuditLog
from dbserve.store.cluster import SeenCluster
from dbserve.store.codec import brief, packed, unpacked
from dbserve.store.connection import clock, open_redis, reaching_redis, read_job, transaction
from dbserve.store.counters import Counted, Counters, observe
from dbserve.store.courses import Courses
from dbserve.store.history import JOB_CREATED, History, close_if_ended, event_json, log_event
from dbserve.store.lease import Lease
from dbserve.store.outbox import announce
from dbserve.store.outlines import Outlines
from dbserve.store.ownership import Ownership
from dbserve.store.rates import Rates
from dbserve.store.results import Results
from dbserve.store.schema import Schema
from dbserve.store.scripts import CREATE_JOB, RECORD_PROGRESS
from dbserve.store.snapshots import in_full, matches
from dbserve.store.webhooks import Webhooks
from dbserve.store.wishes import Wishes, write_tasks

IDEMPOTENCY_TTL_SECONDS = 24 * 3600
RECENTLY_SECONDS = 300.0  # how long /metrics still shows a job that has ended
PARSED_PLANS = 512  # specs and plans never change, so their parsed form is kept
PACKED_PLANS = 32
SCAN = 50  # jobs looked at a time when a listing filters


_WITHOUT_WORKERS = TERMINAL_JOB | {JobStatus.QUEUED, JobStatus.PAUSED}


class JobStore:
    """Jobs, tasks and progress in Redis (>= 6.2). Every method may raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._plans: OrderedDict[str, tuple[JobSpec, JobPlan]] = OrderedDict()
        self._packed_plans: OrderedDict[int, tuple[JobPlan, str]] = OrderedDict()
        self._create_job = redis.register_script(CREATE_JOB)
        self._record_progress = redis.register_script(RECORD_PROGRESS)
        self.history = History(redis)
        self.courses = Courses(redis)
        self.cluster = SeenCluster(redis)
        self.counters = Counters(redis)
        self.results = Results(redis)
        self.lease = Lease(redis, keys.LEASE)  # of the one reconciler that acts
        self.wishes = Wishes(redis)
        self.webhooks = Webhooks(redis)
        self.api_keys = ApiKeys(redis)
        self.audit = AuditLog(redis)
        self.rates = Rates(redis)
        self.ownership = Ownership(redis)
        self.schema = Schema(redis)
        self._outlines = Outlines(redis)

    @classmethod
    def at(cls, access: RedisAccess, *, timeout: float = 5.0) -> Self:
        """Raises ConfigInvalid unless the url is `redis://`, `rediss://` or `unix://`. Connects on first use."""
        return cls(open_redis(access, timeout=timeout))

    @classmethod
    def from_url(cls, url: str, *, timeout: float = 5.0) -> Self:
        """The same, of a url that says everything."""
        return cls.at(RedisAccess(url), timeout=timeout)

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def ping(self) -> None:
        """Raises StoreUnavailable unless Redis answers, evicts nothing, and holds a schema that this version knows."""
        await self.schema.check()

    async def clock(self) -> float:
        """Unix seconds by the store's clock, which dates every event."""
        return await clock(self._redis)

    async def deployment(self) -> str:
        """A name for what this Redis holds, made once: its workers' namespace in Ray."""
        async with reaching_redis("write"):
            await self._redis.set(keys.DEPLOYMENT, secrets.token_hex(4), nx=True)
            return cast(str, await self._redis.get(keys.DEPLOYMENT))

    # --- jobs

    async def create_job(
        self,
        spec: JobSpec,
        plan: JobPlan,
        *,
        idempotency_key: str | None,
        request_digest: str,
        project: str = DEFAULT_PROJECT,
        owner: str = "",
        quota: int | None = None,
        trace: str = "",
    ) -> tuple[JobSnapshot, bool]:
        """Stores the job in one transaction; returns it and whether this call made it.

        Raises:
            IdempotencyMismatch: the key came before in this project with another request.
            QuotaExceeded: the owner has `quota` jobs that have not ended.
        """
        now = time.time()
        record = new_record(keys.new_job_id(now), spec, plan, project=project, owner=owner, now=now, trace=trace)
        tasks = {task.run.task: task for task in new_tasks(record.id, plan, spec, now=now)}
        fields = {
            "record": brief(record),
            "intent": Intent.RUN.value,
            "revision": "1",
            "standing": brief(standing([*tasks.values()], Intent.RUN)),
            "spec": packed(spec),
            "plan": self._packed(plan),
        }
        names = [of(record.id) for of in (keys.job, keys.tasks, keys.events)]
        names += [keys.JOBS, keys.ACTIVE, keys.idempotency(project, idempotency_key or ""), keys.owner(owner)]
        names += [keys.jobs_of(project)]
        request = json.dumps({"digest": request_digest, "job_id": record.id}) if idempotency_key else ""
        values: list[str | int] = [
            *(record.id, event_json(JOB_CREATED, JobStatus.QUEUED, at=now, data={"name": spec.name})),
            *(request, IDEMPOTENCY_TTL_SECONDS, "" if quota is None else quota),
            *(len(fields), *chain.from_iterable(fields.items())),
            *chain.from_iterable((name, brief(task)) for name, task in tasks.items()),
        ]
        async with reaching_redis("write"):
            answer = cast("list[Any]", await self._create_job(keys=names, args=values))
        if answer[0] == "full":
            raise QuotaExceeded(f"{answer[1]} jobs of this API key's project have not ended; it may have {quota}")
        if answer[0] == "seen":
            return await self.snapshot(_job_of(answer[1], request_digest)), False
        self._remember(record.id, spec, plan)
        outline = JobOutline(record=record, status=JobStatus.QUEUED, tasks=tasks, progress={})
        return in_full(outline, spec, plan), True

    async def recall(
        self, idempotency_key: str, request_digest: str, *, project: str = DEFAULT_PROJECT
    ) -> JobRecord | None:
        """The job that this very request made before, if it did. Raises IdempotencyMismatch, as create_job."""
        async with reaching_redis():
            before = cast(str | None, await self._redis.get(keys.idempotency(project, idempotency_key)))
            if before is None:
                return None
            raw = await cast(Awaitable[str | None], self._redis.hget(keys.job(json.loads(before)["job_id"]), "record"))
        if raw is None:  # deleted since
            return None
        _job_of(before, request_digest)
        return JobRecord.model_validate_json(raw)

    async def outline(self, job_id: str) -> JobOutline:
        """One consistent look at a job, without spec and plan. Raises JobNotFound."""
        found = await self._outlines.read([job_id])
        if not found:
            raise JobNotFound(job_id)
        return found[0]

    async def snapshot(self, job_id: str) -> JobSnapshot:
        """One consistent look at a job. Raises JobNotFound."""
        return await self._in_full(await self.outline(job_id))

    async def list_jobs(
        self,
        *,
        project: str = DEFAULT_PROJECT,
        limit: int,
        after: str | None = None,
        status: JobStatus | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[list[ListedJob | JobOutline], str | None]:
        """A project's, newest first, and the cursor of the next page (None: the last one). Those that run come in full.

        The cursor names the last job seen, so that jobs arriving meanwhile shift nothing.

        Raises:
            ConfigInvalid: the cursor is not one of ours.
        """
        start = "+" if after is None else f"({keys.open_cursor(after)}"
        size = max(limit + 1, SCAN)
        wanted: list[ListedJob] = []
        while True:
            async with reaching_redis():
                ids = cast(list[str], await self._redis.zrevrangebylex(keys.jobs_of(project), start, "-", 0, size))
            for listed in await self._outlines.listed(ids):
                if not matches(listed, status, labels or {}):
                    continue
                if len(wanted) == limit:
                    return await self._those_that_run(wanted), keys.make_cursor(wanted[-1].record.id)
                wanted.append(listed)
            if len(ids) < size:
                return await self._those_that_run(wanted), None
            start = f"({ids[-1]}"

    async def outlines(self, ids: Sequence[str]) -> list[JobOutline]:
        """Those of the jobs that exist, in the order of the ids, each a consistent look."""
        return await self._outlines.read(ids)

    async def active_outlines(self) -> list[JobOutline]:
        """Every job that has not ended, oldest first. Only what has changed since the last look is read anew."""
        return await self._outlines.active()

    async def recent(self) -> list[JobOutline]:
        """Every job that has not ended, or ended less than RECENTLY_SECONDS ago; in full where it has begun."""
        since = await self.clock() - RECENTLY_SECONDS
        active = await self.active_outlines()  # first: one that ends meanwhile is then in both
        async with reaching_redis():
            ended = cast(
                list[str],
                await self._redis.zrangebyscore(keys.FINISHED, since, "+inf"),  # pyright: ignore[reportUnknownMemberType]
            )
        found = {outline.record.id: outline for outline in [*active, *await self._outlines.read(ended)]}
        begun = [any(task.started_at is not None for task in job.tasks.values()) for job in found.values()]
        return await self._some_in_full(list(found.values()), begun)

    # --- tasks

    async def apply(self, event: TaskEvent) -> Task:
        """Moves a task by one event and writes the history with it, or changes nothing. The store's clock dates it.

        Raises:
            JobNotFound
            StaleRun: the attempt was given up.
            IllegalTransition: the event cannot happen to the task as it stands.
        """
        run = event.run

        async def attempt(pipe: Pipeline) -> Task:
            seen = await read_job(pipe, run.job_id)
            if run.task not in seen.tasks:
                raise StaleRun(f"{run}: the job has no such task")
            before = seen.tasks[run.task]
            dated = event.model_copy(update={"at": seen.now})
            after = advance(before, dated)
            if after == before and not isinstance(event, Restored):  # moves nothing where nothing was lost; is told
                return after
            data = {"state": after.state.value, **event.model_dump(mode="json", exclude={"run", "at", "kind", "trace"})}
            ended = [run] if after.run != run else []
            sums = await sums_so_far(pipe, ended)
            pipe.multi()
            status = write_tasks(pipe, seen, {run.task: after}, seen.intent)
            if ended:
                data["attempt"] = after.run.attempt
                data["message"] = after.message
                retire(pipe, ended, sums)
            if isinstance(event, Started) and not any(task.started_at for task in seen.tasks.values()):
                observe(pipe, Counted.QUEUE_WAIT, seen.now - seen.record.created_at)
            log_event(pipe, run.job_id, event.kind, status, at=seen.now, run=run, data=data)
            announce(pipe, seen, {run.task: after}, seen.intent, event)
            close_if_ended(pipe, seen.record, status, at=seen.now)
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
        names = [keys.tasks(run.job_id), keys.progress(run.job_id)]
        values = [run.task, str(run.attempt), keys.progress_field(run), brief(progress)]
        async with reaching_redis("write"):
            raw = cast(str | None, await self._record_progress(keys=names, args=values))
        if raw is None:
            raise JobNotFound(run.job_id)
        return Task.model_validate_json(raw)

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
        return self._remember(job_id, unpacked(JobSpec, spec), unpacked(JobPlan, plan))

    def _remember(self, job_id: str, spec: JobSpec, plan: JobPlan) -> tuple[JobSpec, JobPlan]:
        self._plans[job_id] = spec, plan
        while len(self._plans) > PARSED_PLANS:
            self._plans.popitem(last=False)
        return spec, plan

    async def _in_full(self, outline: JobOutline) -> JobSnapshot:
        return in_full(outline, *await self._spec_and_plan(outline.record.id))

    async def _those_that_run(self, listed: Sequence[ListedJob]) -> list[ListedJob | JobOutline]:
        """With what their workers tell, where they have any."""
        running = [job.record.id for job in listed if job.standing.status not in _WITHOUT_WORKERS]
        outlines = await self._some_in_full(await self._outlines.read(running), [True] * len(running))
        found = {outline.record.id: outline for outline in outlines}
        return [found.get(job.record.id, job) for job in listed]

    async def _some_in_full(self, outlines: Sequence[JobOutline], chosen: Sequence[bool]) -> list[JobOutline]:
        found: list[JobOutline] = []
        for outline, full in zip(outlines, chosen, strict=True):
            try:
                found.append(await self._in_full(outline) if full else outline)
            except JobNotFound:  # deleted between the two reads
                continue
        return found

    def _packed(self, plan: JobPlan) -> str:
        """Of a sweep's jobs many have one plan."""
        known = self._packed_plans.get(id(plan))
        if known is None or known[0] is not plan:
            known = plan, packed(plan)
            self._packed_plans[id(plan)] = known
            while len(self._packed_plans) > PACKED_PLANS:
                self._packed_plans.popitem(last=False)
        return known[1]


def new_record(
    job_id: str,
    spec: JobSpec,
    plan: JobPlan,
    *,
    project: str = DEFAULT_PROJECT,
    owner: str,
    now: float,
    trace: str = "",
) -> JobRecord:
    return JobRecord(
        id=job_id,
        name=spec.name,
        labels=dict(spec.labels),
        architecture=plan.contract.architecture,
        created_at=now,
        trace=trace,
        project=project,
        owner=owner,
        retry=spec.retry,
        deadlines=spec.deadlines,
        queue=spec.queue,
        grace_seconds=spec.checkpoint.grace_seconds,
    )


def _job_of(value: str, request_digest: str) -> str:
    """The job that an idempotency record names; it must come from the same request."""
    known = json.loads(value)
    if known["digest"] != request_digest:
        raise IdempotencyMismatch(f"this Idempotency-Key made {known['job_id']} from another body")
    return known["job_id"]

"""Which schema a Redis holds, whether it can be trusted with one, and how an older one becomes ours.

1: tasks without resources, place and budgets; spec and plan as plain JSON; no revisions.
2: no projects.
3: this version's: jobs and models are listed by project, and requests remembered by it; what was there is `default`'s.
   An older version knows no projects, would show anything to anybody, and so must not read this one.

Values of older ones are still read, so an upgrade that was cut short is simply run again.
"""

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from dbserve.contracts.job import JobSpec
from dbserve.contracts.key import DEFAULT_PROJECT
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.status import Intent, JobRecord, Reason, Task
from dbserve.errors import StoreUnavailable
from dbserve.lifecycle import new_tasks, standing
from dbserve.store import keys
from dbserve.store.codec import brief, packed, unpacked
from dbserve.store.connection import reaching_redis, saying_unavailable, transaction
from dbserve.store.lease import Lease
from dbserve.store.ownership import project_of

SCHEMA = "3"
UPGRADABLE = ("1", "2")
UPGRADE_SECONDS = 60.0  # how long another process's upgrade is left alone before it is taken for dead
LISTED_AT_ONCE = 500  # jobs or models in one round trip
EVICTING = "Redis evicts data when memory is short (maxmemory-policy {policy}), and a job could be lost: set noeviction"

Keep = Callable[[], Awaitable[None]]  # renews the upgrade's lease, or raises StoreUnavailable
Read = Callable[[Pipeline, str], None]  # asks for one record


class Schema:
    """Asked before anything is trusted to a Redis."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def check(self) -> None:
        """Raises StoreUnavailable unless Redis answers, evicts nothing, and holds the schema of this version."""
        async with reaching_redis():
            await self._redis.set(keys.SCHEMA_KEY, SCHEMA, nx=True)
            schema = cast(str, await self._redis.get(keys.SCHEMA_KEY))
        if schema in UPGRADABLE:
            raise StoreUnavailable(f"Redis holds schema {schema!r}, which is being upgraded to {SCHEMA!r}")
        if schema != SCHEMA:
            raise StoreUnavailable(f"Redis holds schema {schema!r}; this version speaks {SCHEMA!r}")
        await self._refuse_eviction()

    async def _refuse_eviction(self) -> None:
        try:
            async with saying_unavailable():  # a refusal is no error here
                found = cast(
                    dict[str, str],
                    await self._redis.info("memory"),  # pyright: ignore[reportUnknownMemberType]
                )
        except StoreUnavailable as refused:
            if isinstance(refused.__cause__, ResponseError):  # a managed Redis may forbid to ask
                return
            raise
        policy = found.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise StoreUnavailable(EVICTING.format(policy=policy))

    async def upgrade(self) -> int:
        """Brings an older schema to this one, job by job, while nobody serves it; returns how many jobs it rewrote.

        Harmless to run twice, and in two processes: one does it, under a lease, and the other waits its turn by being
        refused. An older version that still runs must be stopped first: it does not know what it would read.

        Raises:
            StoreUnavailable: Redis is away, holds a schema of the future, or another process is upgrading it.
        """
        async with reaching_redis():
            await self._redis.set(keys.SCHEMA_KEY, SCHEMA, nx=True)
            schema = cast(str, await self._redis.get(keys.SCHEMA_KEY))
        if schema not in UPGRADABLE:
            return 0
        lease, holder = Lease(self._redis, keys.UPGRADE), secrets.token_hex(8)
        if not await lease.hold(holder, ttl_seconds=UPGRADE_SECONDS):
            raise StoreUnavailable("another process is upgrading what Redis holds; try again when it is done")

        async def keep() -> None:
            if not await lease.hold(holder, ttl_seconds=UPGRADE_SECONDS):
                raise StoreUnavailable("another process took the upgrade over")

        try:
            return await self._upgrade(schema, keep)
        finally:
            with suppress(StoreUnavailable):  # it ends by itself, and what went wrong is to be told
                await lease.drop(holder)

    async def _upgrade(self, schema: str, keep: Keep) -> int:
        jobs = await self._members(keys.JOBS)
        await self._renew_requests(keep, of_first_schema=schema == "1")
        for job_id in jobs if schema == "1" else ():
            await self._upgrade_job(job_id)
            await keep()
        await self._list(keys.jobs_of(DEFAULT_PROJECT), jobs, _read_job, keep)
        await self._list(keys.models_of(DEFAULT_PROJECT), await self._members(keys.MODELS), _read_model, keep)
        async with reaching_redis("write"):
            if ids_of_webhooks := await cast(Awaitable[list[str]], self._redis.hkeys(keys.WEBHOOKS)):
                await self._redis.sadd(keys.WEBHOOK_IDS, *ids_of_webhooks)
        async with reaching_redis():
            await self._redis.set(keys.SCHEMA_KEY, SCHEMA)
        return len(jobs)

    async def _members(self, listed: str) -> list[str]:
        async with reaching_redis():
            return cast(list[str], await self._redis.zrange(listed, 0, -1))  # pyright: ignore[reportUnknownMemberType]

    async def _list(self, under: str, ids: Sequence[str], read: Read, keep: Keep) -> None:
        """Lists in the default project what is its own: what no project is written of, and nothing of another's."""
        for start in range(0, len(ids), LISTED_AT_ONCE):
            some = ids[start : start + LISTED_AT_ONCE]
            async with reaching_redis("write"), self._redis.pipeline(transaction=False) as pipe:
                for found in some:
                    read(pipe, found)
                records = cast(list[str | None], await pipe.execute())
                if ours := [
                    found for found, raw in zip(some, records, strict=True) if _project(raw) == DEFAULT_PROJECT
                ]:
                    await self._redis.zadd(under, dict.fromkeys(ours, 0))
            await keep()

    async def _upgrade_job(self, job_id: str) -> None:
        async def attempt(pipe: Pipeline) -> None:
            fields = await cast(Awaitable[dict[str, str]], pipe.hgetall(keys.job(job_id)))
            raw_tasks = await cast(Awaitable[dict[str, str]], pipe.hgetall(keys.tasks(job_id)))
            if not fields or "revision" in fields:
                return
            spec, plan = unpacked(JobSpec, fields["spec"]), unpacked(JobPlan, fields["plan"])
            record = JobRecord.model_validate_json(fields["record"])
            record = record.model_copy(
                update={
                    "architecture": plan.contract.architecture,
                    "retry": spec.retry,
                    "deadlines": spec.deadlines,
                    "queue": spec.queue,
                    "grace_seconds": spec.checkpoint.grace_seconds,
                    "intent": Intent.RUN,  # told by its own field
                }
            )
            fresh = {task.run.task: task for task in new_tasks(job_id, plan, spec, now=record.created_at)}
            tasks = {name: _upgraded(Task.model_validate_json(raw), fresh[name]) for name, raw in raw_tasks.items()}
            pipe.multi()
            update: dict[Any, Any] = {
                "record": brief(record),
                "spec": packed(spec),
                "plan": packed(plan),
                "revision": "1",
                "standing": brief(standing([tasks[task.name] for task in plan.tasks], Intent(fields["intent"]))),
            }
            pipe.hset(keys.job(job_id), mapping=update)
            written: dict[Any, Any] = {name: brief(task) for name, task in tasks.items()}
            pipe.hset(keys.tasks(job_id), mapping=written)
            await pipe.execute()

        await transaction(self._redis, [keys.job(job_id), keys.tasks(job_id)], attempt)

    async def _renew_requests(self, keep: Keep, *, of_first_schema: bool) -> None:
        """A repeated request is known in its project; and by the digest of its spec, which has more fields than in the
        first schema. One may expire at any moment, and a scan may tell of one twice: what is gone is done."""
        async with reaching_redis():
            every = cast(AsyncIterator[str], self._redis.scan_iter(match=keys.EVERY_REQUEST))  # pyright: ignore[reportUnknownMemberType]
            for found in list(dict.fromkeys([key async for key in every])):
                await keep()
                key = found
                if key.count(":") == keys.EVERY_REQUEST.count(":"):
                    key = keys.EVERY_REQUEST.replace("*", f"{DEFAULT_PROJECT}:{found.rpartition(':')[2]}")
                    await self._rename(found, key)
                if not of_first_schema:
                    continue
                raw = cast(str | None, await self._redis.get(key))
                known: dict[str, str] = json.loads(raw) if raw else {}
                spec = await cast(Awaitable[str | None], self._redis.hget(keys.job(known.get("job_id", "")), "spec"))
                if spec is not None:
                    renewed = json.dumps(known | {"digest": unpacked(JobSpec, spec).digest()})
                    await self._redis.set(key, renewed, xx=True, keepttl=True)

    async def _rename(self, found: str, key: str) -> None:
        try:
            if not await self._redis.renamenx(found, key):
                await self._redis.delete(found)
        except ResponseError as refused:
            if "no such key" not in str(refused):
                raise


def _read_job(pipe: Pipeline, job_id: str) -> None:
    pipe.hget(keys.job(job_id), "record")


def _read_model(pipe: Pipeline, model_id: str) -> None:
    pipe.get(keys.model(model_id))


def _project(record: str | None) -> str:
    return DEFAULT_PROJECT if record is None else project_of(record)


def _upgraded(task: Task, fresh: Task) -> Task:
    """What the first schema did not say of a task, from its plan; what it counted in one, counted in two."""
    preemptions = task.restarts.get(Reason.PREEMPTED, 0)
    return task.model_copy(
        update={
            **fresh.model_dump(include={"place", "steps", "cpus", "gpus", "max_preemptions", "micro_rows"}),
            "crashes": sum(task.restarts.values()) - preemptions,
            "preemptions": preemptions,
        }
    )

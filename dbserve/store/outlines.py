"""Looks at jobs; and at every job that has not ended, twice a second: what has not changed is not read again."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.snapshot import JobOutline, ListedJob
from dbserve.store import keys
from dbserve.store.connection import reaching_redis
from dbserve.store.scripts import LOOK
from dbserve.store.snapshots import as_listed, as_outline, current_progress, past_work

READ_AT_ONCE = 50  # jobs; reading them takes Redis, and parsing them this process, some ten milliseconds
_KEYS = (keys.job, keys.tasks, keys.progress)


class Outlines:
    """Keeps the outlines it read, by the job's revision, which every change of tasks or intent raises."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._look = redis.register_script(LOOK)
        self._known: dict[str, tuple[str, JobOutline]] = {}

    async def active(self) -> list[JobOutline]:
        """Oldest first."""
        async with reaching_redis():
            ids = sorted(await cast(Awaitable[set[str]], self._redis.smembers(keys.ACTIVE)))
            revisions = await self._each(ids, _ask_revision)
        changed = [
            job_id
            for job_id, revision in zip(ids, revisions, strict=True)
            if revision is None or (known := self._known.get(job_id)) is None or known[0] != revision
        ]
        again = set(changed)
        known = {job_id: self._known[job_id] for job_id in ids if job_id in self._known and job_id not in again}
        for revision, outline in await self._read(changed):
            known[outline.record.id] = revision, outline.model_copy(update={"progress": {}, "past": {}})
        self._known = known  # as a whole: somebody else may look at the same time
        return await self._with_progress([known[job_id][1] for job_id in ids if job_id in known])

    async def read(self, ids: Sequence[str]) -> list[JobOutline]:
        """Those of the jobs that exist, in the order of the ids, as they stand now."""
        return [outline for _, outline in await self._read(ids)]

    async def listed(self, ids: Sequence[str]) -> list[ListedJob]:
        """The same in brief: no task is read."""
        if not ids:
            return []
        async with reaching_redis():
            heads = await self._each(ids, _ask_head)
        return [as_listed(head) for head in heads if head[0] is not None]

    async def _read(self, ids: Sequence[str]) -> list[tuple[str, JobOutline]]:
        """With their revisions. READ_AT_ONCE jobs a time, so that nobody else waits long for Redis, or for us."""
        found: list[tuple[str, JobOutline]] = []
        for start in range(0, len(ids), READ_AT_ONCE):
            names = [of(job_id) for job_id in ids[start : start + READ_AT_ONCE] for of in _KEYS]
            async with reaching_redis():
                answers = cast("list[Any]", await self._look(keys=names))
            for head, tasks, progress in answers:
                if head[0] is not None:
                    told = dict(zip(progress[::2], progress[1::2], strict=True))
                    found.append((head[3], as_outline(head, tasks, told)))
        return found

    async def _with_progress(self, outlines: list[JobOutline]) -> list[JobOutline]:
        """Heartbeats change no revision; nobody tells of a task that has not begun."""
        begun = [job for job in outlines if any(task.started_at is not None for task in job.tasks.values())]
        found: dict[str, Mapping[str, object]] = {}
        for start in range(0, len(begun), READ_AT_ONCE):
            some = begun[start : start + READ_AT_ONCE]
            async with reaching_redis():
                told = await self._each([job.record.id for job in some], _ask_progress)
            for job, raw in zip(some, told, strict=True):
                said = {"progress": current_progress(job.tasks, raw), "past": past_work(job.tasks, raw)}
                found[job.record.id] = said
        return [job.model_copy(update=found[job.record.id]) if job.record.id in found else job for job in outlines]

    async def _each(self, ids: Sequence[str], ask: Callable[[Pipeline, str], object]) -> list[Any]:
        """One question about each of the jobs, in one round trip."""
        if not ids:
            return []
        pipe = self._redis.pipeline(transaction=False)
        for job_id in ids:
            ask(pipe, job_id)
        return await pipe.execute()


def _ask_head(pipe: Pipeline, job_id: str) -> None:
    pipe.hmget(keys.job(job_id), ["record", "intent", "finished_at", "standing"])


def _ask_revision(pipe: Pipeline, job_id: str) -> None:
    pipe.hget(keys.job(job_id), "revision")


def _ask_progress(pipe: Pipeline, job_id: str) -> None:
    pipe.hgetall(keys.progress(job_id))

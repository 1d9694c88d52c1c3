"""The course of every training, as points that outlive the scrape: loss, throughput and memory at some of its steps."""

from collections.abc import Awaitable, Sequence
from typing import cast

from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.status import Run
from dbserve.contracts.work import Point, course
from dbserve.store import keys
from dbserve.store.codec import brief
from dbserve.store.connection import reaching_redis, transaction

POINTS_KEPT = 1000  # of one task, over all its attempts

_POINTS = TypeAdapter(list[Point])


class Courses:
    """Lists of points, one a task. Every method may raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def append(self, run: Run, points: Sequence[Point]) -> None:
        """Adds points of one attempt; those of a deleted job are dropped. Told twice, they count once."""

        async def attempt(pipe: Pipeline) -> None:
            if not await pipe.exists(keys.job(run.job_id)):
                return
            pipe.multi()
            name = keys.course(run.job_id, run.task)
            pipe.rpush(name, *map(brief, points))  # pyright: ignore[reportUnknownMemberType]
            pipe.ltrim(name, -POINTS_KEPT, -1)
            await pipe.execute()

        await transaction(self._redis, [keys.job(run.job_id)], attempt)

    async def read(self, job_id: str, tasks: Sequence[str]) -> dict[str, tuple[Point, ...]]:
        """The course of each of the tasks, by step. A job that was deleted has none."""
        async with reaching_redis(), self._redis.pipeline(transaction=False) as pipe:
            for task in tasks:
                pipe.lrange(keys.course(job_id, task), 0, -1)
            found = await cast(Awaitable[list[list[str]]], pipe.execute())
        return {
            task: course(_POINTS.validate_json(f"[{','.join(raw)}]")) for task, raw in zip(tasks, found, strict=True)
        }

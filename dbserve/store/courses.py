"""The course of every training, as points that outlive the scrape: loss, throughput and memory at some of its steps.

A point lies as a short JSON array, its figures rounded to what a curve shows: 120 of them take about 8 KiB a task.
"""

import asyncio
import json
from collections.abc import Awaitable, Sequence
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.status import Run
from dbserve.contracts.work import Point, course, thinned
from dbserve.store import keys
from dbserve.store.connection import reaching_redis, transaction

POINTS_KEPT = 1000  # of one task; beyond that, what was replaced goes, and every other one of the rest

_FIELDS = tuple(Point.model_fields)
_DIGITS = {"loss": 6, "grad_norm": 4, "samples_per_second": 4}  # that are kept


class Courses:
    """Lists of points, one a task. Every method may raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def append(self, run: Run, points: Sequence[Point]) -> None:
        """Adds points of one attempt; those of a deleted job are dropped. Told twice, they count once."""
        name = keys.course(run.job_id, run.task)

        async def attempt(pipe: Pipeline) -> None:
            if not await pipe.exists(keys.job(run.job_id)):
                return
            kept: tuple[Point, ...] = ()
            full = await pipe.llen(name) + len(points) > POINTS_KEPT
            if full:
                kept = thinned(course([*await self._read(pipe, name), *points]), POINTS_KEPT // 2)
            pipe.multi()
            if full:
                pipe.delete(name)
            pipe.rpush(name, *map(_row, kept or points))
            await pipe.execute()

        await transaction(self._redis, [keys.job(run.job_id), name], attempt)

    async def _read(self, pipe: Pipeline, name: str) -> list[Point]:
        return [_point(row) for row in await cast(Awaitable[list[str]], pipe.lrange(name, 0, -1))]

    async def read(self, job_id: str, tasks: Sequence[str]) -> dict[str, tuple[Point, ...]]:
        """The course of each of the tasks, by step. A job that was deleted has none."""
        async with reaching_redis(), self._redis.pipeline(transaction=False) as pipe:
            for task in tasks:
                pipe.lrange(keys.course(job_id, task), 0, -1)
            found = await cast(Awaitable[list[list[str]]], pipe.execute())
        return await asyncio.to_thread(_courses, tasks, found)  # thousands of points take a while


def _courses(tasks: Sequence[str], found: Sequence[Sequence[str]]) -> dict[str, tuple[Point, ...]]:
    return {task: course([_point(row) for row in raw]) for task, raw in zip(tasks, found, strict=True)}


def _row(point: Point) -> str:
    values = {**dict(point), "at": round(point.at, 1)}
    for name, digits in _DIGITS.items():
        if values[name] is not None:
            values[name] = float(f"{values[name]:.{digits}g}")
    return json.dumps([values[name] for name in _FIELDS], separators=(",", ":"))


def _point(row: str) -> Point:
    """Of a row that another version wrote, the fields it had: new ones are only ever added at the end."""
    return Point.model_validate(dict(zip(_FIELDS, json.loads(row), strict=False)))

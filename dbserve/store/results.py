"""What jobs leave behind: reports and assembled models. Writes are fenced by the Run that makes them."""

from collections.abc import Awaitable, Callable
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.key import DEFAULT_PROJECT
from dbserve.contracts.report import Report
from dbserve.contracts.snapshot import ModelRecord
from dbserve.contracts.status import JobRecord, Run
from dbserve.errors import JobNotFound, ModelNotFound, ReportNotReady, StaleRun
from dbserve.store import keys
from dbserve.store.codec import packed, unpacked
from dbserve.store.connection import reaching_redis, read_job, transaction


class Results:
    """Reports (kept with their job) and models (which outlive it)."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def save_report(self, run: Run, report: Report) -> None:
        """Raises StaleRun when the evaluating attempt was given up."""
        await self._fenced(run, lambda pipe, _: pipe.hset(keys.job(run.job_id), "report", packed(report)))

    async def report(self, job_id: str) -> Report:
        """Raises JobNotFound, or ReportNotReady before the evaluation has ended."""
        async with reaching_redis():
            raw, record = await cast(
                Awaitable[list[str | None]], self._redis.hmget(keys.job(job_id), ["report", "record"])
            )
        if record is None:
            raise JobNotFound(job_id)
        if raw is None:
            raise ReportNotReady(f"job {job_id} has no report yet: it appears when the evaluation has succeeded")
        return unpacked(Report, raw)

    async def save_model(self, run: Run, model: ModelRecord) -> None:
        """Raises StaleRun when the assembling attempt was given up."""

        def write(pipe: Pipeline, job: JobRecord) -> None:
            pipe.set(keys.model(model.id), packed(model.model_copy(update={"project": job.project})))
            pipe.zadd(keys.MODELS, {model.id: 0})
            pipe.zadd(keys.models_of(job.project), {model.id: 0})

        await self._fenced(run, write)

    async def model(self, model_id: str) -> ModelRecord:
        """Raises ModelNotFound."""
        async with reaching_redis():
            raw = cast(str | None, await self._redis.get(keys.model(model_id)))
        if raw is None:
            raise ModelNotFound(model_id)
        return unpacked(ModelRecord, raw)

    async def list_models(
        self, *, project: str = DEFAULT_PROJECT, limit: int, after: str | None = None
    ) -> tuple[list[ModelRecord], str | None]:
        """A project's, newest first, and the cursor of the next page. Raises ConfigInvalid for a foreign cursor."""
        start = "+" if after is None else f"({keys.open_cursor(after)}"
        async with reaching_redis():
            ids = cast(list[str], await self._redis.zrevrangebylex(keys.models_of(project), start, "-", 0, limit + 1))
            page = [keys.model(model_id) for model_id in ids[:limit]]
            raws = cast(list[str | None], await self._redis.mget(page)) if page else []
        models = [unpacked(ModelRecord, raw) for raw in raws if raw is not None]
        return models, keys.make_cursor(ids[limit - 1]) if len(ids) > limit else None

    async def _fenced(self, run: Run, write: Callable[[Pipeline, JobRecord], object]) -> None:
        async def attempt(pipe: Pipeline) -> None:
            seen = await read_job(pipe, run.job_id)
            current = seen.tasks[run.task]
            if current.run != run:
                raise StaleRun(f"{run} was given up; {current.run} is current")
            pipe.multi()
            write(pipe, seen.record)
            await pipe.execute()

        await transaction(self._redis, [keys.tasks(run.job_id), keys.job(run.job_id)], attempt)

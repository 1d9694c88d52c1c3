"""Which project things belong to. That never changes, so it is asked for once."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import cast

from pydantic import BaseModel
from redis.asyncio import Redis

from dbserve.contracts.key import DEFAULT_PROJECT
from dbserve.errors import DbserveError, JobNotFound, ModelNotFound
from dbserve.store import keys
from dbserve.store.codec import unpacked
from dbserve.store.connection import reaching_redis

REMEMBERED = 10_000


class _Owned(BaseModel):
    """Of a record, the project alone. Before there were projects none was written."""

    project: str = DEFAULT_PROJECT


def project_of(record: str) -> str:
    """Whose a job or a model is, by its record as it is stored."""
    return unpacked(_Owned, record).project


class Ownership:
    """Every method may raise StoreUnavailable; not for what was asked for before, though it be deleted since."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: OrderedDict[str, str] = OrderedDict()  # by key

    async def of_job(self, job_id: str) -> str:
        """Raises JobNotFound."""
        key = keys.job(job_id)
        return await self._of(key, lambda: self._redis.hget(key, "record"), JobNotFound(job_id))

    async def of_model(self, model_id: str) -> str:
        """Raises ModelNotFound."""
        key = keys.model(model_id)
        return await self._of(key, lambda: self._redis.get(key), ModelNotFound(model_id))

    async def _of(self, key: str, read: Callable[[], object], missing: DbserveError) -> str:
        if (project := self._known.get(key)) is not None:
            return project
        async with reaching_redis():
            raw = await cast(Awaitable[str | None], read())
        if raw is None:
            raise missing
        return self._remember(key, project_of(raw))

    def _remember(self, key: str, project: str) -> str:
        self._known[key] = project
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return project

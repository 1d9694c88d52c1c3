"""Which project things belong to. That never changes, so it is asked for once."""

from collections import OrderedDict
from collections.abc import Awaitable
from typing import cast

from redis.asyncio import Redis

from dbserve.contracts.snapshot import ModelRecord
from dbserve.contracts.status import JobRecord
from dbserve.errors import JobNotFound, ModelNotFound
from dbserve.store import keys
from dbserve.store.codec import unpacked
from dbserve.store.connection import reaching_redis

REMEMBERED = 10_000


class Ownership:
    """Every method may raise StoreUnavailable; not for what was asked for before, though it be deleted since."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: OrderedDict[str, str] = OrderedDict()  # by key

    async def of_job(self, job_id: str) -> str:
        """Raises JobNotFound."""
        key = keys.job(job_id)
        if (project := self._known.get(key)) is not None:
            return project
        async with reaching_redis():
            raw = await cast(Awaitable[str | None], self._redis.hget(key, "record"))
        if raw is None:
            raise JobNotFound(job_id)
        return self._remember(key, JobRecord.model_validate_json(raw).project)

    async def of_model(self, model_id: str) -> str:
        """Raises ModelNotFound."""
        key = keys.model(model_id)
        if (project := self._known.get(key)) is not None:
            return project
        async with reaching_redis():
            raw = cast(str | None, await self._redis.get(key))
        if raw is None:
            raise ModelNotFound(model_id)
        return self._remember(key, unpacked(ModelRecord, raw).project)

    def _remember(self, key: str, project: str) -> str:
        self._known[key] = project
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return project

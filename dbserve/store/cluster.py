"""What the reconciler last saw of the cluster. A view, never truth: it decides nothing."""

from typing import cast

from redis.asyncio import Redis

from dbserve.contracts.cluster import ClusterRecord
from dbserve.store import keys
from dbserve.store.connection import reaching_redis


class SeenCluster:
    """Written by whoever reconciles, read by whoever shows."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def show(self, record: ClusterRecord) -> None:
        async with reaching_redis("write"):
            await self._redis.set(keys.CLUSTER, record.model_dump_json(exclude_defaults=True))

    async def seen(self) -> ClusterRecord | None:
        """None: no reconciler has looked yet."""
        async with reaching_redis():
            raw = cast(str | None, await self._redis.get(keys.CLUSTER))
        return None if raw is None else ClusterRecord.model_validate_json(raw)

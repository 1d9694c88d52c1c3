"""A lease: one process of several may act."""

from collections.abc import Awaitable
from typing import cast

from redis.asyncio import Redis

from dbserve.store.connection import reaching_redis

_RENEW = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end"
)
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"


class Lease:
    """Held by name, for a time, by whoever renews it."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key

    async def hold(self, holder: str, *, ttl_seconds: float) -> bool:
        """Takes or renews the lease; False: another holds it."""
        milliseconds = int(ttl_seconds * 1000)
        async with reaching_redis():
            if await self._redis.set(self._key, holder, nx=True, px=milliseconds):
                return True
            renewed = await cast(Awaitable[int], self._redis.eval(_RENEW, 1, self._key, holder, str(milliseconds)))
        return bool(renewed)

    async def drop(self, holder: str) -> None:
        """Lets another take it at once."""
        async with reaching_redis():
            await cast(Awaitable[int], self._redis.eval(_RELEASE, 1, self._key, holder))

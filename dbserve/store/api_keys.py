"""API keys: found by id, changed under WATCH. Of their secrets the store knows digests alone."""

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.key import ALL_PROJECTS, ApiKey, Replaced
from dbserve.errors import KeyEnded, KeyNotFound, TooManyKeys
from dbserve.store import keys
from dbserve.store.codec import brief
from dbserve.store.connection import reaching_redis, transaction

MOST_KEYS = 100  # of one project, that are neither revoked nor expired
ENDED_KEPT = 200  # of one project: the last that have ended
KEPT_SECONDS = 90 * 24 * 3600.0  # how long one that has ended is still shown


class Found(NamedTuple):
    """A key, and when it was last used, in unix seconds; None: never."""

    key: ApiKey
    last_used_at: float | None


class ApiKeys:
    """Every method may raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def ever_made(self) -> bool:
        """Whether there ever was a key: from then on one is asked for, also when all have ended."""
        async with reaching_redis():
            return bool(await self._redis.exists(keys.API_KEYS_MADE))

    async def find(self, key_id: str) -> Found:
        """In one round trip. Raises KeyNotFound."""
        async with reaching_redis(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hget(keys.API_KEYS, key_id)
            pipe.hget(keys.API_KEYS_USED, key_id)
            raw, used = cast(tuple[str | None, str | None], await pipe.execute())
        if raw is None:
            raise KeyNotFound(key_id)
        return Found(ApiKey.model_validate_json(raw), None if used is None else float(used))

    async def of_project(self, project: str) -> list[Found]:
        """Oldest first; those of every project for "*"."""
        async with reaching_redis(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hvals(keys.API_KEYS)
            pipe.hgetall(keys.API_KEYS_USED)
            raws, used = cast(tuple[list[str], dict[str, str]], await pipe.execute())
        every = sorted(map(ApiKey.model_validate_json, raws), key=lambda key: (key.created_at, key.id))
        return [
            Found(key, float(used[key.id]) if key.id in used else None)
            for key in every
            if project in (ALL_PROJECTS, key.project)
        ]

    async def add(self, key: ApiKey) -> None:
        """Harmless to repeat. Those that ended long ago go, and all but the project's last. Raises TooManyKeys."""

        async def attempt(pipe: Pipeline) -> None:
            raws = await cast(Awaitable[list[str]], pipe.hvals(keys.API_KEYS))
            others = [other for other in map(ApiKey.model_validate_json, raws) if other.id != key.id]
            live = sum(other.ended_at(key.created_at) is None for other in others if other.project == key.project)
            if live >= MOST_KEYS:
                raise TooManyKeys(f"project {key.project} has {live} API keys, and may have {MOST_KEYS}")
            forgotten = _forgotten(others, key.project, key.created_at)
            pipe.multi()
            pipe.hset(keys.API_KEYS, key.id, brief(key))
            pipe.set(keys.API_KEYS_MADE, "1")
            for name in (keys.API_KEYS, keys.API_KEYS_USED) if forgotten else ():
                pipe.hdel(name, *forgotten)
            await pipe.execute()

        await transaction(self._redis, [keys.API_KEYS], attempt)

    async def revoke(self, key_id: str, *, at: float) -> None:
        """It opens nothing from now on, and its secrets are forgotten. May be repeated. Raises KeyNotFound."""

        def revoked(key: ApiKey) -> ApiKey:
            return key.model_copy(update={"revoked_at": key.revoked_at or at, "sha256": "", "replaced": None})

        await self._change(key_id, revoked)

    async def rotate(self, key_id: str, sha256: str, *, at: float, grace_seconds: float) -> ApiKey:
        """Gives the key a new secret; the one before still opens for a while, the one before that no more.

        Harmless to repeat. Raises KeyNotFound, KeyEnded.
        """

        def rotated(key: ApiKey) -> ApiKey:
            if key.ended_at(at) is not None:
                raise KeyEnded(f"API key {key_id} has ended: make another one")
            if key.sha256 == sha256:
                return key
            replaced = Replaced(sha256=key.sha256, until=at + grace_seconds) if grace_seconds else None
            return key.model_copy(update={"sha256": sha256, "replaced": replaced})

        return await self._change(key_id, rotated)

    async def used(self, key_id: str, *, at: float) -> None:
        async with reaching_redis("write"):
            await self._redis.hset(keys.API_KEYS_USED, key_id, f"{at:.0f}")

    async def _change(self, key_id: str, changed: Callable[[ApiKey], ApiKey]) -> ApiKey:
        async def attempt(pipe: Pipeline) -> ApiKey:
            raw = await cast(Awaitable[str | None], pipe.hget(keys.API_KEYS, key_id))
            if raw is None:
                raise KeyNotFound(key_id)
            after = changed(ApiKey.model_validate_json(raw))
            pipe.multi()
            pipe.hset(keys.API_KEYS, key_id, brief(after))
            await pipe.execute()
            return after

        return await transaction(self._redis, [keys.API_KEYS], attempt)


def _forgotten(known: Iterable[ApiKey], project: str, now: float) -> set[str]:
    """Ids of keys that ended long ago, and of those of the project that ended before its last ENDED_KEPT."""
    ended = sorted((at, key.id, key.project) for key in known if (at := key.ended_at(now)) is not None)
    long_over = {key_id for at, key_id, _ in ended if now - at > KEPT_SECONDS}
    return long_over | set([key_id for _, key_id, of in ended if of == project][:-ENDED_KEPT])

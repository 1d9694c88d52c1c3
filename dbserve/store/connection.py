"""How the store reaches Redis: the driver's errors as ours, and optimistic transactions."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

from dbserve.contracts.status import Task
from dbserve.errors import ConfigInvalid, JobNotFound, StoreUnavailable
from dbserve.store import keys

T = TypeVar("T")


def open_redis(url: str, *, timeout: float = 5.0) -> Redis:
    """`redis://`, `rediss://` or `unix://`. One repeat on a dropped connection, none on a time-out.

    Raises:
        ConfigInvalid: the url is not one of these.
    """
    try:
        return Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            decode_responses=True,
            protocol=2,
            socket_timeout=timeout,
            socket_connect_timeout=2.0,
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
    except ValueError as error:
        raise ConfigInvalid(f"not a Redis url: {error}") from error


@asynccontextmanager
async def reaching_redis() -> AsyncGenerator[None]:
    """Turns the driver's ways of saying 'away' into StoreUnavailable."""
    try:
        yield
    except WatchError:
        raise
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        raise StoreUnavailable(f"Redis does not answer: {error}") from error
    except RedisError as error:
        raise StoreUnavailable(f"Redis refused: {error}") from error


async def transaction(redis: Redis, watched: Sequence[str], attempt: Callable[[Pipeline], Awaitable[T]]) -> T:
    """Runs `attempt` under WATCH, again and again until nobody else wrote meanwhile."""
    async with reaching_redis(), redis.pipeline(transaction=True) as pipe:
        while True:
            try:
                if watched:
                    await pipe.watch(*watched)
                return await attempt(pipe)
            except WatchError:
                continue


async def read_tasks(pipe: Pipeline, job_id: str) -> dict[str, Task]:
    """Every task of a job, inside a transaction. Raises JobNotFound."""
    raws = await cast(Awaitable[dict[str, str]], pipe.hgetall(keys.tasks(job_id)))
    if not raws:
        raise JobNotFound(job_id)
    return {name: Task.model_validate_json(raw) for name, raw in raws.items()}

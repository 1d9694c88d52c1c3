"""How the store reaches Redis: the driver's errors as ours, and optimistic transactions."""

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

from dbserve.contracts.access import RedisAccess
from dbserve.contracts.status import Intent, JobRecord, Task
from dbserve.errors import ConfigInvalid, JobNotFound, StoreSilent, StoreUnavailable
from dbserve.store import keys
from dbserve.store.scripts import READ_JOB

T = TypeVar("T")

_TASKS = TypeAdapter(list[Task])

CONNECTIONS = 100  # of one process


def open_redis(access: RedisAccess, *, timeout: float = 5.0) -> Redis:
    """`redis://`, `rediss://` or `unix://`. One repeat on a dropped connection, none on a time-out.

    At most CONNECTIONS of them: in a burst of requests some wait for their turn; the driver's own pool refuses them.
    By TLS the server's certificate must be good, and its host's.

    Raises:
        ConfigInvalid: the url is not one of these, or files of TLS are given and the url does not ask for TLS.
    """
    encrypted = access.url.startswith("rediss://")
    if not encrypted and (access.ca_file or access.cert_file or access.key_file):
        raise ConfigInvalid("certificates are given, but the Redis url asks for no TLS: write rediss://")
    try:
        pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            access.url,
            max_connections=CONNECTIONS,
            timeout=timeout,
            decode_responses=True,
            protocol=2,
            socket_timeout=timeout,
            socket_connect_timeout=2.0,
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        # what is set beside the url wins over what is in it
        pool.connection_kwargs.update(_credentials(access) | (_certificates(access) if encrypted else {}))
        return Redis.from_pool(pool)
    except ValueError as error:
        raise ConfigInvalid(f"not a Redis url: {error}") from error


def _credentials(access: RedisAccess) -> dict[str, Any]:
    given = {"username": access.username, "password": access.password}
    return {name: value for name, value in given.items() if value is not None}


def _certificates(access: RedisAccess) -> dict[str, Any]:
    return {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": access.ca_file,
        "ssl_certfile": access.cert_file,
        "ssl_keyfile": access.key_file,
    }


Operation = Literal["read", "write", "transaction"]


# How often Redis refused this process or did not answer it, by operation, until the store could be told.
refusals: Counter[str] = Counter()


@asynccontextmanager
async def reaching_redis(operation: Operation = "read") -> AsyncGenerator[None]:
    """Turns the driver's ways of saying 'away' into StoreUnavailable, and counts them."""
    try:
        async with saying_unavailable():
            yield
    except StoreUnavailable:
        refusals[operation] += 1
        raise


@asynccontextmanager
async def saying_unavailable() -> AsyncGenerator[None]:
    """reaching_redis() without the counting."""
    try:
        yield
    except WatchError:
        raise
    except (RedisConnectionError, RedisTimeoutError, OSError) as error:
        timed_out = isinstance(error, RedisTimeoutError) or isinstance(error.__cause__, RedisTimeoutError)
        kind = StoreSilent if timed_out else StoreUnavailable  # the cause: of a connection that was being made
        raise kind(f"Redis does not answer: {error}") from error
    except RedisError as error:
        raise StoreUnavailable(f"Redis refused: {error}") from error


async def transaction(redis: Redis, watched: Sequence[str], attempt: Callable[[Pipeline], Awaitable[T]]) -> T:
    """Runs `attempt` under WATCH, again and again until nobody else wrote meanwhile."""
    async with reaching_redis("transaction"), redis.pipeline(transaction=True) as pipe:
        while True:
            try:
                if watched:
                    await pipe.watch(*watched)
                return await attempt(pipe)
            except WatchError:
                continue


@dataclass(frozen=True)
class Seen:
    """A job as a transaction finds it, and the store's own clock: workers' clocks may be wrong."""

    tasks: dict[str, Task]
    record: JobRecord  # with the intent as it stands
    now: float  # unix seconds
    has_webhooks: bool  # somebody may want to be told

    @property
    def intent(self) -> Intent:
        return self.record.intent


async def read_job(pipe: Pipeline, job_id: str) -> Seen:
    """A job inside a transaction that watches its keys, in one round trip. Raises JobNotFound."""
    answer = await pipe.eval(READ_JOB, 3, keys.tasks(job_id), keys.job(job_id), keys.WEBHOOK_IDS)
    raw_tasks, (record, intent), (seconds, microseconds), webhooks = answer
    if record is None or not raw_tasks:
        raise JobNotFound(job_id)
    known = JobRecord.model_validate_json(record).model_copy(update={"intent": Intent(intent)})
    now = int(seconds) + int(microseconds) / 1e6
    return Seen(read_tasks(f"[{','.join(raw_tasks)}]"), known, now, has_webhooks=bool(webhooks))


def read_tasks(array: str) -> dict[str, Task]:
    """A job's tasks from their JSON array, in the plan's order, which a hash does not keep."""
    tasks = _TASKS.validate_json(array)
    return {task.run.task: task for task in sorted(tasks, key=lambda task: task.place)}


async def clock(redis: Redis) -> float:
    """Unix seconds by the store's clock."""
    async with reaching_redis():
        seconds, microseconds = await redis.time()  # pyright: ignore[reportUnknownMemberType]
    return int(seconds) + int(microseconds) / 1e6

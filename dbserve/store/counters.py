"""What is counted over all jobs and processes, and outlives both: one hash of numbers that only grow.

Histograms lie in it as one field a bucket. What happens to a job is counted in the transaction that makes it happen.
"""

from collections.abc import Awaitable, Mapping, Sequence
from enum import StrEnum
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.status import JobStatus
from dbserve.contracts.work import JOB_BOUNDS, TICK_BOUNDS, WAIT_BOUNDS, Durations, bucket_of
from dbserve.store import keys
from dbserve.store.connection import reaching_redis, refusals

_SUM = "sum"
_TICKED_AT = "reconcile/at"


class Counted(StrEnum):
    """Durations that are counted; of jobs for each result apart."""

    QUEUE_WAIT = "queue_wait"
    RECONCILE = "reconcile"
    SUCCEEDED = f"job/{JobStatus.SUCCEEDED.value}"
    FAILED = f"job/{JobStatus.FAILED.value}"
    CANCELLED = f"job/{JobStatus.CANCELLED.value}"

    @classmethod
    def of_job(cls, result: JobStatus) -> "Counted":
        """How long jobs took that ended so."""
        return cls(f"job/{result.value}")

    @property
    def bounds(self) -> tuple[float, ...]:
        """Of its buckets, in seconds."""
        match self:
            case Counted.QUEUE_WAIT:
                return WAIT_BOUNDS
            case Counted.RECONCILE:
                return TICK_BOUNDS
            case _:
                return JOB_BOUNDS


class Totals:
    """The counters as they stood at one look."""

    def __init__(self, raw: Mapping[str, str]) -> None:
        self._raw = raw

    def durations(self, counted: Counted) -> Durations:
        places = range(len(counted.bounds) + 1)
        counts = tuple(int(self._raw.get(f"{counted}/{place}", 0)) for place in places)
        return Durations(counts=counts, seconds=float(self._raw.get(f"{counted}/{_SUM}", 0.0)))

    def labelled(self, prefix: str) -> dict[str, int]:
        """Counts by label of what add() counted under a prefix."""
        return {
            field.removeprefix(prefix + "/"): int(value)
            for field, value in self._raw.items()
            if field.startswith(prefix + "/")
        }

    @property
    def ticked_at(self) -> float | None:
        """Unix seconds of the reconciler's last tick; None: there was none."""
        return float(self._raw[_TICKED_AT]) if _TICKED_AT in self._raw else None


REDIS_ERRORS = "redis_errors"
WEBHOOK_DELIVERIES = "webhook_deliveries"


class Counters:
    """Every method may raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def read(self) -> Totals:
        async with reaching_redis():
            return Totals(await cast(Awaitable[dict[str, str]], self._redis.hgetall(keys.COUNTERS)))

    async def ticked(self, at: float, seconds: Sequence[float]) -> None:
        """The reconciler's last ticks took so long, the newest at `at` (unix seconds)."""
        async with reaching_redis("write"), self._redis.pipeline(transaction=True) as pipe:
            for each in seconds:
                observe(pipe, Counted.RECONCILE, each)
            pipe.hset(keys.COUNTERS, _TICKED_AT, repr(at))
            await pipe.execute()

    async def add(self, prefix: str, counts: Mapping[str, int]) -> None:
        """Adds to the counts by label."""
        if not counts:
            return
        async with reaching_redis("write"), self._redis.pipeline(transaction=True) as pipe:
            for label, times in counts.items():
                count(pipe, prefix, label, times)
            await pipe.execute()

    async def tell_refusals(self) -> None:
        """Counts what this process met while Redis did not answer."""
        counts = dict(refusals)
        refusals.clear()
        try:
            await self.add(REDIS_ERRORS, counts)
        except BaseException:
            refusals.update(counts)
            raise


def count(pipe: Pipeline, prefix: str, label: str, times: int = 1) -> None:
    """Adds to a count by label, in the transaction in which it happened."""
    pipe.hincrby(keys.COUNTERS, f"{prefix}/{label}", times)


def observe(pipe: Pipeline, counted: Counted, seconds: float) -> None:
    """Adds a duration to the transaction in which it ended."""
    pipe.hincrby(keys.COUNTERS, f"{counted}/{bucket_of(seconds, counted.bounds)}", 1)
    pipe.hincrbyfloat(keys.COUNTERS, f"{counted}/{_SUM}", max(0.0, seconds))

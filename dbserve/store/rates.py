"""How many requests came within the last minute, counted by all API processes together."""

import math
import time
from typing import NamedTuple, cast

from redis.asyncio import Redis

from dbserve.store import keys
from dbserve.store.connection import reaching_redis
from dbserve.store.scripts import COUNT_REQUEST

WINDOW_SECONDS = 60


class Rate(NamedTuple):
    """How a caller stands after a request."""

    allowed: bool
    remaining: int  # requests that it may make at once
    wait: int  # seconds until it may make another one; 0 where it may


class Rates:
    """Counters that expire. Every method may raise StoreUnavailable."""

    def __init__(self, redis: Redis) -> None:
        self._count = redis.register_script(COUNT_REQUEST)

    async def count(self, what: str, limit: int) -> Rate:
        """Counts one more request, unless it is over the limit: what is refused uses up nothing."""
        minute, second = divmod(time.time(), WINDOW_SECONDS)
        names = [f"{keys.LIMITS}:{what}:{int(minute) - back}" for back in (0, 1)]
        left = 1 - second / WINDOW_SECONDS
        async with reaching_redis("write"):
            answer = cast(list[int], await self._count(keys=names, args=[limit, left, 2 * WINDOW_SECONDS]))
        return rate(limit, *answer, left=left)


def rate(limit: int, counted: int, current: int, previous: int, *, left: float) -> Rate:
    """From this minute's count and the last one's, of which the share `left` lies within the last 60 s."""
    room = limit - current
    remaining = max(0, room - math.floor(previous * left))
    if counted or remaining:
        return Rate(allowed=bool(counted), remaining=remaining, wait=0 if remaining else 1)
    # As this minute goes on the last one counts for less; and in the next one, so does this.
    share = room / previous if room > 0 else -1 / current
    return Rate(allowed=False, remaining=0, wait=max(1, math.ceil(WINDOW_SECONDS * (left - share))))

"""When a message is tried again, and when it is given up. Pure."""

from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import NamedTuple

from dbserve.contracts.webhook import Answer

FIRST_WAIT_SECONDS = 5.0
GROWTH = 3.0  # of the wait, from attempt to attempt
LONGEST_WAIT_SECONDS = 3 * 3600.0
JITTER = 0.2  # of the wait, to either side: receivers that came back are not met by everything at once
GIVE_UP_SECONDS = 24 * 3600.0  # after what the message tells of; no attempt begins later
GONE = 410


class Result(StrEnum):
    """What became of an attempt."""

    DELIVERED = "delivered"
    RETRIED = "retried"  # another attempt follows
    GIVEN_UP = "given_up"
    GONE = "gone"  # the receiver wants nothing any more
    DROPPED = "dropped"  # never sent: too many others waited for its receiver


class Verdict(NamedTuple):
    result: Result
    next_try: float | None = None  # unix seconds, where there is one


def verdict(answer: Answer, *, attempt: int, at: float, now: float, chance: float) -> Verdict:
    """What follows from the answer to `attempt` (from 1) at telling of what happened at `at`.

    Whatever is not a 2xx is tried again, a 4xx too: receivers are often wrong for an hour and mended then.
    `chance`: a random number in [0, 1). Times in unix seconds.
    """
    if answer.accepted:
        return Verdict(Result.DELIVERED)
    if answer.code == GONE:
        return Verdict(Result.GONE)
    wait = wait_seconds(attempt, chance)
    if answer.retry_after is not None:
        wait = max(wait, min(answer.retry_after, LONGEST_WAIT_SECONDS))
    if now + wait > at + GIVE_UP_SECONDS:
        return Verdict(Result.GIVEN_UP)
    return Verdict(Result.RETRIED, now + wait)


def wait_seconds(attempt: int, chance: float) -> float:
    """Seconds from the end of `attempt` (from 1) to the next one: three times as long each time, up to three hours."""
    growths = min(attempt - 1, 32)
    wait = min(FIRST_WAIT_SECONDS * GROWTH**growths, LONGEST_WAIT_SECONDS)
    return wait * (1.0 + JITTER * (2.0 * chance - 1.0))


def retry_after_seconds(header: str | None, *, now: float) -> float | None:
    """What a Retry-After header asks for, in seconds or as a date; None for what is neither. Never negative."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header.strip()[:9])
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:  # "-0000": UTC of unknown origin
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now)

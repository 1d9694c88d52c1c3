"""Events and log lines: streams, history and never truth."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.status import TERMINAL_JOB, JobStatus, LoggedEvent, LogLine, Run
from dbserve.errors import EventsGone, JobNotFound
from dbserve.store import keys
from dbserve.store.connection import reaching_redis, transaction

EVENTS_KEPT = 10_000  # of one job
LOG_LINES_KEPT = 20_000  # of one job
LONGEST_WAIT_MS = 4_000  # below the socket's time-out

JOB_CREATED = "job_created"  # the first event of every job: where it is missing, history was trimmed

Entry = tuple[str, Mapping[str, str]]
_FIELDS: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


def log_event(
    pipe: Pipeline,
    job_id: str,
    kind: str,
    status: JobStatus,
    *,
    at: float,
    run: Run | None = None,
    data: Mapping[str, object] | None = None,
) -> None:
    """Adds an event to the transaction that makes it true."""
    entry: dict[str, object] = {"at": at, "kind": kind, "job_status": status.value, "data": dict(data or {})}
    if run is not None:
        entry |= {"task": run.task, "attempt": run.attempt}
    pipe.xadd(keys.events(job_id), {"event": json.dumps(entry)}, maxlen=EVENTS_KEPT)


def close_if_ended(pipe: Pipeline, job_id: str, status: JobStatus, *, at: float) -> None:
    """What must be written with the change that ends a job, in the same transaction."""
    if status in TERMINAL_JOB:
        pipe.hset(keys.job(job_id), "finished_at", repr(at))
        pipe.srem(keys.ACTIVE, job_id)
        pipe.zadd(keys.FINISHED, {job_id: at})
        log_event(pipe, job_id, "job_finished", status, at=at)


class History:
    """What happened to a job and what its workers said. Ids are opaque to clients and only grow."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def events(self, job_id: str, *, after: str | None = None, limit: int = 500) -> list[LoggedEvent]:
        """Events after an id, oldest first; None: from the beginning.

        Raises:
            JobNotFound
            EventsGone: events between `after` and the oldest one kept were dropped.
        """
        await self._must_exist(job_id)
        if after is not None:
            await self._refuse_a_gap(job_id, after)
        low = "-" if after is None else f"({keys.stream_id(after)}"
        async with reaching_redis():
            entries = await self._redis.xrange(keys.events(job_id), low, "+", count=limit)
        return [_event(entry) for entry in cast(Sequence[Entry], entries)]

    async def wait_events(self, job_id: str, *, after: str, block_ms: int) -> list[LoggedEvent]:
        """Events after an id; waits up to `block_ms` (at most 4000) for the first. `after` "0": from the beginning."""
        return [_event(entry) for entry in await self._wait(keys.events(job_id), after, block_ms)]

    async def append_logs(self, run: Run, lines: Sequence[tuple[float, str, str]]) -> None:
        """Ships log lines (unix seconds, level, message) of one attempt; those of a deleted job are dropped."""

        async def attempt(pipe: Pipeline) -> None:
            if not await pipe.exists(keys.job(run.job_id)):
                return
            pipe.multi()
            for at, level, message in lines:
                entry = {"at": repr(at), "task": run.task, "attempt": run.attempt, "level": level, "message": message}
                pipe.xadd(keys.logs(run.job_id), cast(Any, entry), maxlen=LOG_LINES_KEPT)
            await pipe.execute()

        await transaction(self._redis, [keys.job(run.job_id)], attempt)

    async def logs(
        self, job_id: str, *, task: str | None = None, attempt: int | None = None, tail: int = 1000
    ) -> list[LogLine]:
        """The last `tail` lines, oldest first.

        Raises:
            JobNotFound
        """
        await self._must_exist(job_id)
        found: list[LogLine] = []
        high = "+"
        while len(found) < tail:
            async with reaching_redis():
                entries = cast(Sequence[Entry], await self._redis.xrevrange(keys.logs(job_id), high, "-", count=1000))
            lines = [_log_line(entry) for entry in entries]
            found += [
                line
                for line in lines
                if (task is None or line.task == task) and (attempt is None or line.attempt == attempt)
            ]
            if len(entries) < 1000:
                break
            high = f"({entries[-1][0]}"
        return found[:tail][::-1]

    async def wait_logs(self, job_id: str, *, after: str, block_ms: int) -> list[LogLine]:
        """Log lines after an id; waits up to `block_ms` (at most 4000) for the first."""
        return [_log_line(entry) for entry in await self._wait(keys.logs(job_id), after, block_ms)]

    async def _must_exist(self, job_id: str) -> None:
        async with reaching_redis():
            if not await self._redis.exists(keys.job(job_id)):
                raise JobNotFound(job_id)

    async def _refuse_a_gap(self, job_id: str, after: str) -> None:
        """History is trimmed at its old end; whoever read up to before that end must be told."""
        seen = keys.stream_order(after)
        async with reaching_redis():
            entries = await self._redis.xrange(keys.events(job_id), "-", "+", count=1)
        oldest = _event(cast(Sequence[Entry], entries)[0])
        if oldest.kind != JOB_CREATED and seen < keys.stream_order(oldest.id):
            raise EventsGone(f"events after {after} were dropped; the oldest kept is {oldest.id}")

    async def _wait(self, key: str, after: str, block_ms: int) -> Sequence[Entry]:
        async with reaching_redis():
            answer = await self._redis.xread(
                {key: keys.stream_id(after)}, count=500, block=min(block_ms, LONGEST_WAIT_MS)
            )
        streams = cast(Sequence[tuple[str, Sequence[Entry]]], answer or [])
        return [entry for _, entries in streams for entry in entries]


def _event(entry: Entry) -> LoggedEvent:
    event_id, fields = entry
    return LoggedEvent.model_validate({"id": event_id, **_FIELDS.validate_json(fields["event"])})


def _log_line(entry: Entry) -> LogLine:
    line_id, fields = entry
    return LogLine(
        id=line_id,
        at=float(fields["at"]),
        task=fields["task"],
        attempt=int(fields["attempt"]),
        level=fields["level"],
        message=fields["message"],
    )

"""Events and log lines: streams, history and never truth."""

import json
from collections.abc import Iterable, Mapping, Sequence
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
AT_ONCE = 500  # of one look

JOB_CREATED = "job_created"  # the first event of every job: where it is missing, history was trimmed
JOB_FINISHED = "job_finished"  # the last one, unless the job is tried again

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
    event = event_json(kind, status, at=at, run=run, data=data)
    pipe.xadd(keys.events(job_id), {"event": event}, maxlen=EVENTS_KEPT)


def event_json(
    kind: str, status: JobStatus, *, at: float, run: Run | None = None, data: Mapping[str, object] | None = None
) -> str:
    """An event as the stream holds it."""
    entry: dict[str, object] = {"at": at, "kind": kind, "job_status": status.value, "data": dict(data or {})}
    if run is not None:
        entry |= {"task": run.task, "attempt": run.attempt}
    return json.dumps(entry)


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
        low = "-" if after is None else f"({keys.stream_id(after)}"
        async with reaching_redis(), self._redis.pipeline(transaction=True) as pipe:  # nothing is trimmed in between
            pipe.exists(keys.job(job_id))
            pipe.xrange(keys.events(job_id), "-", "+", count=1)
            pipe.xrange(keys.events(job_id), low, "+", count=limit)
            exists, oldest, entries = cast(tuple[int, Sequence[Entry], Sequence[Entry]], await pipe.execute())
        if not exists:
            raise JobNotFound(job_id)
        if after is not None:
            _refuse_a_gap(after, _event(oldest[0]))
        return [_event(entry) for entry in entries]

    async def newest_event(self, job_id: str) -> str:
        """The id of the last event so far. Raises JobNotFound."""
        async with reaching_redis():
            entries = cast(Sequence[Entry], await self._redis.xrevrange(keys.events(job_id), count=1))
        if not entries:
            raise JobNotFound(job_id)
        return entries[0][0]

    async def arrivals(self, seen: Mapping[str, str]) -> dict[str, list[LoggedEvent]]:
        """Events of several jobs, each after the id that `seen` gives for it: one look, at most 500 of a job.

        Left out is a job that was deleted, or of which events after that id were dropped.
        """
        streams = {keys.events(job_id): job_id for job_id in seen}
        after: dict[Any, Any] = {stream: keys.stream_id(seen[job_id]) for stream, job_id in streams.items()}
        async with reaching_redis(), self._redis.pipeline(transaction=True) as pipe:
            pipe.exists(*map(keys.job, seen))
            pipe.xread(after, count=AT_ONCE)
            existing, answer = await pipe.execute()
        there = seen if existing == len(seen) else await self._existing(seen)
        found: dict[str, list[LoggedEvent]] = {job_id: [] for job_id in there}
        for stream, entries in cast(Sequence[tuple[str, Sequence[Entry]]], answer or []):
            job_id = streams[stream]
            if job_id not in found:
                continue
            if len(entries) < min(AT_ONCE, EVENTS_KEPT):  # trimming leaves more than that: none can be missing
                found[job_id] = [_event(entry) for entry in entries]
                continue
            try:
                found[job_id] = await self.events(job_id, after=seen[job_id], limit=AT_ONCE)
            except (EventsGone, JobNotFound):
                del found[job_id]
        return found

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

    async def logs_since(self, job_id: str, after: str) -> list[LogLine]:
        """Log lines after an id, oldest first, at most 500. Does not wait, and a deleted job has none."""
        async with reaching_redis():
            entries = await self._redis.xrange(keys.logs(job_id), f"({keys.stream_id(after)}", "+", count=AT_ONCE)
        return [_log_line(entry) for entry in cast(Sequence[Entry], entries)]

    async def _must_exist(self, job_id: str) -> None:
        async with reaching_redis():
            if not await self._redis.exists(keys.job(job_id)):
                raise JobNotFound(job_id)

    async def _existing(self, job_ids: Iterable[str]) -> set[str]:
        async with reaching_redis(), self._redis.pipeline(transaction=True) as pipe:
            asked = list(job_ids)
            for job_id in asked:
                pipe.exists(keys.job(job_id))
            answers = await pipe.execute()
        return {job_id for job_id, exists in zip(asked, answers, strict=True) if exists}


def _refuse_a_gap(after: str, oldest: LoggedEvent) -> None:
    """History is trimmed at its old end; whoever read up to before that end must be told."""
    if oldest.kind != JOB_CREATED and keys.stream_order(after) < keys.stream_order(oldest.id):
        raise EventsGone(f"events after {after} were dropped; the oldest kept is {oldest.id}")


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

"""Events and log lines: streams, history and never truth."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from pydantic import JsonValue, TypeAdapter
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from dbserve.contracts.status import TERMINAL_JOB, JobRecord, JobStatus, LoggedEvent, LogLine, Run
from dbserve.errors import EventsGone, JobNotFound
from dbserve.loglines import Level, at_least
from dbserve.store import keys
from dbserve.store.connection import reaching_redis, transaction
from dbserve.store.counters import Counted, observe

EVENTS_KEPT = 10_000  # of one job
LOG_LINES_KEPT = 20_000  # of one job
AT_ONCE = 500  # of one look
LOOK_BACK = 1000  # log lines, of one look from the end
DOUBT_LOOK = 2000  # log lines of all tasks, among which an attempt's last one is looked for

JOB_CREATED = "job_created"  # the first event of every job: where it is missing, history was trimmed
JOB_FINISHED = "job_finished"  # the last one, unless the job is tried again

Entry = tuple[str, Mapping[str, str]]
_FIELDS: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])
_SAID: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(dict[str, JsonValue])


class Said(NamedTuple):
    """A line as a worker hands it over."""

    at: float  # unix seconds
    level: str
    message: str
    fields: Mapping[str, JsonValue] = {}
    number: int = 0  # of the lines of one attempt, counted from 1; 0: it is not counted


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


def close_if_ended(pipe: Pipeline, record: JobRecord, status: JobStatus, *, at: float) -> None:
    """What must be written with the change that ends a job, in the same transaction."""
    if status in TERMINAL_JOB:
        job_id = record.id
        pipe.hset(keys.job(job_id), "finished_at", repr(at))
        pipe.srem(keys.ACTIVE, job_id)
        pipe.zadd(keys.FINISHED, {job_id: at})
        observe(pipe, Counted.of_job(status), at - record.created_at)
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

    async def append_logs(self, run: Run, lines: Sequence[Said], *, in_doubt: bool = False) -> None:
        """Ships lines of one attempt; those of a deleted job are dropped. Each is kept whole, or none of them.

        `in_doubt`: an earlier call with some of them ended without an answer. What it wrote is not written again, as
        far as DOUBT_LOOK lines back; and since both watch the log, it cannot be carried out after this one.
        """
        log = keys.logs(run.job_id)

        async def attempt(pipe: Pipeline) -> None:
            if not await pipe.exists(keys.job(run.job_id)):
                return
            newest = await _newest_number(pipe, run) if in_doubt else 0
            pipe.multi()
            for line in lines:
                if not 0 < line.number <= newest:
                    pipe.xadd(log, cast(Any, _entry(run, line)), maxlen=LOG_LINES_KEPT)
            await pipe.execute()

        await transaction(self._redis, [keys.job(run.job_id), log], attempt)

    async def logs(
        self,
        job_id: str,
        *,
        task: str | None = None,
        attempt: int | None = None,
        level: Level | None = None,
        tail: int = 1000,
    ) -> list[LogLine]:
        """The last `tail` lines of `level` and above, oldest first. Reads at most the LOG_LINES_KEPT there are.

        Raises:
            JobNotFound
        """
        await self._must_exist(job_id)
        found: list[LogLine] = []
        high = "+"
        while len(found) < tail:
            async with reaching_redis():
                entries = cast(
                    Sequence[Entry], await self._redis.xrevrange(keys.logs(job_id), high, "-", count=LOOK_BACK)
                )
            found += [
                _log_line(entry)
                for entry in entries
                if task in (None, entry[1]["task"])
                and (attempt is None or int(entry[1]["attempt"]) == attempt)
                and at_least(entry[1]["level"], level)
            ]
            if len(entries) < LOOK_BACK:
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


def _entry(run: Run, line: Said) -> dict[str, str | int]:
    """A line as the stream holds it; lines of earlier versions have neither fields nor number."""
    entry: dict[str, str | int] = {"at": repr(line.at), "task": run.task, "attempt": run.attempt}
    entry |= {"level": line.level, "message": line.message}
    if line.fields:
        entry["fields"] = json.dumps(line.fields)
    if line.number:
        entry["number"] = line.number
    return entry


async def _newest_number(pipe: Pipeline, run: Run) -> int:
    """The number of the last line of an attempt that the log holds; 0: none is found."""
    entries = cast(Sequence[Entry], await pipe.xrevrange(keys.logs(run.job_id), count=DOUBT_LOOK))
    return next(
        (
            int(fields.get("number", 0))
            for _, fields in entries
            if fields["task"] == run.task and int(fields["attempt"]) == run.attempt
        ),
        0,
    )


def _log_line(entry: Entry) -> LogLine:
    line_id, fields = entry
    return LogLine(
        id=line_id,
        at=float(fields["at"]),
        task=fields["task"],
        attempt=int(fields["attempt"]),
        level=fields["level"],
        message=fields["message"],
        fields=_SAID.validate_json(fields["fields"]) if "fields" in fields else {},
    )

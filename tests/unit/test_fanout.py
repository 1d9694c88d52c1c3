"""Readers of one feed, on a history in memory whose every answer takes a random number of turns of the event loop."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.contextvars import bound_contextvars, get_contextvars

from dbserve.api import fanout
from dbserve.api.fanout import Fanout
from dbserve.contracts.status import JobStatus, LoggedEvent
from dbserve.errors import EventsGone, JobNotFound, StoreUnavailable
from dbserve.store import JobStore
from dbserve.store.keys import stream_order
from tests.waiting import until

JOB = "j1"


class FakeStore:
    """A store of one job, as far as Fanout looks at it."""

    def __init__(self, seed: int = 0) -> None:
        self.history = self
        self.kept: list[LoggedEvent] = []
        self.status = JobStatus.RUNNING
        self.away = self.deleted = False
        self.trimmed: str | None = None  # id of the last event that was dropped
        self._turns = random.Random(seed)
        self._written = 0
        self.write("job_created")

    def write(self, kind: str = "held", status: JobStatus | None = None) -> None:
        self.status = status or self.status
        self._written += 1
        event_id = f"{self._written // 3}-{self._written % 3 + 1}"
        self.kept.append(LoggedEvent(id=event_id, at=1.0, kind=kind, job_status=self.status))

    def trim(self, count: int) -> None:
        self.trimmed = self.kept[count - 1].id
        del self.kept[:count]

    @property
    def ids(self) -> list[str]:
        return [event.id for event in self.kept]

    async def _answer(self) -> None:
        for _ in range(self._turns.randrange(4)):
            await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("away")
        if self.deleted:
            raise JobNotFound(JOB)

    async def events(self, job_id: str, *, after: str | None = None, limit: int = 500) -> list[LoggedEvent]:
        await self._answer()
        found = self._since(after)[:limit]
        await self._answer()
        return found

    async def newest_event(self, job_id: str) -> str:
        await self._answer()
        return self.kept[-1].id

    async def arrivals(self, seen: Mapping[str, str]) -> dict[str, list[LoggedEvent]]:
        try:
            await self._answer()
            return {JOB: self._since(seen[JOB])}
        except (EventsGone, JobNotFound):
            return {}

    async def outline(self, job_id: str) -> Any:
        await self._answer()
        status = self.status
        await self._answer()
        return SimpleNamespace(status=status)

    def _since(self, after: str | None) -> list[LoggedEvent]:
        if after is None:
            return list(self.kept)
        if self.trimmed is not None and stream_order(after) < stream_order(self.trimmed):
            raise EventsGone(after)
        return [event for event in self.kept if stream_order(event.id) > stream_order(after)]


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(fanout, "REPLAYED_AT_ONCE", 5)


def fan(store: FakeStore) -> Fanout:
    return Fanout(cast(JobStore, store))


def ids_in(piece: bytes) -> list[str]:
    return [line.removeprefix("id: ") for line in piece.decode().splitlines() if line.startswith("id: ")]


async def read(stream: AsyncIterator[bytes], into: list[str]) -> None:
    async for piece in stream:
        into += ids_in(piece)


@pytest.mark.parametrize("seed", range(25))
async def test_whoever_joins_whenever_receives_every_event_once_and_in_order(seed: int) -> None:
    store, choose = FakeStore(seed), random.Random(seed)
    feeds = fan(store)
    readers: list[tuple[str | None, list[str], asyncio.Task[None]]] = []
    for _ in range(120):
        match choose.randrange(4):
            case 0:
                after, got = choose.choice([None, *store.ids]), list[str]()
                readers.append((after, got, asyncio.create_task(read(feeds.follow(JOB, after), got))))
            case 1:
                await asyncio.sleep(0)
            case _:
                store.write()
    store.write("job_finished", JobStatus.SUCCEEDED)
    async with asyncio.timeout(10):
        await asyncio.gather(*(task for _, _, task in readers))
    assert len(readers) > 5
    for after, got, _ in readers:
        assert got == store.ids[store.ids.index(after) + 1 if after else 0 :]
    assert feeds.feeds == 0


async def test_an_event_is_encoded_once_for_all_who_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    plain = fanout.encode
    monkeypatch.setattr(fanout, "encode", lambda event: encoded.append(event.id) or plain(event))
    store = FakeStore()
    feeds = fan(store)
    received: list[list[str]] = [[] for _ in range(10)]
    tasks = [asyncio.create_task(read(feeds.follow(JOB, None), got)) for got in received]
    await until(lambda: all(received))
    store.write()
    await until(lambda: all(len(got) == 2 for got in received))
    assert encoded.count(store.ids[-1]) == 1
    store.write("job_finished", JobStatus.SUCCEEDED)
    await asyncio.gather(*tasks)


async def test_a_reader_that_is_too_slow_is_let_go_and_replays_when_it_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fanout, "MOST_WAITING_BYTES", 1000)
    store, slow_has, quick_has = FakeStore(), list[str](), list[str]()
    feeds = fan(store)
    quick = asyncio.create_task(read(feeds.follow(JOB, None), quick_has))
    async with aclosing(feeds.follow(JOB, None)) as slow:
        slow_has += ids_in(await anext(slow))
        for _ in range(30):  # it takes nothing meanwhile
            store.write()
            await until(lambda: quick_has == store.ids)
        async with asyncio.timeout(10):
            await read(slow, slow_has)
    assert slow_has == store.ids[: len(slow_has)]
    assert len(slow_has) < len(store.ids), "it was cut off"
    store.write("job_finished", JobStatus.SUCCEEDED)
    await read(feeds.follow(JOB, slow_has[-1]), slow_has)
    await quick
    assert slow_has == quick_has == store.ids


async def test_a_stream_goes_on_where_an_ended_job_is_tried_again() -> None:
    store, early, late = FakeStore(), list[str](), list[str]()
    feeds = fan(store)
    following = asyncio.create_task(read(feeds.follow(JOB, None), early))
    await until(lambda: early == store.ids)
    store.write("job_finished", JobStatus.FAILED)
    store.write("job_retry_requested", JobStatus.RUNNING)
    joining = asyncio.create_task(read(feeds.follow(JOB, None), late))
    await until(lambda: early == late == store.ids)
    store.status = JobStatus.RUNNING
    store.write()
    await until(lambda: early == late == store.ids)
    store.write("job_finished", JobStatus.SUCCEEDED)
    async with asyncio.timeout(10):
        await asyncio.gather(following, joining)
    assert early == late == store.ids


async def test_the_feed_does_not_end_at_a_job_finished_that_a_retry_has_made_old() -> None:
    store, got = FakeStore(), list[str]()
    following = asyncio.create_task(read(fan(store).follow(JOB, None), got))
    await until(lambda: got == store.ids)
    store.write("job_finished", JobStatus.FAILED)
    store.status = JobStatus.RUNNING  # tried again before the feed could ask; its event is seen by the next look
    await until(lambda: got == store.ids)
    store.write("job_retry_requested")
    await until(lambda: got == store.ids)
    store.write("job_finished", JobStatus.SUCCEEDED)
    await asyncio.wait_for(following, 10)


async def test_an_ended_job_is_told_to_its_end_and_nothing_stays_behind() -> None:
    store, got = FakeStore(), list[str]()
    feeds = fan(store)
    store.write("job_finished", JobStatus.CANCELLED)
    await asyncio.wait_for(read(feeds.follow(JOB, None), got), 10)
    assert got == store.ids
    await asyncio.wait_for(read(feeds.follow(JOB, store.ids[-1]), got), 10)
    assert got == store.ids
    assert feeds.feeds == 0


async def test_the_last_reader_that_leaves_ends_the_feed() -> None:
    feeds = fan(FakeStore())
    first, second = feeds.follow(JOB, None), feeds.follow(JOB, None)
    await anext(first)
    await anext(second)
    await first.aclose()
    assert feeds.feeds == 1
    await second.aclose()
    assert feeds.feeds == 0


def away(store: FakeStore) -> None:
    store.away = True


def deleted(store: FakeStore) -> None:
    store.deleted = True


def trimmed(store: FakeStore) -> None:
    for _ in range(3):
        store.write()
    store.trim(3)


@pytest.mark.parametrize("happens", [away, deleted, trimmed])
async def test_a_stream_that_cannot_be_whole_ends(happens: Callable[[FakeStore], None]) -> None:
    store, got = FakeStore(), list[str]()
    feeds = fan(store)
    following = asyncio.create_task(read(feeds.follow(JOB, None), got))
    await until(lambda: got == store.ids)
    happens(store)
    await asyncio.wait_for(following, 10)
    assert len(got) == 1
    assert feeds.feeds == 0


async def test_a_fault_in_looking_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    store, got = FakeStore(), list[str]()
    feeds = fan(store)
    following = asyncio.create_task(read(feeds.follow(JOB, None), got))
    await until(lambda: got == store.ids)
    store.kept.append(cast(LoggedEvent, SimpleNamespace(id="9-1", kind="held")))  # no event that could be encoded
    await asyncio.wait_for(following, 10)
    assert "event streams end" in caplog.text


async def test_the_one_look_for_all_readers_is_part_of_no_request() -> None:
    class Watched(FakeStore):
        async def arrivals(self, seen: Mapping[str, str]) -> dict[str, list[LoggedEvent]]:
            requests.append(get_contextvars())
            return await super().arrivals(seen)

    requests, got = list[Mapping[str, Any]](), list[str]()
    store = Watched()
    with bound_contextvars(request_id="of the first reader"):
        following = asyncio.create_task(read(fan(store).follow(JOB, None), got))
    await until(lambda: bool(requests))
    store.write("job_finished", JobStatus.SUCCEEDED)
    await asyncio.wait_for(following, 10)
    assert not any(requests), "its lines would have the id of a request that is long over"


async def test_an_id_from_elsewhere_holds_up_nobody() -> None:
    store, got, foreign = FakeStore(), list[str](), list[str]()
    feeds = fan(store)
    strange = asyncio.create_task(read(feeds.follow(JOB, "999999999-0"), foreign))
    await until(lambda: feeds.feeds == 1)
    following = asyncio.create_task(read(feeds.follow(JOB, None), got))
    await until(lambda: got == store.ids)
    store.write("job_finished", JobStatus.SUCCEEDED)
    await asyncio.wait_for(asyncio.gather(strange, following), 10)
    assert got == store.ids
    assert foreign == []

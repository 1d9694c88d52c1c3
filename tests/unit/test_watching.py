"""Viewers of one job, on a store in memory that counts how often it is looked at."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from dbserve.api import watching
from dbserve.api.watching import EncodedView, LiveViews
from dbserve.contracts.snapshot import JobSnapshot
from dbserve.contracts.status import TaskState
from dbserve.errors import JobNotFound, StoreUnavailable
from dbserve.store import JobStore
from tests.snapshots import JOB_ID, every_task, running, snapshot
from tests.waiting import until


class FakeStore:
    """A store of one job."""

    def __init__(self) -> None:
        self.history = self
        self.job: JobSnapshot | Exception = at_step(1)
        self.looks = 0

    async def snapshot(self, job_id: str) -> JobSnapshot:
        assert job_id == JOB_ID
        self.looks += 1
        await asyncio.sleep(0)
        if isinstance(self.job, Exception):
            raise self.job
        return self.job

    async def newest_event(self, job_id: str) -> str:
        return "7-1"


def at_step(step: int) -> JobSnapshot:
    return snapshot(block__0=running(step))


def ended() -> JobSnapshot:
    return snapshot(**every_task(state=TaskState.SUCCEEDED))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def sleep(self, seconds: float) -> None:
        assert seconds == watching.LOOK_SECONDS
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    @property
    def waited_for(self) -> int:
        return len(self._waiting)

    async def tick(self) -> None:
        """One look, by all who look; and time to hand out what was seen."""
        await until(lambda: bool(self._waiting))
        waiting, self._waiting = self._waiting, []
        for waits in waiting:
            waits.set_result(None)
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made, real = Clock(), asyncio.sleep

    async def sleep(seconds: float) -> None:
        await (made.sleep(seconds) if seconds else real(0))

    monkeypatch.setattr(watching.asyncio, "sleep", sleep)
    return made


class Viewer:
    """Somebody who watches the job, and what they were sent."""

    def __init__(self, views: LiveViews, first: EncodedView, seen: str | None = None) -> None:
        self.got: list[str] = []
        self.over = False
        self._reading = asyncio.create_task(self._read(views.follow(JOB_ID, first, seen)))

    async def _read(self, stream: AsyncIterator[bytes]) -> None:
        async for piece in stream:
            self.got.append(piece.decode())
        self.over = True

    @property
    def steps(self) -> list[int]:
        return [view["progress"]["step"] for view in map(content, self.got) if view]

    def leave(self) -> None:
        self._reading.cancel()


def content(piece: str) -> dict[str, Any]:
    data = next(line for line in piece.splitlines() if line.startswith("data: "))
    return json.loads(data.removeprefix("data: "))


def watched(store: FakeStore) -> LiveViews:
    return LiveViews(cast(JobStore, store))


async def viewer(views: LiveViews, seen: str | None = None) -> Viewer:
    made = Viewer(views, await views.newest(JOB_ID), seen)
    await until(lambda: bool(views.watched))
    return made


async def test_a_job_is_looked_at_once_a_second_however_many_watch_it(clock: Clock) -> None:
    store = FakeStore()
    views = watched(store)
    viewers = await asyncio.gather(*(viewer(views) for _ in range(50)))
    await until(lambda: all(one.steps == [1] for one in viewers))
    assert store.looks == 1
    for step in (2, 3):
        store.job = at_step(step)
        await clock.tick()
    assert store.looks == 3
    assert all(one.steps == [1, 2, 3] for one in viewers)


async def test_a_job_that_has_not_changed_is_not_sent_again(clock: Clock) -> None:
    store = FakeStore()
    watching_it = await viewer(watched(store))
    await clock.tick()
    await clock.tick()
    assert store.looks == 3
    assert len(watching_it.got) == 1


async def test_a_view_is_the_job_without_what_was_submitted(clock: Clock) -> None:
    watching_it = await viewer(watched(FakeStore()))
    await until(lambda: bool(watching_it.got))
    view = content(watching_it.got[0])
    assert "spec" not in view
    assert view["newest_event"] == "7-1"
    assert {"id", "status", "tasks", "links", "memory_ratio"} <= set(view)


async def test_a_stream_ends_with_the_last_view_of_a_job_that_has_ended(clock: Clock) -> None:
    store = FakeStore()
    views = watched(store)
    watching_it = await viewer(views)
    store.job = ended()
    await clock.tick()
    assert watching_it.over
    assert content(watching_it.got[-2])["status"] == "succeeded"
    assert watching_it.got[-1].startswith("event: end")
    assert views.watched == 0


async def test_a_reader_that_takes_nothing_for_a_while_gets_the_newest_view_alone(clock: Clock) -> None:
    store = FakeStore()
    views = watched(store)
    slow = views.follow(JOB_ID, await views.newest(JOB_ID), None)
    assert content((await anext(slow)).decode())["progress"]["step"] == 1
    for step in (2, 3, 4):
        store.job = at_step(step)
        await clock.tick()
    assert content((await anext(slow)).decode())["progress"]["step"] == 4
    await slow.aclose()


async def test_whoever_comes_back_is_not_sent_what_they_have(clock: Clock) -> None:
    store = FakeStore()
    views = watched(store)
    known = await views.newest(JOB_ID)
    back = await viewer(views, known.id)
    await clock.tick()
    assert back.got == []
    store.job = at_step(2)
    await clock.tick()
    assert back.steps == [2]


@pytest.mark.parametrize("gone", [StoreUnavailable("away"), JobNotFound(JOB_ID), RuntimeError("a mistake")])
async def test_a_stream_that_cannot_go_on_is_cut_off_without_an_end(clock: Clock, gone: Exception) -> None:
    store = FakeStore()
    views = watched(store)
    watching_it = await viewer(views)
    store.job = gone
    await clock.tick()
    assert watching_it.over
    assert len(watching_it.got) == 1, "no event `end`: it is to be asked for again"
    assert views.watched == 0


async def test_nobody_looks_at_a_job_that_nobody_watches_any_more(clock: Clock) -> None:
    store = FakeStore()
    views = watched(store)
    first, second = await viewer(views), await viewer(views)
    first.leave()
    await clock.tick()
    assert (views.watched, store.looks) == (1, 2)
    second.leave()
    await clock.tick()
    assert (views.watched, store.looks, clock.waited_for) == (0, 2, 0)


async def test_a_job_that_is_unknown_is_said_to_be_to_all_who_ask_together() -> None:
    store = FakeStore()
    store.job = JobNotFound(JOB_ID)
    views = watched(store)
    answers = await asyncio.gather(*(views.newest(JOB_ID) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(answer, JobNotFound) for answer in answers)
    assert store.looks == 1

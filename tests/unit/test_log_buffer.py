"""What a worker says on its way to the store: bounded, in order, each line once, and no drop unsaid."""

import asyncio
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dbserve.cancellation import end
from dbserve.contracts.status import Run
from dbserve.errors import StoreUnavailable
from dbserve.store import JobStore
from dbserve.store.history import Said
from workers import logs
from workers.logs import LogBuffer, speaking

RUN = Run(job_id="j1", task="block-0", attempt=2)


class FakeHistory:
    """Remembers batches. While `away`, it takes a batch and gives no answer, or does not even take it."""

    def __init__(self) -> None:
        self.batches: list[list[Said]] = []
        self.doubts: list[bool] = []
        self.away = False
        self.refused = asyncio.Event()
        self.meanwhile: Callable[[], object] = lambda: None

    async def append_logs(self, run: Run, lines: Sequence[Said], *, in_doubt: bool = False) -> None:
        assert run == RUN
        self.doubts.append(in_doubt)
        if self.away:
            self.refused.set()
            raise StoreUnavailable("away")
        self.batches.append(list(lines))
        self.meanwhile()

    @property
    def messages(self) -> list[str]:
        return [line.message for batch in self.batches for line in batch]


@pytest.fixture
def history() -> FakeHistory:
    return FakeHistory()


@pytest.fixture
def store(history: FakeHistory) -> JobStore:
    return cast(JobStore, SimpleNamespace(history=history))


@pytest.fixture
def buffer() -> Iterator[LogBuffer]:
    buffer = LogBuffer(RUN, ["a-known-secret"])
    logging.captureWarnings(False)  # whoever captured them before: pytest has taken them back since
    with speaking(buffer):
        yield buffer


log = logging.getLogger("dbserve.worker")


async def test_lines_come_with_what_they_say_besides_and_without_secrets(
    buffer: LogBuffer, store: JobStore, history: FakeHistory
) -> None:
    log.info("at step %d", 7, extra={"rate": 0.1})
    logging.getLogger("some.library").warning("connected with %s", "a-known-secret")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("failed")
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    await buffer.ship(store, RUN)
    [[step, library, failed, warned]] = history.batches
    assert (step.level, step.message, step.fields) == ("info", "at step 7", {"rate": 0.1})
    assert (library.message, library.fields) == ("connected with ***", {"logger": "some.library"})
    assert failed.message == "failed"
    assert str(failed.fields["exception"]).endswith("ValueError: two\nlines")
    assert warned.fields["logger"] == "py.warnings"


async def test_what_is_no_unicode_can_be_shipped_all_the_same(
    buffer: LogBuffer, store: JobStore, history: FakeHistory
) -> None:
    log.info("cannot read %s", os.fsdecode(b"shard-\xff.parquet"), extra={"file\udcff": "\udcff"})
    await buffer.ship(store, RUN)
    [[line]] = history.batches
    assert line.message == "cannot read shard-\\udcff.parquet"
    json.dumps(line.fields, ensure_ascii=False).encode()


def test_every_line_reaches_stderr_at_once_as_json_about_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with speaking(LogBuffer(RUN)):
        log.info("said")
    [line] = capsys.readouterr().err.splitlines()
    assert '"event": "said", "job_id": "j1", "block": "0", "task": "block-0", "attempt": 2' in line


async def test_of_more_than_can_be_kept_the_oldest_go_and_that_is_said(
    buffer: LogBuffer, store: JobStore, history: FakeHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_LINES", 3)
    for number in range(5):
        log.info("line %d", number)
    await buffer.ship(store, RUN)
    told = "2 lines before this one were dropped: more was said than the store could be told"
    assert history.messages == [told, "line 2", "line 3", "line 4"]
    assert history.batches[0][0].fields == {"dropped": 2}
    log.info("line 5")
    await buffer.ship(store, RUN)
    assert history.messages[4:] == ["line 5"], "said once"


async def test_so_many_characters_can_be_kept(
    buffer: LogBuffer, store: JobStore, history: FakeHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_CHARACTERS", 1000)
    for number in range(100):
        log.info("%d %s", number, "x" * 100)
    await buffer.ship(store, RUN)
    kept = history.messages[1:]
    assert [message.split()[0] for message in kept] == [str(number) for number in range(91, 100)]


async def test_a_write_is_bounded(
    buffer: LogBuffer, store: JobStore, history: FakeHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "BATCH_LINES", 4)
    monkeypatch.setattr(logs, "BATCH_CHARACTERS", 50)
    for text in ("short",) * 5 + ("x" * 30, "y" * 30, "z" * 200):
        log.info(text)
    await buffer.ship(store, RUN)
    assert [len(batch) for batch in history.batches] == [4, 2, 1, 1]


async def test_what_an_absent_store_did_not_take_is_sent_again_in_doubt_and_in_order(
    buffer: LogBuffer, store: JobStore, history: FakeHistory
) -> None:
    log.info("one")
    history.away = True
    with pytest.raises(StoreUnavailable):
        await buffer.ship(store, RUN)
    log.info("two")
    history.away = False
    await buffer.ship(store, RUN)
    await buffer.ship(store, RUN)
    assert history.messages == ["one", "two"]
    assert [line.number for line in history.batches[0]] == [1, 2]
    assert history.doubts == [False, True]


async def test_shipping_comes_to_an_end_though_lines_go_on(
    buffer: LogBuffer, store: JobStore, history: FakeHistory
) -> None:
    log.info("first")
    history.meanwhile = lambda: log.info("and another")
    await buffer.ship(store, RUN)
    assert history.messages == ["first"]


async def test_a_line_is_shipped_soon_whichever_thread_said_it(
    buffer: LogBuffer, store: JobStore, history: FakeHistory
) -> None:
    arrived = asyncio.Event()
    history.meanwhile = arrived.set
    shipping = asyncio.create_task(buffer.keep_shipping(store, RUN))
    try:
        await asyncio.sleep(0)  # it waits now
        await asyncio.to_thread(log.info, "from the training")
        await asyncio.wait_for(arrived.wait(), 10)
    finally:
        await end(shipping)
    assert history.messages == ["from the training"]


async def test_a_store_that_is_away_does_not_end_the_shipping(
    buffer: LogBuffer, store: JobStore, history: FakeHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "PAUSE_SECONDS", 0.0)
    history.away = True
    shipping = asyncio.create_task(buffer.keep_shipping(store, RUN))
    try:
        log.info("one")
        await asyncio.wait_for(history.refused.wait(), 10)
        arrived = asyncio.Event()
        history.away, history.meanwhile = False, arrived.set
        log.info("two")
        await asyncio.wait_for(arrived.wait(), 10)
    finally:
        await end(shipping)
    assert history.messages == ["one", "two"]


async def test_a_line_said_after_the_loop_has_ended_is_kept(store: JobStore, history: FakeHistory) -> None:
    buffer = LogBuffer(RUN)
    ended: Any = SimpleNamespace(call_soon_threadsafe=_refuse)
    buffer._loop = ended  # pyright: ignore[reportPrivateUsage]
    with speaking(buffer):
        log.info("late")
    await buffer.ship(store, RUN)
    assert history.messages == ["late"]


def _refuse(_: object) -> None:
    raise RuntimeError("Event loop is closed")


async def test_why_an_attempt_failed_is_told_without_secrets(tmp_path: Path) -> None:
    from workers.actor import BlockWorker, WorkerConfig  # late: ray takes seconds to come

    config = WorkerConfig(redis_url="redis://:the-password@db:1/0", artifacts=str(tmp_path), cache_dir=tmp_path)
    worker = BlockWorker(RUN, config, 1.0, 0.0, termination=cast(Any, None))
    assert worker._why(ValueError("refused the-password")) == "ValueError: refused ***"  # pyright: ignore[reportPrivateUsage]

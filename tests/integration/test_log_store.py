"""Workers' lines in a real Redis: stored once, read by task, attempt and level, and followed without a gap."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio.client import Pipeline
from redis.exceptions import TimeoutError as RedisTimeoutError
from typer.testing import CliRunner

from dbserve.api import events
from dbserve.cli import cli
from dbserve.client import Client
from dbserve.contracts.status import Crashed, Reason, Run
from dbserve.errors import StoreUnavailable
from dbserve.store import JobStore, history, keys
from dbserve.store.history import Said
from tests.integration.serving import finish, serving, settings, start, submitted

STREAM = {"Accept": "text/event-stream"}


def said(*numbers: int) -> list[Said]:
    return [Said(float(number), "info", f"line {number}", {}, number) for number in numbers]


async def messages(store: JobStore, job_id: str, **chosen: Any) -> list[str]:
    return [line.message for line in await store.history.logs(job_id, **chosen)]


@pytest.fixture
def url(redis_url: str, tmp_path: Path) -> Iterator[str]:
    with serving(settings(redis_url, tmp_path)) as address:
        yield address


async def test_a_write_whose_answer_was_lost_is_not_repeated(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await store.history.append_logs(run, said(1))
    execute = Pipeline.execute

    async def without_an_answer(pipe: Pipeline, *arguments: Any) -> None:
        await execute(pipe, *arguments)
        raise RedisTimeoutError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "execute", without_an_answer)
        with pytest.raises(StoreUnavailable):
            await store.history.append_logs(run, said(2, 3))
    other = await start(store, job_id, "block-1")
    await store.history.append_logs(other, said(1, 2, 3, 4))
    await store.history.append_logs(run, said(2, 3, 4), in_doubt=True)
    assert await messages(store, job_id, task="block-0") == ["line 1", "line 2", "line 3", "line 4"]
    assert len(await messages(store, job_id, task="block-1")) == 4


async def test_a_write_that_another_overtook_does_not_repeat_it(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that Redis, after it hung, carries out later than the one that took its place."""
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    execute = Pipeline.execute
    overtaken = False

    async def late(pipe: Pipeline, *arguments: Any) -> Any:
        nonlocal overtaken
        if not overtaken:
            overtaken = True
            await store.history.append_logs(run, said(1, 2))
        return await execute(pipe, *arguments)

    monkeypatch.setattr(Pipeline, "execute", late)
    await store.history.append_logs(run, said(1, 2, 3), in_doubt=True)
    assert await messages(store, job_id) == ["line 1", "line 2", "line 3"]


async def test_a_batch_that_was_not_taken_is_stored_though_it_is_in_doubt(store: JobStore) -> None:
    job_id = await submitted(store)
    first = await start(store, job_id, "block-0")
    await store.history.append_logs(first, said(1, 2, 3))
    second = Run(job_id=job_id, task="block-0", attempt=2)
    await store.history.append_logs(second, said(1, 2), in_doubt=True)
    assert await messages(store, job_id, attempt=2) == ["line 1", "line 2"], "numbers are those of one attempt"


async def test_lines_of_an_earlier_version_are_read(store: JobStore) -> None:
    job_id = await submitted(store)
    old = {"at": "1.5", "task": "block-0", "attempt": 1, "level": "INFO", "message": "from before"}
    await store._redis.xadd(keys.logs(job_id), old)  # pyright: ignore[reportPrivateUsage]
    [line] = await store.history.logs(job_id, task="block-0", attempt=1, level="info")
    assert (line.at, line.message, line.fields) == (1.5, "from before", {})


async def test_lines_are_read_by_level_with_their_fields(http: httpx.AsyncClient, store: JobStore, url: str) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    lines = [
        Said(0.0, "debug", "d"),
        Said(1.0, "info", "i"),
        Said(2.0, "warning", "w", {"step": 7, "logger": "a library"}),
        Said(3.0, "error", "e", {"exception": "Traceback:\n  ...\nValueError: x"}),
    ]
    await store.history.append_logs(run, lines)

    async def found(query: str) -> list[str]:
        return [line["message"] for line in (await http.get(f"/v1/jobs/{job_id}/logs?{query}")).json()["data"]]

    assert await found("level=info") == ["i", "w", "e"]
    assert await found("level=warning&tail=1") == ["e"]
    assert await found("level=critical") == []
    assert (await http.get(f"/v1/jobs/{job_id}/logs?level=loud")).status_code == 422
    as_json = (await http.get(f"/v1/jobs/{job_id}/logs?level=warning")).json()["data"]
    assert [line["fields"] for line in as_json] == [dict(line.fields) for line in lines[2:]]
    text = (await http.get(f"/v1/jobs/{job_id}/logs?level=warning", headers={"Accept": "text/plain"})).text
    assert text.splitlines() == [
        '1970-01-01T00:00:02Z block-0#1 warning w step=7 logger="a library"',
        "1970-01-01T00:00:03Z block-0#1 error   e",
        "    Traceback:",
        "      ...",
        "    ValueError: x",
    ]
    shown = CliRunner().invoke(cli, ["logs", job_id, "--url", url, "--level", "error"])
    assert shown.output.splitlines()[0].endswith("block-0#1 error   e")
    assert shown.output.splitlines()[1:] == text.splitlines()[2:]
    assert CliRunner().invoke(cli, ["logs", job_id, "--url", url, "--level", "loud"]).exit_code == 2


async def test_a_few_lines_are_found_among_many_others(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LOOK_BACK", 10)
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await store.history.append_logs(run, said(1, 2))
    other = await start(store, job_id, "block-1")
    await store.history.append_logs(other, said(*range(1, 36)))
    assert await messages(store, job_id, task="block-0", tail=5) == ["line 1", "line 2"]
    assert await messages(store, job_id, task="block-1", tail=30) == [f"line {n}" for n in range(6, 36)]


async def test_an_attempt_that_was_lost_is_still_read_and_followed_by_its_number(
    url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUIET_SECONDS", 0.1)  # before it is asked whether the job has ended
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await store.history.append_logs(run, said(1, 2))
    await store.apply(Crashed(run=run, at=3.0, reason=Reason.WORKER_LOST, message="gone"))
    again = await start(store, job_id, "block-0", attempt=2)
    await store.history.append_logs(again, said(1, 2, 3))
    await finish(store, job_id)
    with Client(url) as client:
        for follow in (False, True):
            chosen = {attempt: client.logs(job_id, block=0, attempt=attempt, follow=follow) for attempt in (1, 2)}
            assert {n: [line.message for line in lines] for n, lines in chosen.items()} == {
                1: ["line 1", "line 2"],
                2: ["line 1", "line 2", "line 3"],
            }
    address = f"{url}/v1/jobs/{job_id}/logs?follow=true&block=0"
    async with httpx.AsyncClient(timeout=20.0, headers={**STREAM, "Last-Event-ID": "0"}) as http:
        for query, count in (("", 5), ("&attempt=1", 2), ("&attempt=2", 3), ("&level=error", 0)):
            assert len(ids_in((await http.get(address + query)).text)) == count, "of lines that arrive, too"


async def test_a_stream_that_was_cut_off_goes_on_after_the_last_line_seen(
    url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUIET_SECONDS", 0.1)  # before it is asked whether the job has ended
    job_id = await submitted(store)
    runs = [await start(store, job_id, task) for task in ("block-0", "block-1")]
    for number in range(1, 9):
        await store.history.append_logs(runs[number % 2], said(number))
    await finish(store, job_id)
    address = f"{url}/v1/jobs/{job_id}/logs?follow=true&block=0&tail=3"
    async with httpx.AsyncClient(timeout=20.0, headers=STREAM) as http:
        ids = [line.id for line in await store.history.logs(job_id, task="block-0")]
        seen = ids_in((await http.get(address)).text)
        assert seen == ids[1:], "the tail"
        for place, last in enumerate(ids):
            after = await http.get(address, headers={"Last-Event-ID": last})
            assert ids_in(after.text) == ids[place + 1 :], "however short the tail"
            assert after.text.endswith("event: end\ndata: {}\n\n")


def ids_in(text: str) -> list[str]:
    return [line.removeprefix("id: ") for line in text.split("\n") if line.startswith("id: ")]

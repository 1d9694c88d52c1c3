"""Streams over a real connection: server, client and command line together, on a real Redis."""

import asyncio
import json
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from dbserve.api import events, fanout, live, problems, streams
from dbserve.cli import cli
from dbserve.client import Client, NotFound
from dbserve.contracts.status import Held, Reason, Run
from dbserve.store import JobStore, history
from dbserve.store.history import Said
from tests.integration.serving import finish, serving, settings, start, submitted
from tests.tenants import BOOTSTRAP, a_key, bearer
from tests.waiting import eventually

STREAM = {"Accept": "text/event-stream"}


def run_plan(url: str, job_file: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["plan", "-f", job_file, "--server", url])
    return result.exit_code, result.output


@pytest.fixture
def url(redis_url: str, tmp_path: Path) -> Iterator[str]:
    with serving(settings(redis_url, tmp_path)) as address:
        yield address


async def read_stream(url: str, **headers: str) -> tuple[int, str]:
    async with httpx.AsyncClient(timeout=20.0) as http:
        response = await http.get(url, headers={**STREAM, **headers})
        return response.status_code, response.text


def ids_in(text: str) -> list[str]:
    return [line.removeprefix("id: ") for line in text.split("\n") if line.startswith("id: ")]


async def hold(store: JobStore, job_id: str, message: str) -> None:
    """One event more."""
    run = Run(job_id=job_id, task="block-0", attempt=1)
    await store.apply(Held(run=run, at=0.0, reason=Reason.UNSCHEDULABLE, message=message))


def wait_until_told(url: str, job_id: str, *, after: str) -> None:
    """Until the server has handed its readers all events up to that one: another reader of the feed is told of it."""
    with Client(url) as client:
        assert any(event.id == after for event in client.events(job_id))


async def test_a_stream_tells_all_from_the_first_event_to_the_last_and_then_ends(url: str, store: JobStore) -> None:
    job_id = await submitted(store)
    reading = asyncio.create_task(read_stream(f"{url}/v1/jobs/{job_id}/events"))
    await finish(store, job_id)
    status, text = await asyncio.wait_for(reading, 20)
    known = [event.id for event in await store.history.events(job_id)]
    assert status == 200
    assert ids_in(text) == known
    assert text.rstrip().splitlines()[-2] == "event: job_finished"


async def test_a_stream_goes_on_after_the_last_event_that_was_seen(url: str, store: JobStore) -> None:
    job_id = await submitted(store)
    await finish(store, job_id)
    ids = [event.id for event in await store.history.events(job_id)]
    address = f"{url}/v1/jobs/{job_id}/events"
    _, text = await read_stream(address, **{"Last-Event-ID": ids[3]})
    assert ids_in(text) == ids[4:]
    assert (await read_stream(f"{address}?after={ids[3]}"))[1] == text
    status, nothing = await read_stream(address, **{"Last-Event-ID": ids[-1]})
    assert (status, nothing) == (204, ""), "an EventSource stops at 204 instead of asking for ever"


async def test_a_gap_is_said(url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "EVENTS_KEPT", 3)
    job_id = await submitted(store)
    first = (await store.history.events(job_id))[0].id
    await finish(store, job_id)
    kept = len(await store.history.events(job_id))
    if kept > 3:  # Redis trims whole nodes; cut exactly, as it would with more events
        await store._redis.xtrim(f"dbserve:job:{job_id}:events", maxlen=3, approximate=False)  # pyright: ignore[reportPrivateUsage]
    status, text = await read_stream(f"{url}/v1/jobs/{job_id}/events", **{"Last-Event-ID": first})
    assert status == 410
    assert "events_gone" in text


async def test_an_unknown_job_has_no_stream(url: str) -> None:
    for path in ("events", "logs?follow=true"):
        status, text = await read_stream(f"{url}/v1/jobs/j00/{path}")
        assert status == 404, path
        assert "job_not_found" in text


async def test_deleting_a_job_ends_its_streams(url: str, store: JobStore) -> None:
    job_id = await submitted(store)
    seen = asyncio.Event()

    async def read() -> None:
        async with (
            httpx.AsyncClient(timeout=20.0) as http,
            http.stream("GET", f"{url}/v1/jobs/{job_id}/logs?follow=true", headers=STREAM) as response,
        ):
            seen.set()
            await response.aread()

    reading = asyncio.create_task(read())
    await seen.wait()
    await store.wishes.cancel(job_id)
    await store.wishes.delete(job_id)
    await asyncio.wait_for(reading, 20)


async def test_logs_are_followed_to_the_end_of_the_job(url: str, store: JobStore) -> None:
    job_id = await submitted(store)
    run = await start(store, job_id, "block-0")
    await store.history.append_logs(run, [Said(1.0, "INFO", "before"), Said(2.0, "INFO", "a separator \u2028 inside")])
    got: list[str] = []
    followed = threading.Event()

    def follow() -> None:
        with Client(url) as client:
            for line in client.logs(job_id, block=0, follow=True):
                got.append(line.message)
                followed.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert await asyncio.to_thread(followed.wait, 10)
    await store.history.append_logs(run, [Said(3.0, "INFO", "after")])
    other = await start(store, job_id, "block-1")
    await store.history.append_logs(other, [Said(4.0, "INFO", "of another block")])
    await finish(store, job_id)
    await asyncio.to_thread(thread.join, 20)
    assert got == ["before", "a separator \u2028 inside", "after"]


async def test_the_client_survives_a_restart_of_the_server_without_missing_or_repeating_an_event(
    redis_url: str, tmp_path: Path, store: JobStore
) -> None:
    job_id = await submitted(store)
    got: list[str] = []
    first = threading.Event()
    address: list[str] = []

    def follow(client: Client) -> None:
        for event in client.events(job_id):
            got.append(event.id)
            first.set()

    with serving(settings(redis_url, tmp_path)) as url:
        address.append(url)
        client = Client(url)
        thread = threading.Thread(target=follow, args=(client,))
        thread.start()
        assert await asyncio.to_thread(first.wait, 10)
    await start(store, job_id, "block-0")
    with serving(settings(redis_url, tmp_path)) as url:
        client._http.base_url = httpx.URL(url)  # pyright: ignore[reportPrivateUsage]
        await finish(store, job_id)
        await asyncio.to_thread(thread.join, 20)
    assert got == [event.id for event in await store.history.events(job_id)]
    client.close()


async def test_the_command_line_submits_watches_and_tells_the_end(url: str, store: JobStore, tmp_path: Path) -> None:
    job_file = tmp_path / "job.yaml"
    job_file.write_text(
        "name: digits\narchitecture: {kind: vit, options: {depth: 2, width: 16, heads: 2, patch: 4}}\n"
        'data: {uri: "builtin:digits"}\nblocks: {count: 2}\ntraining: {steps: 20, batch_size: 32}\n'
        "evaluation: {baselines: []}\n"
    )

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, [*arguments, "--url", url])
        return result.exit_code, result.output

    code, printed = await asyncio.to_thread(run_plan, url, str(job_file))
    assert code == 0, printed
    code, printed = await asyncio.to_thread(run, "submit", "-f", str(job_file))
    assert code == 0, printed
    job_id = printed.strip()
    watching = asyncio.create_task(asyncio.to_thread(run, "watch", job_id))
    await finish(store, job_id)
    code, printed = await asyncio.wait_for(watching, 20)
    assert code == 0, printed
    assert "succeeded" in printed.splitlines()[-1]
    assert job_id in (await asyncio.to_thread(run, "jobs"))[1]
    assert (await asyncio.to_thread(run, "cancel", job_id))[0] == 4
    assert (await asyncio.to_thread(run, "delete", job_id))[0] == 0
    code, printed = await asyncio.to_thread(run, "show", job_id)
    assert code == 4
    assert "not known" in printed


async def test_a_download_of_a_model_that_is_unknown_writes_nothing(url: str, tmp_path: Path) -> None:
    def fetch() -> None:
        with Client(url) as client, pytest.raises(NotFound):
            client.download_model("j00", tmp_path / "models")

    await asyncio.to_thread(fetch)
    assert not (tmp_path / "models").exists()


async def test_whoever_joins_while_events_are_written_at_speed_gets_each_once_and_in_order(
    url: str, store: JobStore
) -> None:
    job_id = await submitted(store)
    choose, readers = random.Random(0), list[asyncio.Task[tuple[int, str]]]()
    for number in range(300):
        await hold(store, job_id, str(number))
        if choose.random() < 0.1:
            known = [event.id for event in await store.history.events(job_id)]
            after = choose.choice([None, *known])
            headers = {"Last-Event-ID": after} if after else {}
            readers.append(asyncio.create_task(read_stream(f"{url}/v1/jobs/{job_id}/events", **headers), name=after))
    await store.wishes.cancel(job_id)
    known = [event.id for event in await store.history.events(job_id)]
    assert len(readers) > 10
    for reader, (status, text) in zip(readers, await asyncio.wait_for(asyncio.gather(*readers), 30), strict=True):
        after = reader.get_name()
        assert status == 200
        assert ids_in(text) == known[known.index(after) + 1 if after in known else 0 :]


async def test_a_reader_that_takes_nothing_is_let_go_and_misses_nothing_when_it_comes_back(
    url: str, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "MOST_WAITING_BYTES", 100_000)
    monkeypatch.setattr(fanout, "LOOK_SECONDS", 0.001)  # of what arrives between two looks any amount is handed out
    job_id = await submitted(store)
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", httpx.URL(url).port or 0))
        slow.sendall(
            f"GET /v1/jobs/{job_id}/events HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
        )
        text = await asyncio.to_thread(slow.recv, 4096)  # it is being served
        for number in range(400):  # more than the buffers on the way can take
            await hold(store, job_id, f"{number} " + 20_000 * "x")
        await asyncio.to_thread(wait_until_told, url, job_id, after=(await store.history.newest_event(job_id)))
        slow.settimeout(60)
        while piece := await asyncio.to_thread(slow.recv, 1 << 20):
            text += piece
    await store.wishes.cancel(job_id)
    known = [event.id for event in await store.history.events(job_id)]
    got = ids_in(text.decode())
    assert got == known[: len(got)]
    assert 0 < len(got) < len(known) - 3, "it was cut off"
    status, rest = await read_stream(f"{url}/v1/jobs/{job_id}/events", **{"Last-Event-ID": got[-1]})
    assert status == 200
    assert [*got, *ids_in(rest)] == known


async def test_the_stream_of_a_job_that_is_tried_again_goes_on_to_its_second_end(url: str, store: JobStore) -> None:
    job_id = await submitted(store)
    await store.wishes.cancel(job_id)
    await store.wishes.retry(job_id)
    text = ""
    async with (
        httpx.AsyncClient(timeout=20.0) as http,
        http.stream("GET", f"{url}/v1/jobs/{job_id}/events", headers=STREAM) as response,
    ):
        async for piece in response.aiter_text():
            if "event: job_retry_requested" in piece:
                await store.wishes.cancel(job_id)
            text += piece
    assert ids_in(text) == [event.id for event in await store.history.events(job_id)]
    assert text.count("event: job_finished") == 2


# --- of a key


KINDS = [
    ("events", STREAM),
    ("live", STREAM),
    ("logs?follow=true", STREAM),
    ("logs?follow=true", {"Accept": "text/plain"}),
]


@pytest.fixture
def guarded(redis_url: str, tmp_path: Path) -> Iterator[str]:
    with serving(settings(redis_url, tmp_path, api_key=BOOTSTRAP)) as address:
        yield address


async def opened(http: httpx.AsyncClient, path: str, **headers: str) -> int:
    """The status of a stream that is closed at once."""
    async with http.stream("GET", path, headers=headers) as response:
        if response.status_code == 429:
            problem = json.loads(await response.aread())
            assert (problem["code"], response.headers["content-type"]) == ("too_many_streams", problems.MEDIA_TYPE)
            assert int(response.headers["Retry-After"]) >= 1
        return response.status_code


@pytest.mark.parametrize(("path", "accept"), KINDS)
async def test_a_key_has_so_many_open_streams_at_most_and_may_ask_for_another_when_one_is_closed(
    guarded: str, store: JobStore, monkeypatch: pytest.MonkeyPatch, path: str, accept: dict[str, str]
) -> None:
    monkeypatch.setattr(streams, "MOST_STREAMS", 2)
    job_id = await submitted(store)
    key, other = await a_key(store, "default"), await a_key(store, "default")
    address = f"{guarded}/v1/jobs/{job_id}"
    async with httpx.AsyncClient(timeout=20.0, headers=bearer(key)) as http:

        async def another() -> bool:
            return await opened(http, f"{address}/{path}", **accept) == 200

        async with http.stream("GET", f"{address}/events", headers=STREAM) as first:
            assert first.status_code == 200
            async with http.stream("GET", f"{address}/{path}", headers=accept) as second:
                assert second.status_code == 200
                assert await opened(http, f"{address}/{path}", **accept) == 429
                assert await opened(http, f"{address}/{path}", **accept, **bearer(other)) == 200
                assert (await http.get(f"{address}/events")).status_code == 200, "a page is no stream"
            await eventually(another, seconds=20, what="a place is free")


@pytest.mark.parametrize(("path", "accept"), KINDS)
async def test_a_stream_that_has_nothing_to_say_ends_with_its_key(
    guarded: str, store: JobStore, monkeypatch: pytest.MonkeyPatch, path: str, accept: dict[str, str]
) -> None:
    for module in (events, live):
        monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    job_id = await submitted(store)
    key = await a_key(store, "default")
    async with (
        httpx.AsyncClient(timeout=20.0, headers=bearer(key)) as http,
        http.stream("GET", f"{guarded}/v1/jobs/{job_id}/{path}", headers=accept) as response,
    ):
        assert response.status_code == 200
        reading = asyncio.create_task(response.aread())
        revoked = await http.delete(f"{guarded}/v1/keys/{key[4:16]}", headers=bearer(BOOTSTRAP))
        assert revoked.status_code == 204
        await asyncio.wait_for(reading, 20)

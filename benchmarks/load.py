"""Load on one API, from a process of its own: python -m benchmarks.load submit|pages|follow --port ...

Speaks HTTP over plain asyncio streams, since a client library would cost more than the server that is measured. Every
command does a bounded number of things and prints one JSON document; times are seconds of the monotonic clock, which
all processes of a machine share.
"""

import argparse
import asyncio
import json
import random
import re
import secrets
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 180.0  # with a server that does not answer, or a stream that does not end
NUMBER = re.compile(rb'"message":"(\d+)"')  # what benchmarks.api writes into its events


class Connection:
    """One kept-alive HTTP connection to the loopback interface."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Status and body of an answer that has a Content-Length."""
        self._writer.write(_request(method, path, body, headers))
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        return int(head[9:12]), await self._reader.readexactly(int(length[1]) if length else 0)

    async def begin(self, path: str) -> None:
        """Asks for a stream; `chunks` gives what it carries."""
        self._writer.write(_request("GET", path, b"", {"accept": "text/event-stream"}))
        head = await self._reader.readuntil(b"\r\n\r\n")
        if int(head[9:12]) != 200:
            raise RuntimeError(f"no stream: {head.decode()}")

    async def chunk(self) -> bytes:
        """The next piece of a chunked body; empty: it has ended."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:size]

    def close(self) -> None:
        self._writer.close()


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds. At least two values."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": 1000 * cuts[49], "p99": 1000 * cuts[98]}


async def submit(port: int, body: bytes, *, connections: int, count: int, per_second: float | None) -> dict[str, Any]:
    """Posts `count` jobs, each with a key of its own: as fast as the connections get answers, or paced.

    Paced, a request's time counts from when it was due, not from when a connection was free to send it.
    """
    numbers = iter(range(count))
    times: list[float] = []
    opened = [await Connection.open(port) for _ in range(connections)]
    began = time.monotonic()

    async def work(connection: Connection) -> None:
        for number in numbers:
            due = began + number / per_second if per_second else time.monotonic()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            headers = {"content-type": "application/json", "idempotency-key": secrets.token_hex(16)}
            status, answer = await connection.ask("POST", "/v1/jobs", body, **headers)
            if status != 202:
                raise RuntimeError(f"a submission was answered {status}: {answer.decode()}")
            times.append(time.monotonic() - due)

    await asyncio.gather(*map(work, opened))
    seconds = time.monotonic() - began
    for connection in opened:
        connection.close()
    return {"per_second": count / seconds, **percentiles(times)}


async def pages(port: int, *, count: int, limit: int) -> dict[str, Any]:
    """Walks every page once, which gives the cursors, then asks for `count` of them at random, one after another."""
    connection = await Connection.open(port)
    cursors: list[str] = []
    times: list[float] = []

    async def page(cursor: str | None) -> Any:
        path = f"/v1/jobs?limit={limit}" + (f"&after={cursor}" if cursor else "")
        status, answer = await connection.ask("GET", path)
        if status != 200:
            raise RuntimeError(f"a page was answered {status}: {answer.decode()}")
        return answer

    following: str | None = None
    while (following := json.loads(await page(following))["next"]) is not None:
        cursors.append(following)
    choose = random.Random(0)
    for _ in range(count):
        cursor = choose.choice(cursors)
        began = time.monotonic()
        await page(cursor)
        times.append(time.monotonic() - began)
    connection.close()
    return {"pages": len(cursors) + 1, **percentiles(times)}


async def follow(port: int, job_id: str, *, clients: int, events: int) -> dict[str, Any]:
    """Follows a job with many clients until each has the last of `events` numbered events, or its stream has ended.

    Prints "following" once all of them are connected. `received` holds of each client (number, when) in order.
    """
    received: list[list[tuple[int, float]]] = [[] for _ in range(clients)]
    opened = [await Connection.open(port) for _ in range(clients)]
    await asyncio.gather(*(connection.begin(f"/v1/jobs/{job_id}/events") for connection in opened))
    print("following", flush=True)

    async def read(connection: Connection, mine: list[tuple[int, float]]) -> None:
        while chunk := await connection.chunk():
            now = time.monotonic()
            mine += [(int(number), now) for number in NUMBER.findall(chunk)]
            if mine and mine[-1][0] == events - 1:
                break
        connection.close()

    await asyncio.gather(*map(read, opened, received))
    return {"received": received}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("submit", "pages", "follow"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, default=100, help="of requests, or of events to follow")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--per-second", type=float)
    parser.add_argument("--body", type=Path)
    parser.add_argument("--job")
    chosen = parser.parse_args()
    match chosen.what:
        case "submit":
            body = chosen.body.read_bytes()
            load = submit(
                chosen.port, body, connections=chosen.connections, count=chosen.count, per_second=chosen.per_second
            )
        case "pages":
            load = pages(chosen.port, count=chosen.count, limit=100)
        case _:
            load = follow(chosen.port, chosen.job, clients=chosen.connections, events=chosen.count)

    async def bounded() -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_SECONDS + (chosen.count / chosen.per_second if chosen.per_second else 0)):
            return await load

    print(json.dumps(asyncio.run(bounded())))


def _request(method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


if __name__ == "__main__":
    main()

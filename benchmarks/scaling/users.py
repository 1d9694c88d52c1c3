"""People and programs that use the API meanwhile: python -m benchmarks.scaling.users --port ... --seconds ...

Requests come at a fixed pace, whatever becomes of those before, and are timed from when they were due; beside them some
follow jobs, and a Prometheus scrapes. Prints one JSON document: milliseconds of every request, by what was asked.
"""

import argparse
import asyncio
import json
import random
import secrets
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.load import Connection
from benchmarks.scaling.lines import say

CONNECTIONS = 32
# What is asked, out of a hundred requests. {job}: one that runs.
MIX = {
    "a job": ("/v1/jobs/{job}", 40),
    "20 jobs": ("/v1/jobs?limit=20", 15),
    "100 jobs": ("/v1/jobs?limit=100", 5),
    "blocks": ("/v1/jobs/{job}/blocks", 10),
    "events": ("/v1/jobs/{job}/events", 10),
    "logs": ("/v1/jobs/{job}/logs?tail=100", 5),
    "curves": ("/v1/jobs/{job}/metrics", 5),
    "checkpoints": ("/v1/jobs/{job}/checkpoints", 5),
    "submit": ("/v1/jobs", 5),
}
SCRAPE = "a scrape"


class Users:
    """Who asks, and how long each answer took."""

    def __init__(self, port: int, body: bytes) -> None:
        self.times: defaultdict[str, list[float]] = defaultdict(list)  # milliseconds
        self.refused: list[str] = []  # what was not answered as it should be
        self.pieces = 0  # that followers received
        self._port = port
        self._body = body
        self._jobs: list[str] = []
        self._free: asyncio.Queue[Connection] = asyncio.Queue()

    async def arrive(self) -> None:
        """Opens the connections, and sees which jobs run."""
        for _ in range(CONNECTIONS):
            self._free.put_nowait(await Connection.open(self._port))
        status, answer = await self._ask("GET", "/v1/jobs?limit=200&status=running")
        if status != 200:
            raise RuntimeError(answer.decode())
        self._jobs = [job["id"] for job in json.loads(answer)["data"]]

    async def use(self, seconds: float, per_second: float) -> None:
        """The mix, paced."""
        choose = random.Random(0)
        kinds, weights = list(MIX), [weight for _, weight in MIX.values()]
        began = time.monotonic()
        asking: list[asyncio.Task[None]] = []
        for number in range(int(seconds * per_second)):
            due = began + number / per_second
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            kind = choose.choices(kinds, weights)[0]
            path = MIX[kind][0].format(job=choose.choice(self._jobs))
            asking.append(asyncio.create_task(self._timed(kind, path, due)))
        await asyncio.gather(*asking)

    async def scrape(self, seconds: float, every: float) -> None:
        """As Prometheus does: first a while after the beginning, so that a short run has one, too."""
        began = time.monotonic()
        due = began + min(every, seconds) / 2
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._timed(SCRAPE, "/metrics", time.monotonic())
            due += every

    async def follow(self, number: int) -> None:
        """Reads a stream until cancelled."""
        kind = "live" if number % 2 else "events"
        stream = await Connection.open(self._port)
        try:
            await stream.begin(f"/v1/jobs/{self._jobs[number % len(self._jobs)]}/{kind}")
            while await stream.chunk():
                self.pieces += 1
        finally:
            stream.close()

    async def _timed(self, kind: str, path: str, due: float) -> None:
        submits = kind == "submit"
        status, answer = await self._ask("POST" if submits else "GET", path, self._body if submits else b"")
        self.times[kind].append(1000 * (time.monotonic() - due))
        if status != (202 if submits else 200):
            self.refused.append(f"{path}: {status} {answer[:200].decode()}")

    async def _ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = await self._free.get()
        try:
            if not body:
                return await connection.ask(method, path)
            headers = {"content-type": "application/json", "idempotency-key": secrets.token_hex(16)}
            return await connection.ask(method, path, body, **headers)
        finally:
            self._free.put_nowait(connection)


async def run(port: int, body: bytes, *, seconds: float, per_second: float, followers: int, scrape: float) -> None:
    users = Users(port, body)
    await users.arrive()
    following = [asyncio.create_task(users.follow(number)) for number in range(followers)]
    say("here")
    await asyncio.gather(users.use(seconds, per_second), users.scrape(seconds, scrape))
    for each in following:
        each.cancel()
    ends = await asyncio.gather(*following, return_exceptions=True)
    users.refused += [repr(end) for end in ends if isinstance(end, Exception)]
    told: dict[str, Any] = {"times": users.times, "refused": users.refused, "pieces": users.pieces}
    say(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--body", type=Path, required=True, help="what is submitted")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--per-second", type=float, required=True)
    parser.add_argument("--followers", type=int, required=True)
    parser.add_argument("--scrape", type=float, default=15.0, help="seconds between two")
    chosen = parser.parse_args()
    asyncio.run(
        run(
            chosen.port,
            chosen.body.read_bytes(),
            seconds=chosen.seconds,
            per_second=chosen.per_second,
            followers=chosen.followers,
            scrape=chosen.scrape,
        )
    )


if __name__ == "__main__":
    main()

"""What Redis, the processes and the machine say of themselves, and the difference between two looks."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import psutil
import redis

from benchmarks.load import percentiles

KINDS = ("course", "tasks", "progress", "events", "logs")  # how keys of a job end; what has none of them is its hash


@dataclass(frozen=True)
class Look:
    """At one moment. CPU in seconds since the process, or the machine, began."""

    cpu: Mapping[str, float]
    machine_cpu: float  # of all that runs on it
    commands: int  # that Redis has carried out, those inside scripts included
    received: int  # bytes
    sent: int
    did: Mapping[str, int]  # what the simulated workers did


@dataclass(frozen=True)
class Held:
    """What Redis holds, in bytes."""

    used: int
    by_kind: Mapping[str, int]  # of the keys; `connections`: of clients' buffers
    counts: Mapping[str, int]  # of the things that these are made of
    connections: int


def look(redis_url: str, pids: Mapping[str, int], did: Mapping[str, int]) -> Look:
    with _asking(redis_url) as client:
        stats = _info(client, "stats")
    times = psutil.cpu_times()
    return Look(
        cpu={name: _cpu_seconds(pid) for name, pid in pids.items()},
        machine_cpu=times.user + times.system + times.nice,
        commands=stats["total_commands_processed"],
        received=stats["total_net_input_bytes"],
        sent=stats["total_net_output_bytes"],
        did=did,
    )


def held(redis_url: str) -> Held:
    """Walks over all keys: not while anything is timed."""
    sizes, counts = Counter[str](), Counter[str]()
    with _asking(redis_url) as client:
        memory, clients = _info(client, "memory"), _info(client, "clients")
        keys = list(cast("Iterator[str]", client.scan_iter(count=1000)))  # pyright: ignore[reportUnknownMemberType]
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            pipe = client.pipeline(transaction=False)  # pyright: ignore[reportUnknownMemberType]
            for key in part:
                pipe.memory_usage(key, samples=0)  # pyright: ignore[reportUnknownMemberType]
                kind = _kind(key)
                if kind in ("tasks", "progress"):
                    pipe.hlen(key)
                elif kind in ("events", "logs"):
                    pipe.xlen(key)
                elif kind == "course":
                    pipe.llen(key)
                else:
                    pipe.exists(key)
            answers = cast("list[int | None]", pipe.execute())
            for key, size, count in zip(part, answers[::2], answers[1::2], strict=True):
                sizes[_kind(key)] += size or 0
                counts[_kind(key)] += count or 0
    sizes["connections"] = memory["mem_clients_normal"]
    return Held(memory["used_memory"], dict(sizes), dict(counts), clients["connected_clients"])


def per_second(before: Look, after: Look, seconds: float) -> dict[str, float]:
    """What the simulated workers did, by name."""
    names = set(before.did) | set(after.did)
    return {name: (after.did.get(name, 0) - before.did.get(name, 0)) / seconds for name in sorted(names)}


def cores(before: Look, after: Look, seconds: float) -> dict[str, float]:
    """How many cores each process took, and `others` on the machine."""
    taken = {name: (after.cpu[name] - cpu) / seconds for name, cpu in before.cpu.items()}
    everything = (after.machine_cpu - before.machine_cpu) / seconds
    return taken | {"others": max(0.0, everything - sum(taken.values()))}


def spread(milliseconds: list[float]) -> dict[str, float]:
    """Median, p99 and the longest of at least two."""
    found = percentiles([each / 1000 for each in milliseconds])
    return {"p50": found["p50"], "p99": found["p99"], "max": max(milliseconds), "count": len(milliseconds)}


def _kind(key: str) -> str:
    parts = key.split(":")
    if parts[1] != "job":
        return "other"
    if len(parts) == 3:
        return "job"
    return parts[3] if parts[3] in KINDS else "other"


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _info(client: "redis.Redis", section: str) -> dict[str, Any]:
    return client.info(section)  # pyright: ignore[reportUnknownMemberType]


def _asking(redis_url: str) -> "contextlib.closing[redis.Redis]":
    client = redis.Redis.from_url(redis_url, decode_responses=True)  # pyright: ignore[reportUnknownMemberType]
    return contextlib.closing(client)

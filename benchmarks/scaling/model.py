"""Ten, a hundred, a thousand blocks on paper. Pure: docs/scale.md is made of these, and a test holds it to them.

Two kinds of numbers go in. What an operation asks of Redis, and how many bytes a thing takes there, are facts of this
version, which a test counts again. What an operation takes is a fact of a machine: UNIT_SECONDS are those of a core of
the machine in docs/results.md.
"""

from dataclasses import dataclass

from benchmarks.scaling.pace import BLOCKS, SLOTS, Pace
from dbserve.contracts.plan import NetworkPlan
from dbserve.store.history import EVENTS_KEPT, LOG_LINES_KEPT

HEARTBEAT_SECONDS = 1.0  # from one to the next
POINTS = 120  # of a training's course
TICK_PAUSE_SECONDS = 0.5
CONNECTIONS = 2  # of one worker to Redis: its heartbeat, and whatever else it writes meanwhile

# Commands of Redis, those inside scripts included.
HEARTBEAT = 4  # EVALSHA: HGET, TIME, HSET
EVENT = 12  # WATCH, EVAL: HVALS, HMGET, TIME, EXISTS; MULTI, HSET, HSET, HINCRBY, XADD, EXEC
LOG_BATCH = 5  # WATCH, EXISTS, MULTI, XADD, EXEC
POINT_BATCH = 6  # WATCH, EXISTS, LLEN, MULTI, RPUSH, EXEC
TICK = 6  # the lease: SET, EVAL: GET, PEXPIRE; SMEMBERS, TIME
TICK_OF_JOB = 1  # HGET of its revision
TICK_OF_BEGUN_JOB = 1  # HGETALL of what its workers tell
READ_ANEW = 4  # of a job that has changed: EVALSHA: HMGET, HVALS, HGETALL
REQUEST = 5  # of the API, on average over the mix

# Bytes in Redis.
BYTES = {
    "job": 3500,  # spec and plan, compressed; record and standing
    "tasks": 460,  # of one task
    "progress": 980,  # of one task that has begun
    "events": 680,  # of one
    "logs": 300,  # of one line
    "course": 180,  # of one point
}
CONNECTION_BYTES = 12_000
EMPTY_BYTES = 1_000_000  # Redis itself

UNIT_SECONDS = {
    "heartbeat": 45e-6,  # of Redis
    "event": 250e-6,  # of Redis
    "look at a worker": 90e-6,  # of the reconciler: to read, to parse, to decide
    "look at a job": 30e-6,
    "tick": 6e-3,
}


@dataclass(frozen=True)
class Fleet:
    """Workers, and how they spend their time. Seconds."""

    workers: int
    training_seconds: float
    checkpoint_seconds: float  # from one to the next
    log_seconds: float  # the same, of lines
    losses_per_second: float = 0.0  # attempts that end before their time, of one worker
    waiting_jobs: int = 0
    requests_per_second: float = 0.0  # of the API
    blocks: int = BLOCKS  # of a job
    slots: int = SLOTS  # workers of a node

    @property
    def jobs(self) -> int:
        """That run."""
        return -(-self.workers // self.blocks)

    @property
    def nodes(self) -> int:
        return -(-self.workers // self.slots)


def production(workers: int) -> Fleet:
    """A day's training, a checkpoint every ten minutes, a line a minute, every worker lost once a week."""
    return Fleet(
        workers,
        training_seconds=86_400.0,
        checkpoint_seconds=600.0,
        log_seconds=60.0,
        losses_per_second=1 / (7 * 86_400),
        waiting_jobs=-(-workers // 80),
        requests_per_second=5.0,
        blocks=8,
    )


def simulated(workers: int, pace: Pace, *, waiting_jobs: int, requests_per_second: float, slots: int) -> Fleet:
    """What the simulation does: the same, hurried. Trainings end as seldom as they would; the few that are nearly done
    come on top."""
    return Fleet(
        workers,
        training_seconds=float(pace.steps),
        checkpoint_seconds=float(pace.checkpoint_every),
        log_seconds=float(pace.log_every),
        losses_per_second=pace.crashes_per_second + pace.deaths_per_second,
        waiting_jobs=waiting_jobs,
        requests_per_second=requests_per_second,
        slots=slots,
    )


# --- the control plane


def heartbeats(fleet: Fleet) -> float:
    """A second."""
    return fleet.workers / HEARTBEAT_SECONDS


def checkpoints(fleet: Fleet) -> float:
    """A second."""
    return fleet.workers / fleet.checkpoint_seconds


def events(fleet: Fleet) -> float:
    """Changes of a task a second: checkpoints; launched, started and finished of each training, and of each job's
    assembly and evaluation; crashed, launched, started and restored of each attempt that is lost."""
    ends = fleet.workers / fleet.training_seconds
    whole = 3 * ends * (1 + 2 / fleet.blocks)
    return checkpoints(fleet) + whole + 4 * fleet.workers * fleet.losses_per_second


def log_batches(fleet: Fleet) -> float:
    """A second; a line that comes alone is a batch."""
    return fleet.workers / fleet.log_seconds


def points(fleet: Fleet) -> float:
    """Of courses, a second."""
    return fleet.workers * POINTS / fleet.training_seconds


def tick_seconds(fleet: Fleet) -> float:
    """Of a look at which nothing is to be done."""
    jobs = fleet.jobs + fleet.waiting_jobs
    of_jobs, of_workers = jobs * UNIT_SECONDS["look at a job"], fleet.workers * UNIT_SECONDS["look at a worker"]
    return UNIT_SECONDS["tick"] + of_jobs + of_workers


def ticks(fleet: Fleet) -> float:
    """A second."""
    return 1 / (TICK_PAUSE_SECONDS + tick_seconds(fleet))


def commands(fleet: Fleet) -> float:
    """Of Redis, a second."""
    jobs = fleet.jobs + fleet.waiting_jobs
    look = TICK + TICK_OF_JOB * jobs + TICK_OF_BEGUN_JOB * fleet.jobs
    return (
        HEARTBEAT * heartbeats(fleet)
        + (EVENT + READ_ANEW) * events(fleet)
        + LOG_BATCH * log_batches(fleet)
        + POINT_BATCH * points(fleet)
        + look * ticks(fleet)
        + REQUEST * fleet.requests_per_second
    )


def redis_cores(fleet: Fleet) -> float:
    """Of one; Redis has one thread for commands."""
    return UNIT_SECONDS["heartbeat"] * heartbeats(fleet) + UNIT_SECONDS["event"] * (
        events(fleet) + log_batches(fleet) + points(fleet)
    )


def reconciler_cores(fleet: Fleet) -> float:
    return tick_seconds(fleet) * ticks(fleet)


# --- memory of Redis


def bytes_of(counts: dict[str, int]) -> dict[str, int]:
    """Of so many things of each kind."""
    return {kind: BYTES[kind] * count for kind, count in counts.items() if kind in BYTES}


def counts_of(fleet: Fleet, seconds: float) -> dict[str, int]:
    """How many things Redis holds when the fleet has worked for so long: at most a training's length, of jobs none of
    which has ended. Of events and lines a job keeps the newest."""
    jobs = fleet.jobs + fleet.waiting_jobs
    return {
        "job": jobs,
        "tasks": jobs * (fleet.blocks + 2),  # with an assembly and an evaluation
        "progress": fleet.workers,
        "events": min(jobs * EVENTS_KEPT, jobs + round(2 * fleet.workers + events(fleet) * seconds)),
        "logs": min(jobs * LOG_LINES_KEPT, round(fleet.workers * (1 + seconds / fleet.log_seconds))),
        "course": round(fleet.workers * (1 + POINTS * seconds / fleet.training_seconds)),
    }


def redis_bytes(fleet: Fleet, seconds: float) -> int:
    """Used memory in all."""
    connections = CONNECTIONS * fleet.workers * CONNECTION_BYTES
    return EMPTY_BYTES + connections + sum(bytes_of(counts_of(fleet, seconds)).values())


# --- the data plane


def shard_bytes(fleet: Fleet, dataset: float, *, shared: bool) -> float:
    """Read over the network until every worker has seen the data set once: by each node, or else by each worker."""
    return dataset * (fleet.nodes if shared else fleet.workers)


def checkpoint_bytes(network: NetworkPlan, *, averaged: bool) -> int:
    """Weights and both moments of AdamW, and the averaged weights where they are kept: float32, manifest aside."""
    return 4 * network.parameters * (4 if averaged else 3)


def checkpoint_bandwidth(fleet: Fleet, one: float) -> float:
    """Bytes a second into the artefact store, of checkpoints of so many bytes."""
    return one * checkpoints(fleet)


def gradient_bytes(network: NetworkPlan, workers: int) -> float:
    """What each of several data-parallel workers sends a step in a ring all-reduce of float32 gradients. Of isolated
    blocks, each on a worker of its own, it is 0."""
    return 2 * (workers - 1) / workers * 4 * network.parameters


# --- money


def gpu_hours(fleet: Fleet) -> float:
    """Of one training of each worker."""
    return fleet.workers * fleet.training_seconds / 3600


def repeated_hours(fleet: Fleet, starting_seconds: float) -> float:
    """GPU-hours beyond those: a lost attempt takes another start, and on average half a checkpoint's interval again."""
    lost = fleet.workers * fleet.training_seconds * fleet.losses_per_second
    return lost * (starting_seconds + fleet.checkpoint_seconds / 2) / 3600


def cost(hours: float, price: float) -> float:
    """In the currency of `price`, which is that of one GPU for an hour."""
    return hours * price

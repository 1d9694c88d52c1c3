"""The jobs of a soak: small ones that keep coming, and what their clients were told of them."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

from dbserve.client import Client, Conflict, Unavailable
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import TERMINAL_JOB, JobStatus
from dbserve.errors import ServerUnreachable
from tests.acceptance.jobs import digits_job
from tests.chaos.history import Submission, Wish, Wished
from tests.shards import cycle, encoded, pixels, write_shard  # pyright: ignore[reportUnknownVariableType]

Answer = TypeVar("Answer")

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 120.0  # of a client with a service that is away
CLIENTS = 4  # that submit the same request with the same key at the same time
POISON_ROWS = 200


class Role(StrEnum):
    """What its user does with a job."""

    PLAIN = "left alone"
    REPEATED = "submitted several times with one key"
    PAUSED = "paused and resumed"
    CANCELLED = "cancelled"
    POISON = "asks for data that cannot be decoded"


# In this order, over and over; poison comes once.
ROLES = (Role.PLAIN, Role.REPEATED, Role.PLAIN, Role.PAUSED, Role.PLAIN, Role.CANCELLED)

ENDS: dict[Role, frozenset[JobStatus]] = {
    Role.PLAIN: frozenset({JobStatus.SUCCEEDED}),
    Role.REPEATED: frozenset({JobStatus.SUCCEEDED}),
    Role.PAUSED: frozenset({JobStatus.SUCCEEDED}),
    Role.CANCELLED: frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED}),  # it may have been faster
    Role.POISON: frozenset({JobStatus.FAILED}),
}


@dataclass(frozen=True)
class Submitted:
    """A job as its users know it."""

    job_id: str
    role: Role
    variant: int | None  # place among variants(); None: of none


@dataclass
class ClientLog:
    """What clients asked for and were told."""

    submitted: list[Submitted] = field(default_factory=list[Submitted])
    submissions: list[Submission] = field(default_factory=list[Submission])
    wished: list[Wished] = field(default_factory=list[Wished])
    followed: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # job -> ids of events, as they came


def variants(steps: int) -> tuple[JobSpec, ...]:
    """Trainings that differ in what a checkpoint must hold: schedule, dropout, augmentation, an average, momentum."""
    options = {"depth": 2, "width": 32, "heads": 2, "patch": 2}
    augmented = {"uri": "builtin:digits", "augment": {"crop_padding": 1}}
    training = {"steps": steps, "batch_size": 64, "lr": 3e-3}
    shared = {
        "resources": {"cpus_per_block": 0.5},  # more blocks at a time than cores: the more to hit
        "retry": {"max_attempts": 100, "backoff_seconds": 0.5, "max_backoff_seconds": 2.0},
    }
    saved = {"grace_seconds": 10.0}
    return (
        digits_job(name="plain", training=training, checkpoint={"every_steps": steps // 12, **saved}, **shared),
        digits_job(
            name="dropout",
            architecture={"kind": "vit", "options": {**options, "dropout": 0.1}},
            data=augmented,
            training={**training, "seed": 1},
            checkpoint={"every_steps": steps // 7, **saved},
            **shared,
        ),
        digits_job(
            name="average",
            data=augmented,
            training={**training, "seed": 2, "ema": 0.99, "warmup": steps // 10},
            checkpoint={"every_steps": steps // 30, "keep_last": 1, **saved},
            **shared,
        ),
        digits_job(
            name="muon",
            training={**training, "seed": 3, "optimizer": "muon", "accumulate": 2},
            checkpoint={"every_steps": steps // 9, "keep_last": 3, **saved},
            **shared,
        ),
    )


def poison(directory: Path) -> JobSpec:
    """Its first images are sound, so that it is accepted; a later one is not."""
    images = encoded(pixels(POISON_ROWS, (8, 8, 1)))
    images[POISON_ROWS // 2] = b"no image"
    write_shard(directory / "part-0.parquet", images, cycle(POISON_ROWS))
    return digits_job(name="poison", data={"uri": str(directory)})


class Workload:
    """Keeps jobs coming in a thread of its own, does with them what their role says, and follows each one's events."""

    def __init__(self, url: str, specs: Sequence[JobSpec], bad: JobSpec, *, seed: int) -> None:
        self.log = ClientLog()
        self._url = url
        self._specs = specs
        self._bad = bad
        self._seed = seed
        self._random = random.Random(seed)
        self._due: list[tuple[float, str, Wish]] = []  # (monotonic seconds, job, what is wished of it then)
        self._followers: list[threading.Thread] = []

    def run(self, ending: threading.Event) -> None:
        """Until `ending`; then does what is still due and returns."""
        with Client(self._url) as client:
            wanted = 3
            while not ending.wait(LOOK_SECONDS):
                self._wish(client)
                if self._unfinished(client) < wanted:
                    self._next()
                    wanted = self._random.randint(3, 4)
            while self._due:
                self._wish(client)
                time.sleep(LOOK_SECONDS)

    def join(self, seconds: float) -> None:
        """Waits for those who follow events, whose streams end with the jobs."""
        deadline = time.monotonic() + seconds
        for follower in self._followers:
            follower.join(max(0.0, deadline - time.monotonic()))

    def _next(self) -> None:
        number = len(self.log.submitted)
        role = Role.POISON if number == len(ROLES) else ROLES[number % len(ROLES)]
        variant = None if role is Role.POISON else number % len(self._specs)
        spec = self._bad if variant is None else self._specs[variant]
        key = f"soak-{self._seed}-{number}"
        times = CLIENTS if role is Role.REPEATED else 1
        with ThreadPoolExecutor(times) as pool:
            told = [*pool.map(self._submit, [spec] * times, [key] * times)]
        self.log.submissions += [Submission(key, spec.digest(), job_id) for job_id in told]
        self.log.submitted.append(Submitted(told[0], role, variant))
        self._follow(told[0])
        now = time.monotonic()
        if role is Role.CANCELLED:
            self._due.append((now + self._random.uniform(1.0, 25.0), told[0], "cancel"))
        if role is Role.PAUSED:
            paused = now + self._random.uniform(4.0, 20.0)
            self._due.append((paused, told[0], "pause"))
            self._due.append((paused + self._random.uniform(3.0, 15.0), told[0], "resume"))

    def _submit(self, spec: JobSpec, key: str) -> str:
        with Client(self._url) as client:
            return surely(lambda: client.submit(spec, key)).id

    def _follow(self, job_id: str) -> None:
        """As the command line's watch does; a client that loses its stream takes it up again."""
        ids = self.log.followed[job_id] = []

        def follow() -> None:
            with Client(self._url) as client, contextlib.suppress(ServerUnreachable, Unavailable):
                for event in client.events(job_id):
                    ids.append(event.id)  # noqa: PERF401

        self._followers.append(threading.Thread(target=follow, daemon=True))
        self._followers[-1].start()

    def _wish(self, client: Client) -> None:
        now = time.monotonic()
        due = sorted(one for one in self._due if one[0] <= now)
        self._due = [one for one in self._due if one[0] > now]
        ask = {"cancel": client.cancel, "pause": client.pause, "resume": client.resume}
        for _, job_id, wish in due:
            with contextlib.suppress(Conflict):  # the job has ended
                surely(partial(ask[wish], job_id))
                self.log.wished.append(Wished(job_id, wish))

    def _unfinished(self, client: Client) -> int:
        return sum(job.status not in TERMINAL_JOB for job in surely(lambda: list(client.jobs())))


def surely(ask: Callable[[], Answer]) -> Answer:
    """Asks again while the service is away, as a patient client does; raises when that takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except (ServerUnreachable, Unavailable):
            if time.monotonic() > deadline:
                raise
        time.sleep(LOOK_SECONDS)

"""Faults as they happen to a running `dbserve up`: each is really injected, and tells what shows that it happened."""

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil
import redis

from dbserve.client import Client
from dbserve.contracts.status import TERMINAL_JOB, TaskState
from dbserve.contracts.views import BlockView
from dbserve.errors import DbserveError
from tests.acceptance.conftest import Service
from workers.presence import birth

GONE_SECONDS = 5.0  # a process takes to be gone after SIGKILL, or to stop after SIGSTOP
SAVED_SECONDS = 40.0  # a trainer takes to end after SIGTERM
ANSWER_SECONDS = 3.0  # for REST, asked where the trainers are
BALLAST = ".ballast"


class Kind(StrEnum):
    TRAINER_KILLED = "trainer: kill -9"
    TRAINER_STOPPED = "trainer: SIGSTOP, later SIGCONT"
    TRAINER_TERMINATED = "trainer: SIGTERM"
    CHECKPOINT_DAMAGED = "newest checkpoint damaged, its trainer killed"
    API_KILLED = "API: kill -9"
    RECONCILER_KILLED = "reconciler: kill -9"
    RECONCILER_STOPPED = "reconciler: SIGSTOP, later SIGCONT"
    REDIS_KILLED = "Redis: kill -9"
    REDIS_STOPPED = "Redis: SIGSTOP, later SIGCONT"
    REDIS_STALLED = "Redis: CLIENT PAUSE"
    RAYLET_KILLED = "raylet: kill -9"
    DISK_FULL = "artefact store: no space left"


class NoTarget(Exception):
    """What the fault is for is not there at the moment."""


@dataclass(frozen=True)
class Trainer:
    """A block that trains, and its process as it was found."""

    job_id: str
    block: BlockView
    pid: int
    born: float


@dataclass(frozen=True)
class Ground:
    """What faults are injected into."""

    service: Service
    redis_socket: Path

    @property
    def artefacts(self) -> Path:
        return self.service.data_dir / "artifacts"


@dataclass(frozen=True)
class Done:
    """A fault that happened."""

    evidence: str  # what shows it
    damaged: str | None = None  # the checkpoint, relative to the artefact root


Sleep = Callable[[float], object]  # so that whoever ends a soak early need not wait


def inflict(kind: Kind, ground: Ground, roll: float, seconds: float, sleep: Sleep = time.sleep) -> Done | None:
    """Injects one fault; returns once it is over, with what shows that it happened. None: it did not come about.

    `roll` in [0, 1) chooses among targets; `seconds` is how long a fault lasts that does not last for ever.

    Raises:
        NoTarget
    """
    match kind:
        case Kind.TRAINER_KILLED:
            found = _chosen(trainers(ground.service), roll)
            return Done(f"{_named(found)}, pid {found.pid}") if kill(found.pid, found.born) else None
        case Kind.TRAINER_STOPPED:
            found = _chosen(trainers(ground.service), roll)
            with stopped(found.pid) as did:
                sleep(seconds)
            return Done(f"{_named(found)}, pid {found.pid}, for {seconds:.0f} s") if did else None
        case Kind.TRAINER_TERMINATED:
            found = _chosen(trainers(ground.service), roll)
            return Done(f"{_named(found)}, pid {found.pid}") if terminate(found.pid, found.born) else None
        case Kind.CHECKPOINT_DAMAGED:
            return _damage_newest(ground, roll)
        case Kind.API_KILLED | Kind.RECONCILER_KILLED | Kind.REDIS_KILLED | Kind.RAYLET_KILLED:
            pid = process_of(kind, ground.service).pid
            return Done(f"pid {pid}") if kill(pid) else None
        case Kind.RECONCILER_STOPPED | Kind.REDIS_STOPPED:
            with stopped(pid := process_of(kind, ground.service).pid) as did:
                sleep(seconds)
            return Done(f"pid {pid}, for {seconds:.0f} s") if did else None
        case Kind.REDIS_STALLED:
            waited = stall_redis(ground.redis_socket, seconds)
            return Done(f"a PING waited {waited:.1f} s") if waited >= seconds / 2 else None
        case Kind.DISK_FULL:
            with full_disk(ground.artefacts) as left:
                sleep(seconds)
            return Done(f"{left} bytes left, for {seconds:.0f} s")


# --- whom


def trainers(service: Service) -> list[Trainer]:
    """Blocks that have taken a step and have not told their end, oldest job first. Raises NoTarget without an API."""
    found: list[Trainer] = []
    try:
        with Client(service.url, timeout=ANSWER_SECONDS) as client:
            jobs = [job for job in client.jobs() if job.status not in TERMINAL_JOB]
            for job in reversed(jobs):
                found += filter(None, (_trainer(job.id, block) for block in client.blocks(job.id)))
    except DbserveError as away:
        raise NoTarget(str(away)) from away
    return found


def _trainer(job_id: str, block: BlockView) -> Trainer | None:
    if block.status is not TaskState.RUNNING or block.pid is None or not 0 < block.step < block.total:
        return None
    born = birth(block.pid)
    return None if born is None or not _is_worker(block.pid) else Trainer(job_id, block, block.pid, born)


def _is_worker(pid: int) -> bool:
    """A record may outlive its process, and the pid may be another's by now."""
    try:
        return b"BlockActor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def process_of(kind: Kind, service: Service) -> psutil.Process:
    """The one process that the fault is for. Raises NoTarget."""
    wanted = {
        Kind.API_KILLED: r"dbserve api\b",
        Kind.RECONCILER_KILLED: r"dbserve reconcile\b",
        Kind.RECONCILER_STOPPED: r"dbserve reconcile\b",
        Kind.REDIS_KILLED: r"redis-server\b",
        Kind.REDIS_STOPPED: r"redis-server\b",
        Kind.RAYLET_KILLED: r"/raylet\b",
    }[kind]
    for process in service.descendants():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            line = " ".join(command if kind is not Kind.RAYLET_KILLED else command[:1])
            if re.search(wanted, line) and birth(process.pid) is not None:
                return process
    raise NoTarget(f"{kind}: no such process")


def redis_socket(service: Service) -> Path:
    """Where its Redis listens, as it said when it came up."""
    found = re.search(r"^Redis\s+unix://(\S+)", service.said(), re.MULTILINE)
    assert found is not None, service.said()
    return Path(found[1])


def _chosen(found: list[Trainer], roll: float) -> Trainer:
    if not found:
        raise NoTarget("nothing trains")
    return found[int(roll * len(found))]


def _named(trainer: Trainer) -> str:
    return f"{trainer.job_id}/{trainer.block.name}/{trainer.block.attempt} at step {trainer.block.step}"


# --- what


def kill(pid: int, born: float | None = None) -> bool:
    """SIGKILL; whether the process was there and is gone."""
    return _ended_by(signal.SIGKILL, pid, born, GONE_SECONDS)


def terminate(pid: int, born: float | None = None) -> bool:
    """SIGTERM; whether the process was there and has ended of it."""
    return _ended_by(signal.SIGTERM, pid, born, SAVED_SECONDS)


def _ended_by(number: signal.Signals, pid: int, born: float | None, seconds: float) -> bool:
    before = birth(pid)
    if before is None or (born is not None and before != born):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return _within(seconds, lambda: birth(pid) != before)


@contextlib.contextmanager
def stopped(pid: int) -> Generator[bool]:
    """SIGSTOP inside, SIGCONT at the end; whether the process did stop."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        yield False
        return
    try:
        yield _within(GONE_SECONDS, lambda: _status(pid) == psutil.STATUS_STOPPED)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def stall_redis(socket: Path, seconds: float) -> float:
    """CLIENT PAUSE: connections stay, and nobody is answered. Returns how long a PING has waited. Raises NoTarget."""
    client = redis.Redis(unix_socket_path=str(socket), socket_timeout=seconds + 30.0)
    try:
        client.execute_command("CLIENT", "PAUSE", int(seconds * 1000), "ALL")  # pyright: ignore[reportUnknownMemberType]
        began = time.monotonic()
        client.ping()  # pyright: ignore[reportUnknownMemberType]
    except redis.RedisError as error:
        raise NoTarget(f"Redis does not answer: {error}") from error
    finally:
        client.close()
    return time.monotonic() - began


@contextlib.contextmanager
def full_disk(directory: Path) -> Generator[int]:
    """Fills the file system of `directory`, which should be a small one of its own; yields the bytes left."""
    ballast = directory / BALLAST
    try:
        yield _fill(ballast)
    finally:
        ballast.unlink(missing_ok=True)


def _fill(ballast: Path) -> int:
    piece = b"\0" * (1 << 20)
    with ballast.open("ab", buffering=0) as file:
        while piece:
            try:
                file.write(piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                piece = piece[: len(piece) // 2]
    state = os.statvfs(ballast)
    return state.f_bavail * state.f_frsize


def _damage_newest(ground: Ground, roll: float) -> Done | None:
    """Changes the newest checkpoint of a stopped trainer, then kills the trainer, so that its next attempt reads it."""
    saved = [found for found in trainers(ground.service) if found.block.last_checkpoint is not None]
    found = _chosen(saved, roll)
    with stopped(found.pid) as did:
        if not did:
            return None
        now = next((one for one in trainers(ground.service) if (one.pid, one.born) == (found.pid, found.born)), None)
        if now is None or now.block.last_checkpoint is None:
            raise NoTarget("the trainer has ended meanwhile")
        path = now.block.last_checkpoint.path
        what = damage(ground.artefacts / path, roll)
        return Done(f"{_named(now)}: {what}", damaged=path) if kill(found.pid, found.born) else None


def damage(checkpoint: Path, roll: float) -> str:
    """Flips a bit of a tensor file, or cuts off its end; says which."""
    files = sorted(checkpoint.glob("*.safetensors"))
    file = files[int(roll * len(files))]
    content = bytearray(file.read_bytes())
    if int(roll * 100) % 3 == 0:
        os.truncate(file, len(content) - 8)
        return f"{checkpoint.name}/{file.name} cut short"
    place = int(roll * len(content))
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(bytes([content[place] ^ 1]))
    return f"{checkpoint.name}/{file.name} byte {place} flipped"


def _status(pid: int) -> str | None:
    try:
        return psutil.Process(pid).status()
    except psutil.Error:
        return None


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def each_kind(*, disk: bool) -> Iterator[Kind]:
    """The kinds that can be injected here: filling a disk needs one that may be filled."""
    return (kind for kind in Kind if disk or kind is not Kind.DISK_FULL)

"""Which fault when: drawn from a seed, so that a soak can be repeated; and the thread that brings them about."""

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from tests.chaos.faults import Ground, Kind, NoTarget, inflict

GAP_SECONDS = 5.0, 20.0  # between two faults, drawn evenly
PATIENCE_SECONDS = 30.0  # with a target that is not there: another fault may just have taken it
LOOK_SECONDS = 0.25

# How many of a kind lie in the deck that is shuffled and dealt out before the next one.
DECK = {
    Kind.TRAINER_KILLED: 3,
    Kind.TRAINER_STOPPED: 2,
    Kind.TRAINER_TERMINATED: 2,
    Kind.CHECKPOINT_DAMAGED: 2,
    Kind.API_KILLED: 1,
    Kind.RECONCILER_KILLED: 1,
    Kind.RECONCILER_STOPPED: 1,
    Kind.REDIS_KILLED: 1,
    Kind.REDIS_STOPPED: 1,
    Kind.REDIS_STALLED: 1,
    Kind.RAYLET_KILLED: 1,
    Kind.DISK_FULL: 1,
}

# Seconds that a fault lasts: a trainer's are on both sides of its lease and of the reconciler's patience.
LASTS = {
    Kind.TRAINER_STOPPED: (3.0, 28.0),
    Kind.RECONCILER_STOPPED: (3.0, 14.0),
    Kind.REDIS_STOPPED: (2.0, 9.0),
    Kind.REDIS_STALLED: (1.0, 6.0),
    Kind.DISK_FULL: (3.0, 10.0),
}


@dataclass(frozen=True)
class Drawn:
    """A fault to come: `at` seconds after the first, of those that last for `seconds`."""

    kind: Kind
    at: float
    seconds: float
    roll: float  # in [0, 1): which of the targets


@dataclass(frozen=True)
class Fault:
    """What became of it. Without evidence it does not count."""

    kind: Kind
    at: float  # seconds after the soak's first
    evidence: str | None
    why_not: str | None = None
    damaged: str | None = None  # the checkpoint, relative to the artefact root


def draw(seed: int, kinds: Iterable[Kind]) -> Iterator[Drawn]:
    """The same for the same seed and kinds, whatever happens meanwhile; without end."""
    source, known = random.Random(seed), [kind for kind in DECK if kind in set(kinds)]
    at = 0.0
    while known:
        deck = [kind for kind in known for _ in range(DECK[kind])]
        source.shuffle(deck)
        for kind in deck:
            at += source.uniform(*GAP_SECONDS)
            yield Drawn(kind, at, source.uniform(*LASTS.get(kind, (0.0, 0.0))), source.random())


def within(drawn: Iterable[Drawn], seconds: float) -> list[Drawn]:
    """Those before the time is over."""
    found: list[Drawn] = []
    for one in drawn:
        if one.at > seconds:
            break
        found.append(one)
    return found


def inject(
    drawn: Sequence[Drawn], ground: Ground, *, ending: threading.Event, say: Callable[[str], None] = print
) -> list[Fault]:
    """Injects each at its time, beside those that still last; returns when the last one is over.

    `ending` is for whoever cannot wait: what lasts is ended, and nothing more is begun.
    """
    began = time.monotonic()

    def bring_about(one: Drawn) -> Fault:
        fault = _patiently(one, ground, ending, began)
        say(f"{fault.at:6.0f} s  {fault.kind}: {fault.evidence or f'did not happen ({fault.why_not})'}")
        return fault

    with ThreadPoolExecutor(max_workers=16) as pool:
        begun: list[Future[Fault]] = []
        for one in drawn:
            if ending.wait(max(0.0, began + one.at - time.monotonic())):
                break
            begun.append(pool.submit(bring_about, one))
        return [future.result() for future in begun]


def _patiently(one: Drawn, ground: Ground, ending: threading.Event, began: float) -> Fault:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            done = inflict(one.kind, ground, one.roll, one.seconds, ending.wait)
        except NoTarget as missing:
            if time.monotonic() < deadline and not ending.wait(LOOK_SECONDS):
                continue
            return Fault(one.kind, time.monotonic() - began, None, str(missing))
        if done is None:
            return Fault(one.kind, time.monotonic() - began, None, "the process was gone before, or outlived it")
        return Fault(one.kind, time.monotonic() - began, done.evidence, damaged=done.damaged)

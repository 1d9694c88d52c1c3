"""Pulse: what a working attempt says of itself once a second, and how it learns whether it may go on."""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TypeVar

from dbserve.contracts.status import HELD, NO_TIME, STOPPING, Run, Task
from dbserve.errors import JobNotFound, StoreUnavailable
from dbserve.store import JobStore
from workers.account import Account
from workers.lease import Lease
from workers.logs import LogBuffer

T = TypeVar("T")

HEARTBEAT_SECONDS = 1.0
ABANDON_SECONDS = 600.0  # how long an attempt waits for a store that is away
LOOK_SECONDS = 1.0  # how often one that waits looks at its lease

log = logging.getLogger("dbserve.worker")


class Order(StrEnum):
    """What an attempt is to do at a step boundary."""

    GO = "go"
    SAVE_AND_STOP = "save_and_stop"  # a last checkpoint, then Interrupted
    SAVE_AND_MOVE = "save_and_move"  # the same, as one that is preempted: another attempt goes on elsewhere
    GIVEN_UP = "given_up"  # it counts no more: nothing it wrote would be taken


class Interrupted(Exception):
    """The training has saved a last checkpoint, as it was ordered to, and stopped. Says at which step."""


def order_of(run: Run, task: Task) -> Order:
    """What the task as the store has it means for the attempt `run`."""
    if task.run != run:
        return Order.GIVEN_UP
    if task.state in STOPPING:
        return Order.GIVEN_UP if task.stop_by == NO_TIME else Order.SAVE_AND_STOP
    if task.state in HELD:
        return Order.GO if task.stop_by is None else Order.SAVE_AND_MOVE
    return Order.GIVEN_UP


class Pulse:
    """Beats in the event loop while the training thread calls `note` and `order`.

    The heartbeat never waits for the training. The training waits for the heartbeat where the lease is over: what the
    store has not confirmed for so long may have been given to another.
    """

    def __init__(self, store: JobStore, run: Run, *, account: Account, lease: Lease, logs: LogBuffer) -> None:
        self.beats = 0  # heartbeats tried
        self.preempted_by: str | None = None  # why the attempt is to save, end and go on elsewhere
        self.account = account
        self._store = store
        self._run = run
        self._lease = lease
        self._logs = logs
        self._answer = Order.GO
        self._changed = threading.Condition()  # guards the answer, the lease and `preempted_by`
        self._stopping = asyncio.Event()
        self._telling = asyncio.Lock()

    def order(self) -> Order:
        """What to do at this step boundary. Called by the training thread.

        Returns only under a lease that holds, or when the attempt is over: waits for the store where it must.
        """
        with self._changed:
            waiting_since: float | None = None
            while self._answer is not Order.GIVEN_UP and self._lease.over:
                if waiting_since is None:
                    waiting_since = self._lease.now()
                    log.warning("paused: the store has not been heard of for %.0f s", self._lease.silence)
                if self._lease.now() - waiting_since >= ABANDON_SECONDS:
                    log.error("given up: the store has been away for %.0f s", ABANDON_SECONDS)
                    self._answer = Order.GIVEN_UP
                    break
                self._changed.wait(LOOK_SECONDS)
            if self._answer is Order.GIVEN_UP:
                return Order.GIVEN_UP
            if waiting_since is not None:
                log.info("the store was heard of again after %.0f s", self._lease.now() - waiting_since)
            return Order.SAVE_AND_STOP if self.preempted else self._answer

    @property
    def preempted(self) -> bool:
        """A machine is wanted, or about to go."""
        return self.preempted_by is not None

    def preempt(self, by: str = "SIGTERM") -> None:
        """Saves and stops at the next step boundary; the first reason stands. Called in the event loop."""
        with self._changed:
            self.preempted_by = self.preempted_by or by
        self._stopping.set()

    async def cut_short(self) -> None:
        """Returns when the attempt is to end and no training thread will see to it: before its first step, or where
        nothing is trained."""
        await self._stopping.wait()
        if self.account.began:
            await asyncio.Event().wait()

    async def beat(self) -> None:
        """Beats until cancelled, whatever happens: the lease says how long that may be in vain."""
        while True:
            self.beats += 1
            try:
                await self.tell()
                await self._logs.ship(self._store, self._run)
                await self._store.counters.tell_refusals()
            except StoreUnavailable:
                pass
            except Exception:
                log.exception("a heartbeat failed")
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def tell(self) -> None:
        """One heartbeat. The answer says whether this attempt still counts. Raises StoreUnavailable.

        One at a time: an older word that came after a newer one would take back what was counted.
        """
        async with self._telling:
            await self._tell()

    async def _tell(self) -> None:
        sent_at = self._lease.now()
        try:
            order = order_of(self._run, await self._store.record_progress(self.account.progress()))
        except JobNotFound:
            order = Order.GIVEN_UP
        with self._changed:
            self._lease.renew(sent_at)
            if order is Order.SAVE_AND_MOVE:
                self.preempted_by = self.preempted_by or "its node is about to go"
            if self._answer is not Order.GIVEN_UP:
                self._answer = order
            self._changed.notify_all()
        if order is not Order.GO:
            self._stopping.set()
        if order is not Order.GIVEN_UP:
            await self._ship_points()

    async def _ship_points(self) -> None:
        """Sends what the account has gathered of the training's course. Raises StoreUnavailable."""
        points = self.account.take_points()
        if not points:
            return
        try:
            await self._store.courses.append(self._run, points)
        except BaseException:  # also when cancelled on the way: a point told twice is one
            self.account.put_back(points)
            raise


async def patiently(write: Callable[[], Awaitable[T]]) -> T:
    """Repeats a write while the store is away, as long as it may come back. Raises StoreUnavailable."""
    deadline = time.monotonic() + ABANDON_SECONDS
    while True:
        try:
            return await write()
        except StoreUnavailable:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(HEARTBEAT_SECONDS)

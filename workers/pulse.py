"""Pulse: what a working attempt says of itself once a second, and how it learns that it no longer counts."""

import asyncio
import contextlib
import logging
import os
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psutil

from dbserve.contracts.plan import TaskPlan
from dbserve.contracts.status import MemoryBytes, Progress, Run, TaskState
from dbserve.errors import JobNotFound, StoreUnavailable
from dbserve.store import JobStore
from workers.trainer import StepReport

T = TypeVar("T")

HEARTBEAT_SECONDS = 1.0
LEASE_SECONDS = 60.0  # how long an attempt that cannot reach the store still hopes to count
RATE_SECONDS = 5.0  # samples_per_second is taken over at least this long

log = logging.getLogger("dbserve.worker")


class LogBuffer(logging.Handler):
    """Keeps what the worker says until the next heartbeat ships it to the store."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: list[tuple[float, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # a line whose arguments do not fit it must not end the training
            message = str(record.msg)
        if record.exc_info:
            message += "\n" + "".join(traceback.format_exception(*record.exc_info))
        self._lines.append((record.created, record.levelname.lower(), message))

    async def ship(self, store: JobStore, run: Run) -> None:
        """Sends what has gathered; keeps it when the store is away."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            await store.history.append_logs(run, lines)
        except BaseException:  # also when cancelled on the way: rather twice than never
            with self.lock or contextlib.nullcontext():
                self._lines = lines + self._lines
            raise


class Pulse:
    """Beats in the event loop while the training thread calls `note`; neither waits for the other."""

    def __init__(self, store: JobStore, run: Run, task: TaskPlan, batch_size: int, logs: LogBuffer) -> None:
        self.given_up = threading.Event()  # set: this attempt counts no more; the training stops at its next step
        self._store = store
        self._run = run
        self._task = task
        self._batch_size = batch_size
        self._logs = logs
        self._parent = os.getppid()
        self._report: StepReport | None = None
        self._memory = MemoryBytes()
        self._data_wait = 0.0
        self._last_step_at: float | None = None
        self._rate: float | None = None
        self._mark: tuple[float, int] | None = None  # (monotonic seconds, step) the rate is counted from
        self._process = psutil.Process()

    def note(self, report: StepReport) -> None:
        """Takes in one step. Called by the training thread."""
        now = time.monotonic()
        self._report = report
        self._last_step_at = time.time()
        self._data_wait += report.data_wait_seconds
        if report.memory is not None:
            self._memory = report.memory
        if self._mark is None:  # the first step also warms up: it is not counted
            self._mark = (now, report.step)
            return
        since, step = self._mark
        self._rate = (report.step - step) * self._batch_size / max(now - since, 1e-9)
        if now - since >= RATE_SECONDS:
            self._mark = (now, report.step)

    async def beat(self) -> None:
        """Beats until cancelled. Ends the process when its raylet is gone: nobody else would ever stop it."""
        last_seen = time.monotonic()
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if os.getppid() != self._parent:
                os._exit(1)
            try:
                await self.tell()
                await self._logs.ship(self._store, self._run)
                last_seen = time.monotonic()
            except StoreUnavailable as away:
                if time.monotonic() - last_seen > LEASE_SECONDS:
                    log.warning("stopping: the store has been away for %.0f s (%s)", LEASE_SECONDS, away)
                    self.given_up.set()
            except JobNotFound:
                self.given_up.set()

    async def tell(self) -> None:
        """One heartbeat. The answer says whether this attempt still counts."""
        current = await self._store.record_progress(self._progress())
        if current.run != self._run or current.state is not TaskState.RUNNING:
            self.given_up.set()

    def _progress(self) -> Progress:
        report = self._report
        return Progress(
            run=self._run,
            step=report.step if report else 0,
            total=self._task.steps,
            heartbeat_at=time.time(),
            last_step_at=self._last_step_at,
            loss=report.loss if report else None,
            grad_norm=report.grad_norm if report else None,
            learning_rate=report.learning_rate if report else None,
            samples_total=report.step * self._batch_size if report else 0,
            samples_per_second=self._rate,
            data_wait_seconds_total=self._data_wait,
            memory=self._memory.model_copy(update={"host": self._process.memory_info().rss}),
        )


async def patiently(write: Callable[[], Awaitable[T]]) -> T:
    """Repeats a write while the store is away, as long as the attempt may hope to count. Raises StoreUnavailable."""
    deadline = time.monotonic() + LEASE_SECONDS
    while True:
        with contextlib.suppress(StoreUnavailable):
            return await write()
        if time.monotonic() > deadline:
            return await write()
        await asyncio.sleep(HEARTBEAT_SECONDS)

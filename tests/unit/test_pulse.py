"""When a worker may take another step: leases by a clock the test turns, orders by what a fake store answers."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from dbserve.contracts.plan import TaskKind
from dbserve.contracts.status import NO_TIME, Progress, Run, Task, TaskState
from dbserve.contracts.work import Point
from dbserve.errors import JobNotFound, StoreUnavailable
from dbserve.store import JobStore
from workers import pulse as pulse_module
from workers.account import Account
from workers.lease import MARGIN_SECONDS, Lease
from workers.logs import LogBuffer
from workers.pulse import ABANDON_SECONDS, Order, Pulse, order_of, patiently
from workers.trainer import StepReport

RUN = Run(job_id="j", task="block-0", attempt=1)
LEASE_SECONDS = 15.0


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeStore:
    """Answers heartbeats with a task, or raises; `meanwhile` happens between asking and answering."""

    def __init__(self) -> None:
        self.answer: Task | Exception = a_task(TaskState.RUNNING)
        self.meanwhile: Callable[[], None] = lambda: None
        self.told: list[Progress] = []
        self.points: list[Point] = []
        self.courses = self
        self.counters = self

    async def append(self, run: Run, points: Sequence[Point]) -> None:
        self.points += points

    async def tell_refusals(self) -> None:
        """This store refuses nothing."""

    async def record_progress(self, progress: Progress) -> Task:
        self.told.append(progress)
        self.meanwhile()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def a_task(state: TaskState, *, attempt: int = 1) -> Task:
    return Task(run=RUN.model_copy(update={"attempt": attempt}), kind=TaskKind.BLOCK, state=state)


def a_report(step: int) -> StepReport:
    def no_capture() -> Any:
        raise AssertionError

    return StepReport(step, 100, 0.5, 1.0, 1e-3, step * 8, 0.1, 0.0, None, no_capture)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def pulse(clock: Clock, store: FakeStore) -> Pulse:
    lease = Lease(LEASE_SECONDS, clock=clock)
    account = Account(RUN, steps=100, batch_size=8)
    return Pulse(cast(JobStore, store), RUN, account=account, lease=lease, logs=LogBuffer())


class Asking(threading.Thread):
    """The training thread at a step boundary."""

    def __init__(self, pulse: Pulse) -> None:
        super().__init__(daemon=True)
        self._pulse = pulse
        self.answer: Order | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._pulse.order()

    def answered(self) -> Order | None:
        self.join(20.0)
        return self.answer


async def paused(caplog: pytest.LogCaptureFixture, times: int = 1) -> None:
    deadline = time.monotonic() + 20.0
    while caplog.text.count("paused: the store") < times:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("state", "order"),
    [
        (TaskState.LAUNCHED, Order.GO),
        (TaskState.RUNNING, Order.GO),
        (TaskState.PAUSING, Order.SAVE_AND_STOP),
        (TaskState.CANCELLING, Order.SAVE_AND_STOP),
        (TaskState.PENDING, Order.GIVEN_UP),
        (TaskState.PAUSED, Order.GIVEN_UP),
        (TaskState.SUCCEEDED, Order.GIVEN_UP),
        (TaskState.FAILED, Order.GIVEN_UP),
        (TaskState.CANCELLED, Order.GIVEN_UP),
    ],
)
def test_what_the_task_has_become_says_what_its_attempt_is_to_do(state: TaskState, order: Order) -> None:
    assert order_of(RUN, a_task(state)) is order
    assert order_of(RUN, a_task(state, attempt=2)) is Order.GIVEN_UP


def test_one_that_is_left_no_time_saves_nothing() -> None:
    cancelling = a_task(TaskState.CANCELLING)
    assert order_of(RUN, cancelling.model_copy(update={"stop_by": 0.5})) is Order.SAVE_AND_STOP
    assert order_of(RUN, cancelling.model_copy(update={"stop_by": NO_TIME})) is Order.GIVEN_UP


async def test_a_training_goes_on_while_the_store_is_away_until_its_lease_is_over(
    pulse: Pulse, store: FakeStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await pulse.tell()
    store.answer = StoreUnavailable("away")
    clock.now += LEASE_SECONDS - MARGIN_SECONDS - 0.1
    with pytest.raises(StoreUnavailable):
        await pulse.tell()
    assert pulse.order() is Order.GO
    clock.now += 0.2
    asking = Asking(pulse)
    await paused(caplog)
    assert asking.answer is None
    store.answer = a_task(TaskState.RUNNING)
    await pulse.tell()
    assert asking.answered() is Order.GO
    assert "the store has not been heard of for 14 s" in caplog.text


async def test_a_training_that_paused_and_was_given_up_meanwhile_takes_no_further_step(
    pulse: Pulse, store: FakeStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    await pulse.tell()
    clock.now += LEASE_SECONDS
    asking = Asking(pulse)
    await paused(caplog)
    store.answer = a_task(TaskState.RUNNING, attempt=2)
    await pulse.tell()
    assert asking.answered() is Order.GIVEN_UP


async def test_an_answer_to_what_was_sent_before_the_process_was_stopped_does_not_renew_the_lease(
    pulse: Pulse, store: FakeStore, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def stopped_for_a_minute() -> None:
        clock.now += 60.0

    store.meanwhile = stopped_for_a_minute
    await pulse.tell()
    asking = Asking(pulse)
    await paused(caplog)
    assert asking.answer is None, "the store must be asked again"
    store.meanwhile = lambda: None
    await pulse.tell()
    assert asking.answered() is Order.GO


async def test_a_training_that_has_waited_for_too_long_ends(
    pulse: Pulse, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse_module, "LOOK_SECONDS", 0.01)
    await pulse.tell()
    clock.now += 10 * ABANDON_SECONDS  # stopped for so long: it has not waited yet, and asks first
    asking = Asking(pulse)
    await paused(caplog)
    assert asking.answer is None
    clock.now += ABANDON_SECONDS
    assert asking.answered() is Order.GIVEN_UP
    await pulse.tell()
    assert pulse.order() is Order.GIVEN_UP, "it does not come back"


async def test_sigterm_saves_and_stops_but_never_an_attempt_that_was_given_up(pulse: Pulse, store: FakeStore) -> None:
    await pulse.tell()
    pulse.preempt()
    assert (pulse.order(), pulse.preempted) == (Order.SAVE_AND_STOP, True)
    store.answer = JobNotFound("j")
    await pulse.tell()
    assert pulse.order() is Order.GIVEN_UP


async def test_a_job_that_was_resumed_under_another_attempt_does_not_bring_this_one_back(
    pulse: Pulse, store: FakeStore
) -> None:
    for answer in (a_task(TaskState.PAUSING), a_task(TaskState.PENDING, attempt=2), a_task(TaskState.RUNNING)):
        store.answer = answer
        await pulse.tell()
    assert pulse.order() is Order.GIVEN_UP


async def test_an_attempt_is_cut_short_only_where_no_training_thread_will_ask_for_orders(pulse: Pulse) -> None:
    pulse.preempt()
    await asyncio.wait_for(pulse.cut_short(), 20.0)
    pulse.account.note(a_report(1))
    waiting = asyncio.create_task(pulse.cut_short())
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert not done
    waiting.cancel()


async def test_a_heartbeat_tells_the_step_and_the_trials_of_a_scan(pulse: Pulse, store: FakeStore) -> None:
    pulse.account.trial_done()
    pulse.account.trial_done()
    await pulse.tell()
    pulse.account.note(a_report(7))
    await pulse.tell()
    assert [(told.trials, told.step, told.samples_total) for told in store.told] == [(2, 0, 0), (2, 7, 56)]


async def test_the_heart_beats_on_whatever_a_heartbeat_meets(
    pulse: Pulse, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse_module, "HEARTBEAT_SECONDS", 0.001)
    heart = asyncio.create_task(pulse.beat())
    try:
        for answer in (StoreUnavailable("away"), ValueError("a newer record"), a_task(TaskState.PAUSING)):
            store.answer = answer
            before = pulse.beats
            deadline = time.monotonic() + 20.0
            while pulse.beats < before + 3:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)
    finally:
        heart.cancel()
    assert pulse.order() is Order.SAVE_AND_STOP


async def test_a_write_waits_for_a_store_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "HEARTBEAT_SECONDS", 0.001)
    tries: list[int] = []

    async def write() -> str:
        tries.append(1)
        if len(tries) < 100:
            raise StoreUnavailable("away")
        return "written"

    assert await patiently(write) == "written"


async def test_a_write_gives_up_on_a_store_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse_module, "HEARTBEAT_SECONDS", 0.001)
    monkeypatch.setattr(pulse_module, "ABANDON_SECONDS", 0.01)

    async def write() -> None:
        raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        await patiently(write)


def test_who_is_to_move_saves_and_leaves_as_one_that_is_preempted() -> None:
    moving = a_task(TaskState.RUNNING).model_copy(update={"stop_by": 1030.0})
    assert order_of(RUN, a_task(TaskState.RUNNING)) is Order.GO
    assert order_of(RUN, moving) is Order.SAVE_AND_MOVE
    assert order_of(RUN.next(), moving) is Order.GIVEN_UP

"""The state machine, event by event, and what tasks together say of their job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbserve.contracts.job import RetrySpec
from dbserve.contracts.plan import TaskKind
from dbserve.contracts.status import (
    TERMINAL,
    Abandoned,
    CancelRequested,
    Checkpointed,
    CheckpointRef,
    Crashed,
    Finished,
    Held,
    Intent,
    JobStatus,
    Launched,
    Reason,
    Run,
    Started,
    Stopped,
    Task,
    TaskEvent,
    TaskState,
)
from dbserve.errors import IllegalTransition, StaleRun
from dbserve.lifecycle import advance, backoff_seconds, broken_need, can_start, job_reason, job_state

RUN = Run(job_id="j1", task="block-0", attempt=1)


def a_task(state: TaskState = TaskState.PENDING, **changes: object) -> Task:
    return Task(run=RUN, kind=TaskKind.BLOCK, max_attempts=3).model_copy(update={"state": state, **changes})


def a_checkpoint(step: int, attempt: int = 1) -> CheckpointRef:
    return CheckpointRef(step=step, path=f"p/{attempt}/{step}", sha256="0" * 64, attempt=attempt, at=1.0)


LAUNCHED = Launched(run=RUN, at=1.0, cluster="c1")
STARTED = Started(run=RUN, at=2.0, node="n", pid=7)
CHECKPOINTED = Checkpointed(run=RUN, at=3.0, checkpoint=a_checkpoint(10), keep_last=2)
FINISHED = Finished(run=RUN, at=4.0)
CRASHED = Crashed(run=RUN, at=4.0, reason=Reason.WORKER_LOST, message="gone", retry_at=9.0)
CANCEL = CancelRequested(run=RUN, at=4.0)
STOPPED = Stopped(run=RUN, at=5.0)
HELD = Held(run=RUN, at=1.0, reason=Reason.UNSCHEDULABLE, message="no GPU")
ABANDONED = Abandoned(run=RUN, at=5.0, message="block-1 did not succeed")
EVENTS: tuple[TaskEvent, ...] = (
    LAUNCHED, STARTED, CHECKPOINTED, FINISHED, CRASHED, CANCEL, STOPPED, HELD, ABANDONED,
)  # fmt: skip

P, L, R, C = TaskState.PENDING, TaskState.LAUNCHED, TaskState.RUNNING, TaskState.CANCELLING
S, F, X = TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED
REFUSED = None

# Rows: the state before; columns: EVENTS in order. Every pair is here.
TABLE: dict[TaskState, tuple[TaskState | None, ...]] = {
    P: (L, REFUSED, REFUSED, REFUSED, REFUSED, X, REFUSED, P, X),
    L: (L, R, REFUSED, REFUSED, P, C, REFUSED, REFUSED, REFUSED),
    R: (REFUSED, R, R, S, P, C, REFUSED, REFUSED, REFUSED),
    C: (REFUSED, REFUSED, C, REFUSED, REFUSED, C, X, REFUSED, REFUSED),
    S: (REFUSED, REFUSED, REFUSED, S, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED),
    F: (REFUSED, REFUSED, REFUSED, REFUSED, F, REFUSED, REFUSED, REFUSED, REFUSED),
    X: (REFUSED, REFUSED, REFUSED, REFUSED, REFUSED, X, X, REFUSED, X),
}


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [(state, event, after) for state, row in TABLE.items() for event, after in zip(EVENTS, row, strict=True)],
    ids=lambda value: getattr(value, "kind", value),
)
def test_every_event_in_every_state_leads_where_the_table_says(
    state: TaskState, event: TaskEvent, expected: TaskState | None
) -> None:
    if expected is REFUSED:
        with pytest.raises(IllegalTransition):
            advance(a_task(state), event)
    else:
        assert advance(a_task(state), event).state is expected


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
@pytest.mark.parametrize("state", list(TaskState))
def test_a_worker_that_was_given_up_can_change_nothing(state: TaskState, event: TaskEvent) -> None:
    task = a_task(state, run=RUN.next())
    with pytest.raises(StaleRun):
        advance(task, event)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
@pytest.mark.parametrize("state", list(TaskState))
def test_an_event_that_is_written_twice_counts_once(state: TaskState, event: TaskEvent) -> None:
    try:
        once = advance(a_task(state), event)
    except IllegalTransition:
        return
    if once.run != event.run:  # a crash gives the attempt up
        with pytest.raises(StaleRun):
            advance(once, event)
    else:
        assert advance(once, event) == once


def test_a_crash_within_the_budget_waits_and_counts_up() -> None:
    after = advance(a_task(R, checkpoints=(a_checkpoint(10),)), CRASHED)
    assert (after.state, after.run.attempt, after.not_before) == (P, 2, 9.0)
    assert after.restarts == {Reason.WORKER_LOST: 1}
    assert after.checkpoints == (a_checkpoint(10),), "the next attempt goes on from the last checkpoint"
    assert (after.node, after.pid) == (None, None)


def test_the_last_allowed_crash_fails_the_task_with_its_reason() -> None:
    after = advance(a_task(R, restarts={Reason.WORKER_LOST: 2}), CRASHED)
    assert (after.state, after.reason, after.message) == (F, Reason.WORKER_LOST, "gone")


@pytest.mark.parametrize("reason", [Reason.NONFINITE_LOSS, Reason.DATA_ERROR, Reason.CONFIG_INVALID])
def test_what_another_attempt_cannot_mend_fails_at_once(reason: Reason) -> None:
    assert advance(a_task(R), CRASHED.model_copy(update={"reason": reason})).state is F


def test_a_preemption_costs_nothing_of_the_budget() -> None:
    task = a_task(R)
    for _ in range(10):
        preempted = Crashed(run=task.run, at=1.0, reason=Reason.PREEMPTED, message="restart")
        task = advance(task, preempted)
        assert task.state is P
        task = advance(task, Launched(run=task.run, at=1.0, cluster="c2"))
    assert task.run.attempt == 11


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 5))
def test_the_newest_checkpoints_by_step_are_kept(steps: list[int], keep: int) -> None:
    task = a_task(R)
    for step in steps:
        event = Checkpointed(run=RUN, at=1.0, checkpoint=a_checkpoint(step), keep_last=keep)
        highest_before = task.checkpoints[-1].step if task.checkpoints else -1
        task = advance(task, event)
        assert task.checkpoints[-1].step >= highest_before, "progress never falls below a committed checkpoint"
    kept = [ref.step for ref in task.checkpoints]
    assert kept == sorted(set(kept))
    assert len(kept) <= keep


def test_a_damaged_checkpoint_does_not_outlive_those_of_the_attempt_that_passed_it_over() -> None:
    damaged = a_checkpoint(20)
    task = a_task(R, run=RUN.next(), checkpoints=(damaged,))
    new = damaged.model_copy(update={"step": 15, "attempt": 2})
    after = advance(task, Checkpointed(run=task.run, at=1.0, checkpoint=new, keep_last=1))
    assert after.checkpoints == (new,)


@given(st.lists(st.sampled_from(EVENTS), max_size=30))
def test_no_sequence_of_events_leaves_a_terminal_state(events: list[TaskEvent]) -> None:
    task = a_task()
    for event in events:
        before = task
        try:
            task = advance(task, event.model_copy(update={"run": task.run}))
        except IllegalTransition:
            continue
        if before.state in TERMINAL:
            assert task.state is before.state


def job_of(*states: TaskState | tuple[TaskState, dict[str, object]]) -> list[Task]:
    kinds = [TaskKind.BLOCK, TaskKind.BLOCK, TaskKind.ASSEMBLY, TaskKind.EVALUATION]
    tasks: list[Task] = []
    for kind, given_state in zip(kinds, states, strict=True):
        state, changes = given_state if isinstance(given_state, tuple) else (given_state, {})
        tasks.append(a_task(state, kind=kind, **changes))
    return tasks


RETRIED = (P, {"run": RUN.next(), "started_at": 1.0})


@pytest.mark.parametrize(
    ("tasks", "intent", "expected"),
    [
        (job_of(P, P, P, P), Intent.RUN, JobStatus.QUEUED),
        (job_of(L, P, P, P), Intent.RUN, JobStatus.RUNNING),
        (job_of(R, R, P, P), Intent.RUN, JobStatus.RUNNING),
        (job_of((S, {"started_at": 1.0}), P, P, P), Intent.RUN, JobStatus.RUNNING),
        (job_of(RETRIED, R, P, P), Intent.RUN, JobStatus.RECOVERING),
        (job_of(S, S, P, P), Intent.RUN, JobStatus.ASSEMBLING),
        (job_of(S, S, R, P), Intent.RUN, JobStatus.ASSEMBLING),
        (job_of(S, S, S, P), Intent.RUN, JobStatus.EVALUATING),
        (job_of(S, S, S, S), Intent.RUN, JobStatus.SUCCEEDED),
        (job_of(S, S, S, S), Intent.CANCEL, JobStatus.SUCCEEDED),
        (job_of(F, R, P, P), Intent.RUN, JobStatus.RUNNING),
        (job_of(F, S, X, X), Intent.RUN, JobStatus.FAILED),
        (job_of(C, S, X, X), Intent.CANCEL, JobStatus.CANCELLING),
        (job_of(X, S, X, X), Intent.CANCEL, JobStatus.CANCELLED),
        (job_of(F, X, X, X), Intent.CANCEL, JobStatus.FAILED),
    ],
)
def test_a_jobs_state_is_what_its_tasks_say(tasks: list[Task], intent: Intent, expected: JobStatus) -> None:
    assert job_state(tasks, intent) is expected


def test_the_first_failure_is_the_jobs_reason() -> None:
    tasks = job_of((F, {"reason": Reason.DATA_ERROR, "message": "bad shard"}), S, X, X)
    assert job_reason(tasks, Intent.RUN) == (Reason.DATA_ERROR, "block-0: bad shard")
    assert job_reason(job_of(S, S, S, S), Intent.CANCEL) == (None, None)


def test_a_task_starts_when_its_needs_have_succeeded_and_its_backoff_is_over() -> None:
    need = a_task(R)
    task = a_task(run=Run(job_id="j1", task="assembly", attempt=1), needs=("block-0",), not_before=5.0)
    tasks = {"block-0": need, "assembly": task}
    assert not can_start(task, tasks, now=9.0)
    tasks["block-0"] = a_task(S)
    assert not can_start(task, tasks, now=4.9)
    assert can_start(task, tasks, now=5.0)
    tasks["block-0"] = a_task(F)
    assert broken_need(task, tasks) == "block-0"


def test_a_task_waits_for_the_end_of_what_it_can_do_without() -> None:
    baseline = a_task(R, kind=TaskKind.END_TO_END)
    task = a_task(run=Run(job_id="j1", task="evaluation", attempt=1), after=("end_to_end",))
    assert not can_start(task, {"end_to_end": baseline}, now=9.0)
    assert can_start(task, {"end_to_end": a_task(F, kind=TaskKind.END_TO_END)}, now=9.0)


def test_a_baseline_that_failed_does_not_fail_its_job() -> None:
    failed: dict[str, object] = {"reason": Reason.GPU_OOM, "message": "too big", "kind": TaskKind.END_TO_END}
    tasks = [*job_of(S, S, S, S), a_task(F, **failed)]
    assert job_state(tasks, Intent.RUN) is JobStatus.SUCCEEDED
    assert job_reason(tasks, Intent.RUN) == (None, None)
    assert job_state([*job_of(S, S, S, P), a_task(F, **failed)], Intent.RUN) is JobStatus.EVALUATING


def test_backoff_doubles_up_to_its_maximum() -> None:
    retry = RetrySpec(backoff_seconds=1.0, max_backoff_seconds=5.0)
    assert [backoff_seconds(retry, attempt) for attempt in (1, 2, 3, 4, 1000)] == [1.0, 2.0, 4.0, 5.0, 5.0]

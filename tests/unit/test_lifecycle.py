"""The state machine, event by event, and what tasks together say of their job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbserve.contracts.job import RetrySpec
from dbserve.contracts.plan import TaskKind
from dbserve.contracts.status import (
    NO_TIME,
    TERMINAL,
    Abandoned,
    CancelRequested,
    Checkpointed,
    CheckpointFailed,
    CheckpointRef,
    Crashed,
    Finished,
    Held,
    Intent,
    JobStatus,
    Launched,
    LostCheckpoint,
    MoveRequested,
    PauseRequested,
    Reason,
    Restored,
    Resumed,
    Retried,
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
    begun = {"node": "n", "pid": 7} if state is TaskState.RUNNING else {}
    return Task(run=RUN, kind=TaskKind.BLOCK, max_attempts=3).model_copy(update={"state": state, **begun, **changes})


def a_checkpoint(step: int, attempt: int = 1) -> CheckpointRef:
    return CheckpointRef(step=step, path=f"p/{attempt}/{step}", sha256="0" * 64, attempt=attempt, at=1.0)


LAUNCHED = Launched(run=RUN, at=1.0, cluster="c1")
STARTED = Started(run=RUN, at=2.0, node="n", pid=7)
CHECKPOINTED = Checkpointed(run=RUN, at=3.0, checkpoint=a_checkpoint(10), keep_last=2)
FINISHED = Finished(run=RUN, at=4.0)
CRASHED = Crashed(run=RUN, at=4.0, reason=Reason.WORKER_LOST, message="gone", retry_after=5.0)
CANCEL = CancelRequested(run=RUN, at=4.0, stop_by=34.0)
PAUSE = PauseRequested(run=RUN, at=4.0, stop_by=34.0)
MOVE = MoveRequested(run=RUN, at=4.0, stop_by=34.0, message="host1 is about to go")
RESUMED = Resumed(run=RUN, at=4.0)
RETRIED = Retried(run=RUN, at=4.0)
RESTORED = Restored(run=RUN, at=4.0, step=5, lost=(LostCheckpoint(step=10, path="p/1/10", message="flipped"),))
UNSAVED = CheckpointFailed(run=RUN, at=4.0, step=10, message="disk full")
STOPPED = Stopped(run=RUN, at=5.0)
HELD = Held(run=RUN, at=1.0, reason=Reason.UNSCHEDULABLE, message="no GPU")
ABANDONED = Abandoned(run=RUN, at=5.0, message="block-1 did not succeed")
EVENTS: tuple[TaskEvent, ...] = (
    LAUNCHED, STARTED, RESTORED, CHECKPOINTED, UNSAVED, FINISHED, CRASHED,
    PAUSE, RESUMED, CANCEL, STOPPED, RETRIED, HELD, ABANDONED, MOVE,
)  # fmt: skip

P, L, R, C = TaskState.PENDING, TaskState.LAUNCHED, TaskState.RUNNING, TaskState.CANCELLING
S, F, X = TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED
G, D = TaskState.PAUSING, TaskState.PAUSED
no = None

# Rows: the state before; columns: EVENTS in order. Every pair is here.
TABLE: dict[TaskState, tuple[TaskState | None, ...]] = {
    # laun star rest ckpt fail fini cras paus resu canc stop retr held aban move
    P: (L,  no,  no,  no,  no,  no,  no,  D,   P,   X,  no,  P,   P,   X,  no),
    L: (L,  R,   no,  no,  no,  no,  P,   G,   no,  C,  no,  no,  no,  no, L),
    R: (no, R,   R,   R,   R,   S,   P,   G,   no,  C,  no,  no,  no,  no, R),
    G: (no, no,  G,   G,   G,   S,   D,   G,   no,  C,  D,   no,  no,  no, no),
    D: (no, no,  no,  no,  no,  no,  no,  D,   P,   X,  no,  no,  no,  X,  no),
    C: (no, no,  C,   C,   C,   no,  no,  no,  no,  C,  X,   no,  no,  no, no),
    S: (no, no,  no,  no,  no,  S,   no,  no,  no,  no, no,  no,  no,  no, no),
    F: (no, no,  no,  no,  no,  no,  F,   no,  no,  no, no,  P,   no,  no, no),
    X: (no, no,  no,  no,  no,  no,  no,  no,  no,  X,  X,   P,   no,  X,  no),
}  # fmt: skip


@pytest.mark.parametrize(
    ("state", "event", "expected"),
    [(state, event, after) for state, row in TABLE.items() for event, after in zip(EVENTS, row, strict=True)],
    ids=lambda value: getattr(value, "kind", value),
)
def test_every_event_in_every_state_leads_where_the_table_says(
    state: TaskState, event: TaskEvent, expected: TaskState | None
) -> None:
    if expected is None:
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
    if once.run != event.run:  # a crash, a pause and a retry give the attempt up
        with pytest.raises(StaleRun):
            advance(once, event)
    else:
        assert advance(once, event) == once


@pytest.mark.parametrize("other", [{"pid": 8}, {"node": "m"}, {"born": 3.5}])
def test_of_two_processes_of_one_attempt_the_first_to_begin_has_the_task(other: dict[str, object]) -> None:
    running = a_task(TaskState.RUNNING)
    assert advance(running, STARTED) == running
    with pytest.raises(StaleRun, match="another process, 7 on n"):
        advance(running, STARTED.model_copy(update=other))


def test_a_crash_within_the_budget_waits_and_counts_up() -> None:
    after = advance(a_task(R, checkpoints=(a_checkpoint(10),)), CRASHED)
    assert (after.state, after.run.attempt, after.not_before) == (P, 2, 9.0)
    assert after.restarts == {Reason.WORKER_LOST: 1}
    assert after.checkpoints == (a_checkpoint(10),), "the next attempt goes on from the last checkpoint"
    assert (after.node, after.pid) == (None, None)


def test_the_last_allowed_crash_fails_the_task_with_its_reason() -> None:
    after = advance(a_task(R, crashes=2), CRASHED)
    assert (after.state, after.reason, after.message) == (F, Reason.WORKER_LOST, "gone")


@pytest.mark.parametrize("reason", [Reason.NONFINITE_LOSS, Reason.DATA_ERROR, Reason.CONFIG_INVALID])
def test_what_another_attempt_cannot_mend_fails_at_once(reason: Reason) -> None:
    assert advance(a_task(R), CRASHED.model_copy(update={"reason": reason})).state is F


def test_crashes_and_preemptions_have_a_budget_each() -> None:
    preempted = Crashed(run=RUN, at=1.0, reason=Reason.PREEMPTED, message="SIGTERM")
    twice = a_task(R, crashes=2, preemptions=2, max_preemptions=3)
    assert advance(twice, preempted).state is P
    assert advance(twice.model_copy(update={"preemptions": 3}), preempted).state is F
    assert advance(twice.model_copy(update={"crashes": 1, "preemptions": 3}), CRASHED).state is P


def test_out_of_memory_is_met_once_by_half_a_micro_batch_and_costs_no_budget() -> None:
    full = Crashed(run=RUN, at=1.0, reason=Reason.GPU_OOM, message="CUDA out of memory")
    after = advance(a_task(R, micro_rows=64, max_attempts=1), full)
    assert (after.state, after.split, after.crashes, after.run.attempt) == (P, 2, 0, 2)
    assert after.message is not None
    assert "micro-batches of 32 rows instead of 64" in after.message
    again = full.model_copy(update={"run": after.run})
    ended = advance(after.model_copy(update={"state": R}), again)
    assert (ended.state, ended.reason) == (F, Reason.GPU_OOM)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_what_cannot_be_halved_fails_out_of_memory_at_once(rows: int) -> None:
    full = Crashed(run=RUN, at=1.0, reason=Reason.HOST_OOM, message="killed")
    assert advance(a_task(R, micro_rows=rows), full).state is F


def test_a_paused_task_gives_its_attempt_up_and_goes_on_as_the_next() -> None:
    pausing = advance(a_task(R, node="n", pid=7, cluster="c"), PAUSE)
    assert (pausing.state, pausing.stop_by) == (G, 34.0)
    paused = advance(pausing, STOPPED)
    assert (paused.state, paused.run.attempt, paused.pid, paused.stop_by) == (D, 2, None, None)
    assert (paused.crashes, paused.restarts) == (0, {}), "a pause is no crash"
    assert advance(paused, RESUMED.model_copy(update={"run": paused.run})).state is P


def test_a_cancel_that_is_asked_for_again_may_only_come_sooner() -> None:
    task = advance(a_task(R), CANCEL)
    forced = advance(task, CANCEL.model_copy(update={"stop_by": 4.0}))
    assert (task.stop_by, forced.stop_by) == (34.0, 4.0)
    assert advance(forced, CANCEL).stop_by == 4.0


def test_one_that_is_left_no_time_saves_nothing_that_counts() -> None:
    cancelling = advance(a_task(R), CANCEL)
    assert advance(cancelling, CHECKPOINTED).checkpoints != ()
    forced = advance(cancelling, CANCEL.model_copy(update={"stop_by": NO_TIME}))
    with pytest.raises(IllegalTransition):
        advance(forced, CHECKPOINTED)


@pytest.mark.parametrize("state", [P, D, R])
def test_what_a_deadline_ends_has_failed(state: TaskState) -> None:
    late = CancelRequested(
        run=RUN, at=4.0, stop_by=5.0, reason=Reason.DEADLINE_EXCEEDED, message="not done 10 s after it was submitted"
    )
    task = advance(a_task(state), late)
    if task.state is C:
        task = advance(task, STOPPED)
    assert (task.state, task.reason, task.message) == (F, Reason.DEADLINE_EXCEEDED, late.message)


def test_a_retry_renews_the_budgets_and_keeps_the_checkpoints_and_the_count_of_restarts() -> None:
    failed = a_task(
        F, crashes=3, preemptions=1, restarts={Reason.WORKER_LOST: 3}, checkpoints=(a_checkpoint(10),), split=2
    )
    task = advance(failed, RETRIED)
    assert (task.state, task.run.attempt, task.crashes, task.preemptions) == (P, 2, 0, 0)
    assert (task.restarts, task.checkpoints, task.split) == ({Reason.WORKER_LOST: 3}, (a_checkpoint(10),), 2)


def test_a_checkpoint_that_could_not_be_read_back_is_forgotten() -> None:
    task = a_task(R, checkpoints=(a_checkpoint(5), a_checkpoint(10)))
    assert advance(task, RESTORED).checkpoints == (a_checkpoint(5),)


def test_failed_saves_are_counted_until_one_succeeds() -> None:
    task = advance(advance(a_task(R), UNSAVED), UNSAVED.model_copy(update={"step": 20}))
    assert task.failed_saves == 2
    assert advance(task, CHECKPOINTED).failed_saves == 0


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


@given(st.lists(st.sampled_from([event for event in EVENTS if event is not RETRIED]), max_size=30))
def test_nothing_but_a_retry_leaves_a_terminal_state(events: list[TaskEvent]) -> None:
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


LOST = (P, {"run": RUN.next(), "started_at": 1.0, "recovering": True})


@pytest.mark.parametrize(
    ("tasks", "intent", "expected"),
    [
        (job_of(P, P, P, P), Intent.RUN, JobStatus.QUEUED),
        (job_of(L, P, P, P), Intent.RUN, JobStatus.RUNNING),
        (job_of(R, R, P, P), Intent.RUN, JobStatus.RUNNING),
        (job_of((S, {"started_at": 1.0}), P, P, P), Intent.RUN, JobStatus.RUNNING),
        (job_of(LOST, R, P, P), Intent.RUN, JobStatus.RECOVERING),
        (job_of(G, R, P, P), Intent.PAUSE, JobStatus.PAUSING),
        (job_of(D, D, D, D), Intent.PAUSE, JobStatus.PAUSED),
        (job_of(S, D, D, D), Intent.PAUSE, JobStatus.PAUSED),
        (job_of(LOST, D, D, D), Intent.PAUSE, JobStatus.PAUSING),
        (job_of(S, S, S, S), Intent.PAUSE, JobStatus.SUCCEEDED),
        (job_of((D, {"started_at": 1.0}), P, P, P), Intent.RUN, JobStatus.RUNNING),
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

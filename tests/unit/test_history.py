"""The history checker: a good history gives nothing, and each kind of violation, planted once, is found."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dbserve.artefacts import open_artefacts
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import (
    TERMINAL_JOB,
    CancelRequested,
    Checkpointed,
    CheckpointRef,
    Crashed,
    Finished,
    Intent,
    Launched,
    LoggedEvent,
    LostCheckpoint,
    Progress,
    Reason,
    Restored,
    Retried,
    Run,
    Started,
    Task,
    TaskEvent,
)
from dbserve.lifecycle import advance, job_state, new_tasks
from dbserve.store.jobs import new_record
from tests.chaos.history import History, JobHistory, Kind, Submission, Wish, Wished, check
from tests.chaos.manifests import Found, found_checkpoints
from tests.jobs import small_plan, small_spec

JOB = "j1"
SPEC = small_spec()
PLAN = small_plan(SPEC)


class Telling:
    """A job that happens, told as the store tells it."""

    def __init__(self) -> None:
        self.tasks = {task.run.task: task for task in new_tasks(JOB, PLAN, SPEC, now=1.0)}
        self.events: list[LoggedEvent] = []
        self.intent = Intent.RUN
        self._log("job_created")

    def _log(self, kind: str, run: Run | None = None, **data: Any) -> None:
        at = float(len(self.events) + 1)
        status = job_state(list(self.tasks.values()), self.intent)
        task, attempt = (None, None) if run is None else (run.task, run.attempt)
        self.events.append(
            LoggedEvent(
                id=f"{len(self.events) + 1}-0",
                at=at,
                kind=kind,
                task=task,
                attempt=attempt,
                job_status=status,
                data=data,
            )
        )

    def tell(self, event: TaskEvent) -> Task:
        at = float(len(self.events) + 1)
        before = self.tasks[event.run.task]
        after = self.tasks[event.run.task] = advance(before, event.model_copy(update={"at": at}))
        data = {"state": after.state.value, **event.model_dump(mode="json", exclude={"run", "at", "kind"})}
        if after.run != event.run:
            data |= {"attempt": after.run.attempt, "message": after.message}
        self._log(event.kind, event.run, **data)
        self.close()
        return after

    def close(self) -> None:
        if job_state(list(self.tasks.values()), self.intent) in TERMINAL_JOB:
            self._log("job_finished")

    def begin(self, name: str) -> Run:
        run = self.tasks[name].run
        self.tell(Launched(run=run, cluster="c"))
        self.tell(Started(run=run, node="n", pid=run.attempt))
        return run

    def save(self, run: Run, step: int) -> CheckpointRef:
        path = f"jobs/{JOB}/{run.task}/attempt-{run.attempt}/step-{step}"
        ref = CheckpointRef(step=step, path=path, sha256=f"{step}" * 64, attempt=run.attempt, at=1.0)
        self.tell(Checkpointed(run=run, checkpoint=ref, keep_last=2))
        return ref

    def restore(self, run: Run, step: int, *lost: CheckpointRef) -> None:
        gone = tuple(LostCheckpoint(step=ref.step, path=ref.path, message="flipped") for ref in lost)
        self.tell(Restored(run=run, step=step, lost=gone))

    def crash(self, run: Run) -> None:
        self.tell(Crashed(run=run, reason=Reason.WORKER_ERROR, message="boom"))

    def retry(self, *names: str) -> None:
        at = float(len(self.events) + 1)
        self.intent = Intent.RUN
        for name in names:
            self.tasks[name] = advance(self.tasks[name], Retried(run=self.tasks[name].run, at=at))
        self._log("job_retry_requested", tasks=sorted(names))

    def cancel(self) -> None:
        at = float(len(self.events) + 1)
        self.intent = Intent.CANCEL
        for name, task in self.tasks.items():
            if task.state.value == "pending":
                self.tasks[name] = advance(task, CancelRequested(run=task.run, at=at, stop_by=at))
        self._log("job_cancel_requested", force=False)
        self.close()

    @property
    def outline(self) -> JobOutline:
        record = new_record(JOB, SPEC, PLAN, owner="", now=1.0)
        return JobOutline(
            record=record, status=job_state(list(self.tasks.values()), self.intent), tasks=self.tasks, progress={}
        )

    @property
    def found(self) -> list[Found]:
        return [Found(ref.path, ref.sha256) for task in self.tasks.values() for ref in task.checkpoints]

    def history(self, **changes: Any) -> History:
        job = JobHistory(self.outline, self.events)
        made = History([Submission("k", "b", JOB)], {JOB: job}, [], self.found)
        return replace(made, **changes)


def told() -> Telling:
    """A rich good life: a crash with a restore, a lost checkpoint, a cancel, a retry, and success."""
    job = Telling()
    first = job.begin("block-0")
    job.save(first, 5)
    job.save(first, 8)
    job.crash(first)
    second = job.begin("block-0")
    job.restore(second, 8)
    newest = job.save(second, 9)
    job.crash(second)
    third = job.begin("block-0")
    job.restore(third, 8, newest)
    job.save(third, 9)
    job.tell(Finished(run=third))
    job.cancel()
    job.retry("block-1", "assembly", "evaluation")
    for name in ("block-1", "assembly", "evaluation"):
        run = job.begin(name)
        if name == "block-1":
            job.save(run, 9)
        job.tell(Finished(run=run))
    return job


def kinds(history: History) -> set[Kind]:
    return {violation.kind for violation in check(history)}


def with_events(job: Telling, change: Callable[[list[LoggedEvent]], Sequence[LoggedEvent]]) -> History:
    """The history with its stream changed, and renumbered."""
    events = [event.model_copy(update={"id": f"{n}-0"}) for n, event in enumerate(change(list(job.events)), 1)]
    return job.history(jobs={JOB: JobHistory(job.outline, events)})


def index(events: Sequence[LoggedEvent], kind: str, task: str | None = None, attempt: int | None = None) -> int:
    wanted = (kind, task, attempt)
    return next(
        place
        for place, event in enumerate(events)
        if wanted == (event.kind, event.task if task else None, event.attempt if attempt else None)
    )


def test_a_good_history_has_no_violation() -> None:
    job = told()
    ids = [event.id for event in job.events]
    followed = JobHistory(job.outline, job.events, [ids, ids[3:9], []])
    wishes: list[Wish] = ["cancel", "retry", "resume"]
    history = job.history(jobs={JOB: followed}, wished=[Wished(JOB, wish) for wish in wishes])
    assert check(history) == []


def test_an_accepted_job_that_is_not_there_is_lost_unless_it_was_deleted() -> None:
    lost = History([Submission(None, "b", "j9")], {})
    assert kinds(lost) == {Kind.LOST_JOB}
    assert kinds(replace(lost, wished=[Wished("j9", "delete")])) == set()


def test_a_key_that_made_two_jobs_is_a_duplicate() -> None:
    twice = [Submission("k", "b", JOB), Submission("k", "b", "j2")]
    job = told().history().jobs[JOB]
    assert Kind.DUPLICATE_JOB in kinds(told().history(submissions=twice, jobs={JOB: job, "j2": job}))


def test_a_job_that_no_request_can_have_made_is_a_duplicate() -> None:
    job = told()
    assert kinds(job.history(submissions=[])) == {Kind.DUPLICATE_JOB}
    unanswered = [Submission("k", "b", None), Submission("k", "b", None)]
    assert kinds(job.history(submissions=unanswered)) == set(), "it was stored, and its answer lost"


@pytest.mark.parametrize("wish", ["cancel", "pause", "retry", "delete"])
def test_a_wish_that_was_accepted_and_left_no_trace_is_lost(wish: Wish) -> None:
    job = Telling()
    for name in job.tasks:
        job.tell(Finished(run=job.begin(name)))
    assert kinds(job.history(wished=[Wished(JOB, wish)])) == {Kind.LOST_WISH}


def test_a_job_that_has_not_ended_has_not_one_end() -> None:
    job = Telling()
    job.begin("block-0")
    assert kinds(job.history()) == {Kind.NOT_ONE_END}


def test_an_end_that_is_told_twice_or_not_at_all_is_found() -> None:
    assert Kind.NOT_ONE_END in kinds(with_events(told(), lambda events: [*events, events[-1]]))
    assert Kind.NOT_ONE_END in kinds(with_events(told(), lambda events: events[:-1]))


@pytest.mark.parametrize("kind", ["checkpointed", "finished", "restored"])
def test_what_an_attempt_wrote_after_it_was_given_up_is_a_stale_commit(kind: str) -> None:
    def late(events: list[LoggedEvent]) -> list[LoggedEvent]:
        if kind == "checkpointed":
            moved = events.pop(index(events, kind, "block-0", 1))
        else:
            moved = events[index(events, kind)].model_copy(update={"task": "block-0", "attempt": 1})
        events.insert(index(events, "started", "block-0", 2) + 1, moved)
        return events

    assert Kind.STALE_COMMIT in kinds(with_events(told(), late))


def test_progress_of_an_attempt_that_was_given_up_is_a_stale_commit() -> None:
    job = told()
    old = Progress(run=Run(job_id=JOB, task="block-0", attempt=1), step=3, total=20, heartbeat_at=1.0)
    stale = job.outline.model_copy(update={"progress": {"block-0": old}})
    assert kinds(job.history(jobs={JOB: JobHistory(stale, job.events)})) == {Kind.STALE_COMMIT}


def test_a_training_that_goes_on_below_its_last_checkpoint_has_rolled_back() -> None:
    job = Telling()
    first = job.begin("block-0")
    job.save(first, 5)
    job.save(first, 8)
    job.crash(first)
    job.restore(job.begin("block-0"), 5)
    assert Kind.ROLLBACK in kinds(job.history())


def test_a_commit_below_the_last_one_has_rolled_back() -> None:
    job = Telling()
    first = job.begin("block-0")
    job.save(first, 8)
    job.crash(first)
    job.save(job.begin("block-0"), 5)
    assert Kind.ROLLBACK in kinds(job.history())


def test_an_attempt_that_is_launched_twice_is_reused() -> None:
    def again(events: list[LoggedEvent]) -> list[LoggedEvent]:
        second = index(events, "launched", "block-0", 2)
        return [*events[:second], *(e.model_copy(update={"attempt": 1}) for e in events[second : second + 1])]

    assert Kind.ATTEMPT_REUSED in kinds(with_events(told(), again))


def test_an_attempt_that_went_down_is_found() -> None:
    job = told()
    task = job.tasks["block-0"]
    lower = job.tasks | {"block-0": task.model_copy(update={"run": task.run.model_copy(update={"attempt": 2})})}
    outline = job.outline.model_copy(update={"tasks": lower})
    assert Kind.ATTEMPT_REUSED in kinds(job.history(jobs={JOB: JobHistory(outline, job.events)}))


def test_a_committed_checkpoint_that_is_missing_or_damaged_is_found() -> None:
    job = told()
    first, *others = job.found
    another = replace(first, sha256="0" * 64)
    flipped = replace(first, damage="the bytes of weights.safetensors are others")
    for found in (others, [another, *others], [flipped, *others]):
        assert kinds(job.history(found=found)) == {Kind.DAMAGED_CHECKPOINT}


def test_what_a_finished_task_left_beside_its_checkpoints_is_found() -> None:
    job = told()
    left = Found(f"jobs/{JOB}/block-0/attempt-1/step-5", None, "manifest.json is missing")
    assert kinds(job.history(found=[*job.found, left])) == {Kind.LEFTOVER}


def test_a_gap_in_what_a_follower_was_sent_is_found() -> None:
    job = told()
    ids = [event.id for event in job.events]
    not_sent, twice, not_there = [*ids[:3], *ids[4:]], [*ids[:3], ids[2], *ids[3:]], [*ids, "999-0"]
    for followed in (not_sent, twice, not_there):
        assert kinds(job.history(jobs={JOB: JobHistory(job.outline, job.events, [followed])})) == {Kind.GAP}


def test_a_stream_without_its_beginning_has_a_gap() -> None:
    assert Kind.GAP in kinds(with_events(told(), lambda events: events[1:]))


def test_ids_that_do_not_grow_are_a_gap() -> None:
    job = told()
    events = [*job.events[:2], job.events[2].model_copy(update={"id": "1-0"}), *job.events[3:]]
    assert kinds(job.history(jobs={JOB: JobHistory(job.outline, events)})) == {Kind.GAP}


@pytest.mark.parametrize("place", [*range(1, 3), *range(4, 9), *range(10, 12)])  # not of a checkpoint that is no more
def test_an_event_that_was_left_out_of_the_stream_is_missed(place: int) -> None:
    assert kinds(with_events(told(), lambda events: [*events[:place], *events[place + 1 :]]))


def test_a_store_that_holds_something_else_than_its_history_says_is_found() -> None:
    job = told()
    task = job.tasks["block-0"].model_copy(update={"crashes": 7})
    outline = job.outline.model_copy(update={"tasks": job.tasks | {"block-0": task}})
    assert kinds(job.history(jobs={JOB: JobHistory(outline, job.events)})) == {Kind.UNEXPLAINED}


def test_checkpoints_are_found_where_they_lie_and_looked_into(tmp_path: Path) -> None:
    home = tmp_path / "jobs" / JOB / "block-0" / "attempt-1"
    digest = hashlib.sha256(b"weights").hexdigest()
    for name, content in {"whole": b"weights", "flipped": b"weighty", "empty": None, "half": b""}.items():
        (home / name).mkdir(parents=True)
        if content is not None:
            (home / name / "weights").write_bytes(content)
        if name != "half":
            (home / name / "manifest.json").write_text(f'{{"files": {{"weights": {{"sha256": "{digest}"}}}}}}')
    found = {Path(one.path).name: one.damage for one in found_checkpoints(open_artefacts(str(tmp_path)), JOB)}
    assert found == {
        "whole": None,
        "flipped": "the bytes of weights are others",
        "empty": "weights is missing",
        "half": "manifest.json is missing",
    }

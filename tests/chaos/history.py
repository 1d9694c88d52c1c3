"""What a soak may have broken: a client's log, every job's events and the checkpoints that lie there, held against
each other. Pure.

Nothing here trusts the store: what it answers at the end is one of the witnesses.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any, Literal, cast

from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import TERMINAL_JOB, JobStatus, LoggedEvent, Task, TaskState
from dbserve.errors import StaleRun
from dbserve.store.history import JOB_CREATED, JOB_FINISHED
from dbserve.store.keys import stream_order
from tests.chaos.manifests import Found
from tests.chaos.replay import Replay, Unexplained

Wish = Literal["cancel", "pause", "resume", "retry", "delete"]


class Kind(StrEnum):
    LOST_JOB = "lost_job"
    LOST_WISH = "lost_wish"
    DUPLICATE_JOB = "duplicate_job"
    NOT_ONE_END = "not_one_end"
    STALE_COMMIT = "stale_commit"
    ROLLBACK = "rollback"
    ATTEMPT_REUSED = "attempt_reused"
    DAMAGED_CHECKPOINT = "damaged_checkpoint"
    LEFTOVER = "leftover"
    GAP = "gap"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True)
class Violation:
    kind: Kind
    job_id: str
    what: str


@dataclass(frozen=True)
class Submission:
    """One POST. `job_id` None: no answer came, and the job may be there or not."""

    key: str | None  # Idempotency-Key
    body: str  # a digest
    job_id: str | None


@dataclass(frozen=True)
class Wished:
    """A wish that was answered with 2xx."""

    job_id: str
    wish: Wish


@dataclass(frozen=True)
class JobHistory:
    """What is known of one job at the end."""

    outline: JobOutline
    events: Sequence[LoggedEvent]  # the whole stream
    followed: Sequence[Sequence[str]] = ()  # for each client that followed it: the ids it was sent, in order


@dataclass(frozen=True)
class History:
    submissions: Sequence[Submission]
    jobs: Mapping[str, JobHistory]
    wished: Sequence[Wished] = ()
    found: Sequence[Found] = field(default_factory=list[Found])  # in the artefact store, of all jobs


def check(history: History) -> list[Violation]:
    """Everything that is wrong, nothing where all is well. Jobs are expected to have ended."""
    return [
        *_jobs_there(history),
        *_wishes_kept(history),
        *(violation for job_id, job in history.jobs.items() for violation in _job(job_id, job)),
        *_checkpoints(history),
    ]


def _jobs_there(history: History) -> Iterator[Violation]:
    """Accepted means there; one key means one job; what nobody asked for is not there."""
    deleted = {wished.job_id for wished in history.wished if wished.wish == "delete"}
    answered = {one.job_id for one in history.submissions if one.job_id is not None}
    for job_id in sorted(answered - deleted - history.jobs.keys()):
        yield Violation(Kind.LOST_JOB, job_id, "was accepted, and is not there")
    by_key: dict[str, set[str]] = defaultdict(set)
    for one in history.submissions:
        if one.key is not None and one.job_id is not None and one.job_id not in deleted:
            by_key[one.key].add(one.job_id)
    for key, jobs in by_key.items():
        if len(jobs) > 1:
            yield Violation(Kind.DUPLICATE_JOB, max(jobs), f"key {key!r} made {', '.join(sorted(jobs))}")
    unanswered = [one for one in history.submissions if one.job_id is None]
    known = {one.key for one in history.submissions if one.job_id is not None}
    allowed = sum(one.key is None for one in unanswered) + len(
        {one.key for one in unanswered if one.key is not None} - known
    )
    nobodys = sorted(history.jobs.keys() - answered)
    for job_id in nobodys[allowed:]:
        yield Violation(Kind.DUPLICATE_JOB, job_id, "no request that went unanswered can have made it")


def _wishes_kept(history: History) -> Iterator[Violation]:
    for wished in dict.fromkeys(history.wished):
        job = history.jobs.get(wished.job_id)
        if wished.wish == "delete":
            if job is not None:
                yield Violation(Kind.LOST_WISH, wished.job_id, "was deleted, and is there")
        elif job is not None and wished.wish != "resume":  # which changes nothing where nothing is paused
            told = any(event.kind == f"job_{wished.wish}_requested" for event in job.events)
            over = wished.wish == "cancel" and job.outline.status is JobStatus.CANCELLED
            if not told and not over:
                yield Violation(Kind.LOST_WISH, wished.job_id, f"{wished.wish} was accepted, and is not in its history")


def _job(job_id: str, job: JobHistory) -> Iterator[Violation]:
    yield from _ends(job_id, job)
    yield from _gaps(job_id, job)
    yield from _attempts(job_id, job)
    yield from _commits(job_id, job)
    yield from _replayed(job_id, job)


def _ends(job_id: str, job: JobHistory) -> Iterator[Violation]:
    """One job_finished, at the very end; another only after a retry."""
    ends, open_again = 0, True
    for event in job.events:
        if event.kind == JOB_FINISHED:
            ends += 1
            if not open_again:
                yield Violation(Kind.NOT_ONE_END, job_id, f"{event.id}: it ended again, and was not tried again")
            open_again = False
        elif event.kind == "job_retry_requested":
            open_again = True
    if job.outline.status not in TERMINAL_JOB:
        yield Violation(Kind.NOT_ONE_END, job_id, f"is still {job.outline.status}")
    elif open_again:
        yield Violation(Kind.NOT_ONE_END, job_id, f"is {job.outline.status}, and its end was not told")


def _gaps(job_id: str, job: JobHistory) -> Iterator[Violation]:
    """The stream begins with the job and grows; who followed it was sent every event once, in order."""
    ids = [event.id for event in job.events]
    if not job.events or job.events[0].kind != JOB_CREATED:
        yield Violation(Kind.GAP, job_id, f"its history does not begin with {JOB_CREATED}")
    if any(stream_order(a) >= stream_order(b) for a, b in pairwise(ids)):
        yield Violation(Kind.GAP, job_id, "the ids of its events do not grow")
    for followed in job.followed:
        if not followed:
            continue
        if followed[0] not in ids or followed[-1] not in ids:
            yield Violation(Kind.GAP, job_id, f"a follower was sent {followed[0]} to {followed[-1]}: not all are there")
        elif list(followed) != ids[ids.index(followed[0]) : ids.index(followed[-1]) + 1]:
            yield Violation(Kind.GAP, job_id, f"a follower was not sent {followed[0]} to {followed[-1]} once, in order")


def _attempts(job_id: str, job: JobHistory) -> Iterator[Violation]:
    """Of each task they only rise, and each is launched once."""
    launched: dict[str, list[int]] = defaultdict(list)
    newest: dict[str, int] = {}
    for event in job.events:
        if event.task is None or event.attempt is None:
            continue
        if event.kind == "launched":
            launched[event.task].append(event.attempt)
        newest[event.task] = max(event.attempt, newest.get(event.task, 1))
    for task, attempts in launched.items():
        if any(a >= b for a, b in pairwise(attempts)):
            yield Violation(Kind.ATTEMPT_REUSED, job_id, f"{task}: attempts were launched as {attempts}")
    for name, task in job.outline.tasks.items():
        if task.run.attempt < newest.get(name, 1):
            yield Violation(Kind.ATTEMPT_REUSED, job_id, f"{name}: stands at {task.run.attempt} after {newest[name]}")


@dataclass
class _Training:
    """A task's checkpoints and attempts as its events tell them, by rules of their own."""

    current: int = 1  # attempt
    committed: dict[str, int] = field(default_factory=dict[str, int])  # path -> step, of those not told lost
    silent: bool = False  # there are some, and the attempt has not told where it goes on

    @property
    def best(self) -> int:
        return max(self.committed.values(), default=0)


def _commits(job_id: str, job: JobHistory) -> Iterator[Violation]:
    """Only the current attempt commits, and none begins below the last committed checkpoint that is not told lost."""
    trainings: dict[str, _Training] = defaultdict(_Training)
    for event in job.events:
        if event.task is None or event.attempt is None:
            continue
        training = trainings[event.task]
        if event.attempt < training.current:
            what = f"{event.id}: {event.kind} of attempt {event.attempt} of {event.task} when {training.current} was it"
            yield Violation(Kind.STALE_COMMIT, job_id, what)
            continue
        training.current = event.attempt
        match event.kind:
            case "crashed" | "stopped":
                training.current = int(str(event.data.get("attempt", event.attempt)))
            case "started":
                training.silent = bool(training.committed)
            case "restored":
                yield from _restored(job_id, event, training)
            case "checkpointed":
                ref = _mapping(event.data["checkpoint"])
                step = int(ref["step"])
                if step < training.best or training.silent:
                    what = f"{event.id}: {event.task} commits step {step} after {training.best}"
                    what += ", and did not tell where it went on" if training.silent else ""
                    yield Violation(Kind.ROLLBACK, job_id, what)
                training.committed[str(ref["path"])] = step
            case _:
                pass
    for name, told in job.outline.progress.items():
        if told.run != job.outline.tasks[name].run:
            yield Violation(Kind.STALE_COMMIT, job_id, f"the progress of {name} is of {told.run}")


def _restored(job_id: str, event: LoggedEvent, training: _Training) -> Iterator[Violation]:
    training.silent = False
    for one in cast(list[object], event.data.get("lost", [])):
        training.committed.pop(str(_mapping(one)["path"]), None)
    step = int(str(event.data["step"]))
    if step < training.best:
        what = f"{event.id}: {event.task} goes on from step {step}; {training.best} was committed, and not told lost"
        yield Violation(Kind.ROLLBACK, job_id, what)


def _replayed(job_id: str, job: JobHistory) -> Iterator[Violation]:
    """The history, run through the state machine, gives what the store holds."""
    replay = Replay(job.outline.tasks)
    for event in job.events:
        try:
            replay.take(event)
        except StaleRun as stale:
            yield Violation(Kind.STALE_COMMIT, job_id, f"{event.id}: {event.kind}: {stale}")
            return
        except Unexplained as what:
            yield Violation(Kind.UNEXPLAINED, job_id, f"{event.id}: {what}")
            return
    for difference in replay.differences(job.outline.tasks):
        yield Violation(Kind.UNEXPLAINED, job_id, difference)


def _checkpoints(history: History) -> Iterator[Violation]:
    """What a task points at lies there, whole; a task that succeeded has left nothing else."""
    found = {one.path: one for one in history.found}
    for job_id, job in history.jobs.items():
        for name, task in job.outline.tasks.items():
            yield from _damaged(job_id, name, task, found)
            if task.state is TaskState.SUCCEEDED:
                wanted = {ref.path for ref in task.checkpoints}
                for path in found:
                    if path.startswith(f"jobs/{job_id}/{name}/") and path not in wanted:
                        yield Violation(Kind.LEFTOVER, job_id, f"{path} is nobody's")


def _damaged(job_id: str, name: str, task: Task, found: Mapping[str, Found]) -> Iterator[Violation]:
    for ref in task.checkpoints:
        one = found.get(ref.path)
        if one is None:
            yield Violation(Kind.DAMAGED_CHECKPOINT, job_id, f"{name}: step {ref.step} does not lie at {ref.path}")
        elif one.sha256 != ref.sha256:
            yield Violation(Kind.DAMAGED_CHECKPOINT, job_id, f"{ref.path}: its manifest is not the committed one")
        elif one.damage is not None:
            yield Violation(Kind.DAMAGED_CHECKPOINT, job_id, f"{ref.path}: {one.damage}")


def _mapping(value: object) -> Mapping[str, Any]:
    assert isinstance(value, Mapping)
    return cast(Mapping[str, Any], value)

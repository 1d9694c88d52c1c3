"""The machine of the model check: what somebody may do next, drawn by hypothesis; everything is looked at after it."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dbserve.contracts.status import (
    TERMINAL_JOB,
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
    MoveRequested,
    PauseRequested,
    Reason,
    Restored,
    Resumed,
    Retried,
    Run,
    Started,
    Stopped,
    TaskEvent,
    TaskState,
)
from dbserve.store import JobStore
from tests.chaos.durable_redis import DurableRedis
from tests.chaos.simulated import Process
from tests.chaos.world import FLAVOURS, World
from tests.integration.keys_left import leaks

MOST_JOBS = 3
MOST_DISASTERS = 2  # in one example
MOST_NODES = 3  # the same
FAILPOINTS_OF_THE_RECONCILER = ["launch.recorded", "launch.asked", "giveup.stopped", "stop.killed"]

Draw = Callable[[st.SearchStrategy[Any]], Any]
Deed = Callable[[Draw], None]

replicas = st.integers(0, 1)
flavours = st.sampled_from([0, 0, 0, 1, 1, *range(2, len(FLAVOURS))])


def events_of(run: Run) -> list[TaskEvent]:
    """Every kind, as an attempt might have it."""
    ref = CheckpointRef(step=9999, path="p", sha256="0" * 64, attempt=run.attempt, at=1.0)
    return [
        Launched(run=run, cluster="c"),
        Started(run=run, node="n", pid=1),
        Restored(run=run, step=0),
        Checkpointed(run=run, checkpoint=ref, keep_last=1),
        CheckpointFailed(run=run, step=1, message="disk full"),
        Finished(run=run),
        Crashed(run=run, reason=Reason.WORKER_ERROR, message="boom"),
        PauseRequested(run=run, stop_by=1.0),
        MoveRequested(run=run, stop_by=1.0, message="host1 is about to go"),
        Resumed(run=run),
        CancelRequested(run=run, stop_by=1.0),
        Stopped(run=run),
        Retried(run=run),
        Held(run=run, reason=Reason.UNSCHEDULABLE, message="too large"),
        Abandoned(run=run, message="trunk did not succeed"),
    ]


class Machine(RuleBasedStateMachine):
    """Each step is one deed of one actor; after each, everything is looked at.

    One rule with deeds of given weights, and not a rule each: rules are switched off by the half in every example, and
    most of what can go wrong here wants three or four actors at once.
    """

    redis: ClassVar[DurableRedis]
    directory: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.redis, self.directory)
        self.disasters: set[str] = set()

    def teardown(self) -> None:
        with self.world:
            assert leaks(self.redis.socket) == []

    @invariant()
    def the_promises_hold(self) -> None:
        self.world.look()

    @initialize(flavour=flavours, goes_on=st.booleans())
    def there_is_a_job(self, flavour: int, goes_on: bool) -> None:
        self.world.submit(0, "a", flavour)
        self.world.look()
        if goes_on:
            self.world.all_goes_well(steps=5, ends=False)

    @rule(data=st.data())
    def somebody_does_something(self, data: st.DataObject) -> None:
        possible = [deed for deed, weight in self.deeds().items() for _ in range(weight)]
        data.draw(st.sampled_from(possible))(data.draw)

    def deeds(self) -> dict["Deed", int]:
        """What can be done now, and how often it is to be."""
        world, some = self.world, bool(self.world.accepted)
        living, given_up = bool(self.living()), any(task.run.attempt > 1 for task in world.tasks)
        weights: dict[Deed, int] = {
            self.a_job_is_submitted: 1 if len(world.accepted) < MOST_JOBS else 0,
            self.a_user_wishes: 3 if some else 0,
            self.a_job_or_a_block_is_tried_again: 1 if some else 0,
            self.a_job_is_deleted: 1 if some else 0,
            self.the_reconciler_looks: 4 if some else 0,
            self.all_goes_well_for_a_while: 4 if some else 0,
            self.a_worker_goes_on: 8 if living else 0,
            self.a_worker_crashes: 2 if living else 0,
            self.a_process_misbehaves: 2 if living else 0,
            self.workers_are_not_heard_of: 1 if living else 0,
            self.an_attempt_that_was_given_up_comes_back: 2 if given_up else 0,
            self.a_disaster_strikes: 1 if len(self.disasters) < MOST_DISASTERS else 0,
            self.the_nodes_are_about_to_go: 1 if some and len(self.world.cluster.nodes) < MOST_NODES else 0,
        }
        return {deed: weight for deed, weight in weights.items() if weight}

    # --- users

    def a_job_is_submitted(self, draw: Draw) -> None:
        replica, flavour = draw(replicas), draw(flavours)
        key = draw(st.sampled_from([None, "a", "b"]))
        self.world.submit(replica, key, flavour)
        if key is not None:  # and again, by one whose answer was lost
            self.world.submit(1 - replica, key, flavour)

    def a_user_wishes(self, draw: Draw) -> None:
        job_id = self.job(draw)
        over = self.over(job_id) or self.intent(job_id) is Intent.CANCEL
        ended = self.world.status(job_id) in {JobStatus.SUCCEEDED, JobStatus.FAILED}
        wishes: dict[str, tuple[Callable[[JobStore], Awaitable[None]], bool]] = {
            "pause": (lambda store: store.wishes.pause(job_id), over),
            "resume": (lambda store: store.wishes.resume(job_id), over),
            "cancel": (lambda store: store.wishes.cancel(job_id), ended),
            "cancel by force": (lambda store: store.wishes.cancel(job_id, force=True), ended),
        }
        wish = draw(st.sampled_from(["pause", "pause", "resume", "resume", "cancel", "cancel by force"]))
        self.world.wish(draw(replicas), job_id, wishes[wish][0], refused=wishes[wish][1])

    def a_job_or_a_block_is_tried_again(self, draw: Draw) -> None:
        job_id, block = self.job(draw), draw(st.sampled_from([None, "block-0", "block-1"]))
        being_cancelled = self.intent(job_id) is Intent.CANCEL and not self.over(job_id)
        something = any(
            task.state in {TaskState.FAILED, TaskState.CANCELLED}
            or (task.state is TaskState.PENDING and task.not_before > task.created_at + 1800)
            for name, task in self.world.outline(job_id).tasks.items()
            if block in {None, name} or (task.state is TaskState.CANCELLED and task.reason is Reason.DEPENDENCY_FAILED)
        )
        self.world.retry(draw(replicas), job_id, block, refused=being_cancelled or not something)

    def a_job_is_deleted(self, draw: Draw) -> None:
        job_id = self.job(draw)
        self.world.delete(draw(replicas), job_id, refused=not self.over(job_id))

    def job(self, draw: Draw) -> str:
        return draw(st.sampled_from(self.world.jobs))

    def over(self, job_id: str) -> bool:
        return self.world.status(job_id) in TERMINAL_JOB

    def intent(self, job_id: str) -> Intent:
        return self.world.outline(job_id).record.intent

    # --- the reconciler

    def the_reconciler_looks(self, draw: Draw) -> None:
        self.world.tick(draw(st.sampled_from([None] * 4 + FAILPOINTS_OF_THE_RECONCILER)))

    def workers_are_not_heard_of(self, draw: Draw) -> None:
        quiet, everybody = self.one(draw), draw(st.booleans())
        self.world.silence(lambda one: everybody or one is quiet)

    # --- workers

    def all_goes_well_for_a_while(self, draw: Draw) -> None:
        self.world.all_goes_well(steps=draw(st.integers(0, 20)), ends=draw(st.booleans()))

    def a_worker_goes_on(self, draw: Draw) -> None:
        one, twice = self.one(draw), draw(st.booleans())
        what = draw(st.sampled_from(["save", "save", "beat", "beat", "fail to save", "finish"]))
        if not one.begun:
            self.world.begin(one, twice=twice)
        elif not one.restored:
            self.world.restore(one, draw(st.integers(0, 2)), twice=twice)
        elif what == "save" and one.trains:
            self.world.save(one, draw(st.integers(1, 5)), twice=twice)
        elif what == "fail to save" and one.trains:
            self.world.fail_to_save(one, twice=twice)
        elif what == "finish":
            self.world.finish(one, twice=twice)
        else:
            self.world.beat(one)

    def a_worker_crashes(self, draw: Draw) -> None:
        reason = draw(st.sampled_from([Reason.WORKER_ERROR, Reason.PREEMPTED, Reason.GPU_OOM, Reason.DATA_ERROR]))
        one, retry_after = self.one(draw), draw(st.sampled_from([0.0, 0.0, 3600.0]))
        self.world.crash(one, reason, retry_after, lingers=draw(st.booleans()), twice=draw(st.booleans()))

    def a_process_misbehaves(self, draw: Draw) -> None:
        one, how = self.one(draw), draw(st.sampled_from(["dies", "is cut off", "does not die", "is forgotten"]))
        if how == "dies":
            one.alive = False
        elif how == "is cut off":
            one.cut_off = True
        elif how == "does not die":
            one.stubborn = 2
        else:
            one.listed = False

    def living(self) -> list[Process]:
        return [one for one in self.world.cluster.processes if one.alive and not one.ended]

    def one(self, draw: Draw) -> Process:
        living = self.living()
        place: int = draw(st.integers(0, len(living) - 1))
        return living[place]

    # --- what hits everybody, and the past

    def a_disaster_strikes(self, draw: Draw) -> None:
        left = {"another reconciler", "another cluster", "Redis is killed and comes back"} - self.disasters
        what = draw(st.sampled_from(sorted(left)))
        self.disasters.add(what)
        if what == "another reconciler":
            self.world.take_over()
        elif what == "another cluster":
            self.world.cluster.restart()
        else:
            self.redis.kill()
            self.redis.start()

    def the_nodes_are_about_to_go(self, draw: Draw) -> None:
        """Another has come; whoever works is to move there, or has ended by then."""
        self.world.cluster.drain()
        self.world.tick()

    def an_attempt_that_was_given_up_comes_back(self, draw: Draw) -> None:
        """And writes whatever there is to be written."""
        run = draw(st.sampled_from([task.run for task in self.world.tasks if task.run.attempt > 1]))
        old = run.model_copy(update={"attempt": draw(st.integers(1, run.attempt - 1))})
        for event in events_of(old):
            assert self.world.write(event) is None
        self.world.tell_stale_progress(old)


def chosen(examples: int) -> settings:
    """The same examples at every run, unless there are many. What is found is not shrunk: that takes minutes."""
    return settings(
        max_examples=examples,
        stateful_step_count=50,
        deadline=None,
        derandomize=examples <= 200,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )

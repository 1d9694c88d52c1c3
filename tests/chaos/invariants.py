"""What must hold of a store whenever nobody is writing, whatever was done to it before."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import redis as redis_sync

from dbserve.contracts.snapshot import JobOutline, ListedJob
from dbserve.contracts.status import OCCUPYING, STOPPING, TERMINAL_JOB, TaskState
from dbserve.lifecycle import standing
from dbserve.progress import work_of
from dbserve.store import JobStore, keys
from tests.chaos.replay import Replay
from tests.chaos.simulated import SimulatedCluster

WORKS = STOPPING | {TaskState.RUNNING}  # the store takes what such an attempt writes


class Witness:
    """Looks after every deed, and remembers what may not go back."""

    def __init__(self, store: JobStore, redis: "redis_sync.Redis", cluster: SimulatedCluster) -> None:
        self.jobs: Mapping[str, JobOutline] = {}
        self._store = store
        self._redis = redis
        self._cluster = cluster
        self._replays: dict[str, Replay] = {}
        self.read_to: dict[str, str] = {}  # the last event looked at, of each job
        self._lengths: dict[str, int] = {}
        self._attempts: dict[tuple[str, str], int] = {}
        self._steps: dict[tuple[str, str], int] = {}
        self._worked: dict[tuple[str, str], int] = {}

    async def look(self, expected: Collection[str], *, retried: str | None, lost: tuple[str, str] | None) -> None:
        """`expected`: jobs accepted and not deleted. `retried`: the job of which a retry was accepted since the last
        look. `lost`: (job, task) of which checkpoints were told lost since then. Raises AssertionError.
        """
        page, following = await self._store.list_jobs(limit=1000)
        found = {job.record.id: job for job in await self._store.outlines([job.record.id for job in page])}
        assert following is None
        self._listed_as_they_stand(page, found)
        assert found.keys() == set(expected), f"jobs are {sorted(found)}; accepted were {sorted(expected)}"
        lengths = self._sets_and_lengths(found)
        for (job_id, outline), length in zip(found.items(), lengths, strict=True):
            self._ended_for_good(job_id, outline, retried)
            for name, task in outline.tasks.items():
                self._only_forwards((job_id, name), task.run.attempt, self._attempts, "attempt")
                if lost == (job_id, name):
                    del self._steps[job_id, name]
                step = max((ref.step for ref in task.checkpoints), default=0)
                self._only_forwards((job_id, name), step, self._steps, "committed step")
                self._only_forwards((job_id, name), work_of(outline, name).steps, self._worked, "the work counted")
            await self._history(job_id, outline, length)
        self.jobs = found
        self._resources(found)
        self._workers(found)
        await self._cached(found)
        assert self._cluster.mistakes == []

    def _listed_as_they_stand(self, page: Iterable[ListedJob | JobOutline], found: Mapping[str, JobOutline]) -> None:
        """What a list tells without reading a task is what the tasks say."""
        for job in page:
            if isinstance(job, ListedJob):
                outline = found[job.record.id]
                derived = standing([*outline.tasks.values()], outline.record.intent)
                assert job.standing == derived, f"{job.record.id} is listed as {job.standing}, and is {derived}"

    def _ended_for_good(self, job_id: str, outline: JobOutline, retried: str | None) -> None:
        before = self.jobs.get(job_id)
        if before is None or before.status not in TERMINAL_JOB or job_id == retried:
            return
        assert outline.status is before.status, f"{job_id} was {before.status} and is {outline.status}"
        assert outline.tasks == before.tasks, f"{job_id} had ended, and changed"

    @staticmethod
    def _only_forwards(of: tuple[str, str], value: int, known: dict[tuple[str, str], int], what: str) -> None:
        assert value >= known.get(of, 0), f"{what} of {of} was {known[of]} and is {value}"
        known[of] = value

    async def _history(self, job_id: str, outline: JobOutline, length: int) -> None:
        """Each event explains itself, and together they explain what is stored."""
        replay = self._replays.setdefault(job_id, Replay(outline.tasks))
        if length != self._lengths.get(job_id, 0):
            for event in await self._store.history.events(job_id, after=self.read_to.get(job_id)):
                replay.take(event)
                self.read_to[job_id] = event.id
            self._lengths[job_id] = length
        assert replay.differences(outline.tasks) == []
        assert (replay.status, replay.intent) == (outline.status, outline.record.intent)
        assert replay.ended == (outline.status in TERMINAL_JOB), (
            f"{job_id}: {outline.status}; told over: {replay.ended}"
        )

    def _sets_and_lengths(self, found: Mapping[str, JobOutline]) -> list[int]:
        """Of the streams, in the order of the jobs; once the sets are what they must be."""
        pipe: Any = self._redis.pipeline(transaction=False)  # pyright: ignore[reportUnknownMemberType]
        pipe.smembers(keys.ACTIVE)
        pipe.zrange(keys.FINISHED, 0, -1)
        for job_id in found:
            pipe.xlen(keys.events(job_id))
        active, finished, *lengths = pipe.execute()
        over = {job_id for job_id, outline in found.items() if outline.status in TERMINAL_JOB}
        assert set(active) == found.keys() - over, "the set of jobs that have not ended"
        assert set(finished) == over, "the set of jobs that have ended"
        for job_id, outline in found.items():
            assert (outline.record.finished_at is not None) == (job_id in over), f"finished_at of {job_id}"
        return lengths

    def _resources(self, found: Mapping[str, JobOutline]) -> None:
        tasks = [task for outline in found.values() for task in outline.tasks.values() if task.state in OCCUPYING]
        for node in self._cluster.capacity().nodes:
            held = sum(task.cpus for task in tasks if node.id in task.nodes)
            assert held <= node.resources.cpus, f"more is held on {node.name} than there is"

    def _workers(self, found: Mapping[str, JobOutline]) -> None:
        """Of each task, the store takes the word of one living process at most."""
        for outline in found.values():
            for task in outline.tasks.values():
                at_work = [
                    one
                    for one in self._cluster.processes
                    if one.run == task.run and one.alive and one.begun and not one.ended and task.state in WORKS
                ]
                assert len(at_work) <= 1, f"the store takes what {at_work} write"

    async def _cached(self, found: Mapping[str, JobOutline]) -> None:
        """What a store has known for long is what another reads now."""
        active = await self._store.active_outlines()
        assert [outline.record.id for outline in active] == sorted(
            job_id for job_id, outline in found.items() if outline.status not in TERMINAL_JOB
        )
        for outline in active:
            assert outline == found[outline.record.id], f"{outline.record.id} is remembered otherwise than it is"

"""What the store, the event streams and the artefacts say after a soak, held against what clients were told."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dbserve.artefacts import open_artefacts
from dbserve.contracts.plan import TaskKind
from dbserve.contracts.snapshot import JobOutline
from dbserve.contracts.status import TERMINAL_JOB, LoggedEvent, TaskState
from dbserve.store import JobStore
from tests.chaos.faults import Ground
from tests.chaos.history import History, JobHistory, Kind, Violation, check
from tests.chaos.injector import Fault
from tests.chaos.manifests import Found, found_checkpoints
from tests.chaos.remains import unknown_directories
from tests.chaos.undisturbed import digest_of
from tests.chaos.workload import ENDS, ClientLog
from workers.checkpoint import answering_weights
from workers.storage import read_tensors

PAGE = 500

COLUMNS = {
    Kind.LOST_JOB: "jobs lost",
    Kind.DUPLICATE_JOB: "jobs made twice",
    Kind.NOT_ONE_END: "jobs without one end",
    Kind.LOST_WISH: "wishes lost",
    Kind.STALE_COMMIT: "stale commits",
    Kind.ROLLBACK: "rollbacks below the last commit",
    Kind.ATTEMPT_REUSED: "attempts used twice",
    Kind.DAMAGED_CHECKPOINT: "committed checkpoints not whole",
    Kind.GAP: "events missed",
    Kind.UNEXPLAINED: "histories that do not add up",
    Kind.LEFTOVER: "left in the artefact store",
}


@dataclass(frozen=True)
class Evidence:
    """All that is looked at, read once, when the jobs have ended."""

    outlines: Mapping[str, JobOutline]  # by job, of every job there is
    events: Mapping[str, Sequence[LoggedEvent]]
    found: Sequence[Found]
    blocks: Mapping[str, Mapping[str, str]]  # by job: digests of the final weights of blocks that succeeded
    models: Mapping[str, Mapping[str, str]]  # by job: the same, of the files of its model
    unknown: Sequence[str]  # directories of no job


async def look(ground: Ground) -> Evidence:
    """Reads store and artefacts of a service that runs."""
    store = JobStore.from_url(f"unix://{ground.redis_socket}")
    try:
        outlines = {job.record.id: job for job in await _all_jobs(store)}
        events = {job_id: await _all_events(store, job_id) for job_id in outlines}
    finally:
        await store.aclose()
    root = ground.artefacts
    artefacts = open_artefacts(str(root))
    return Evidence(
        outlines=outlines,
        events=events,
        found=[found for job_id in outlines for found in found_checkpoints(artefacts, job_id)],
        blocks={job_id: _blocks(root, job) for job_id, job in outlines.items()},
        models={job_id: _model(root / "models" / job_id) for job_id in outlines},
        unknown=unknown_directories(root, outlines),
    )


def offences(
    evidence: Evidence, told: ClientLog, faults: Sequence[Fault], undisturbed: Sequence[Mapping[str, str]]
) -> dict[str, list[str]]:
    """By column of the table. `undisturbed`: of each variant, the digest of each block's final weights."""
    history = History(
        submissions=told.submissions,
        jobs={
            job_id: JobHistory(outline, evidence.events[job_id], [told.followed.get(job_id, [])])
            for job_id, outline in evidence.outlines.items()
        },
        wished=told.wished,
        found=evidence.found,
    )
    columns: dict[str, list[str]] = defaultdict(list)
    for violation in check(history):
        if not _ours(violation, evidence.outlines, faults):
            columns[COLUMNS[violation.kind]].append(f"{violation.job_id}: {violation.what}")
    columns["jobs with another end than theirs"] += other_ends(told, evidence.outlines)
    columns["digests differing"] += differing(told, evidence, undisturbed)
    columns["left in the artefact store"] += evidence.unknown
    return columns


def checked(evidence: Evidence) -> dict[str, int]:
    """What was compared, and how often: no offence in nothing would say nothing."""
    kinds = [event.kind for events in evidence.events.values() for event in events]
    lost = [
        event.data["lost"]
        for events in evidence.events.values()
        for event in events
        if event.kind == "restored" and event.data["lost"]
    ]
    return {
        "jobs": len(evidence.outlines),
        "events": len(kinds),
        "attempts": kinds.count("launched"),
        "checkpoints committed": kinds.count("checkpointed"),
        "starts from a checkpoint": kinds.count("restored"),
        "of them past a damaged one": len(lost),
        "saves that failed": kinds.count("checkpoint_failed"),
        "blocks' digests": sum(map(len, evidence.blocks.values())),
        "models' digests": sum(map(len, evidence.models.values())),
    }


def _ours(violation: Violation, outlines: Mapping[str, JobOutline], faults: Sequence[Fault]) -> bool:
    """Whether it is a damage of our own, which no later attempt has met: the job was cancelled before."""
    if violation.kind is not Kind.DAMAGED_CHECKPOINT or outlines[violation.job_id].status != "cancelled":
        return False
    return any(fault.damaged is not None and fault.damaged in violation.what for fault in faults)


def other_ends(told: ClientLog, outlines: Mapping[str, JobOutline]) -> list[str]:
    """Jobs that have ended otherwise than what was done with them can explain."""
    return [
        f"{job.record.id} ({one.role}) {job.status}: {job.message}"
        for one in told.submitted
        if (job := outlines.get(one.job_id)) is not None
        and job.status in TERMINAL_JOB
        and job.status not in ENDS[one.role]
    ]


def differing(told: ClientLog, evidence: Evidence, undisturbed: Sequence[Mapping[str, str]]) -> list[str]:
    """Final weights that are not bitwise those of the same training without a fault."""
    found: list[str] = []
    for one in told.submitted:
        if one.variant is None:
            continue
        wanted = undisturbed[one.variant]
        blocks, models = evidence.blocks.get(one.job_id, {}), evidence.models.get(one.job_id, {})
        both = itertools.chain(blocks.items(), models.items())
        found += [f"{one.job_id} {name}" for name, digest in both if digest != wanted[name]]
    return found


async def _all_jobs(store: JobStore) -> list[JobOutline]:
    """In full: a listing leaves out what jobs that have ended need no more."""
    found: list[JobOutline] = []
    after: str | None = None
    while True:
        page, after = await store.list_jobs(limit=100, after=after)
        found += [await store.outline(job.record.id) for job in page]
        if after is None:
            return found


async def _all_events(store: JobStore, job_id: str) -> list[LoggedEvent]:
    found: list[LoggedEvent] = []
    while page := await store.history.events(job_id, after=found[-1].id if found else None, limit=PAGE):
        found += page
    return found


def _blocks(root: Path, job: JobOutline) -> dict[str, str]:
    return {
        name: digest_of(answering_weights(root / task.checkpoints[-1].path))
        for name, task in job.tasks.items()
        if task.state is TaskState.SUCCEEDED and task.kind is TaskKind.BLOCK
    }


def _model(directory: Path) -> dict[str, str]:
    return {path.stem: digest_of(read_tensors(path)) for path in sorted(directory.glob("block-*.safetensors"))}

"""What ended attempts did: added up as each ends, so that a task's work is never lost, nor counted twice.

Heartbeats come whenever they come. So what the attempt that ends now has told is moved aside by Redis itself, in the
transaction that ends it, and is added to the sum of those before it only when the next one ends: then it stands still.
"""

from collections.abc import Awaitable, Sequence
from typing import cast

from redis.asyncio.client import Pipeline

from dbserve.contracts.status import Run
from dbserve.store import keys
from dbserve.store.codec import brief
from dbserve.store.scripts import SET_ASIDE
from dbserve.store.snapshots import past_work_of


async def sums_so_far(pipe: Pipeline, ended: Sequence[Run]) -> dict[str, str]:
    """Of each ended attempt's task, what the attempts before it did, as the store keeps it.

    Inside a transaction that watches the job's tasks, before multi().
    """
    if not ended:
        return {}
    fields = [field for run in ended for field in (keys.past_field(run.task), keys.last_field(run.task))]
    raw = await cast(Awaitable[list[str | None]], pipe.hmget(keys.progress(ended[0].job_id), fields))
    return {
        keys.past_field(run.task): brief(work)
        for run, past, last in zip(ended, raw[::2], raw[1::2], strict=True)
        if (work := past_work_of(past, last)) is not None
    }


def retire(pipe: Pipeline, ended: Sequence[Run], sums: dict[str, str]) -> None:
    """Sets the attempts' progress aside, and puts sums_so_far() in. Inside the transaction that ends them."""
    for run in ended:
        name = keys.progress(run.job_id)
        pipe.eval(SET_ASIDE, 1, name, keys.progress_field(run), keys.last_field(run.task))
    if sums:
        pipe.hset(keys.progress(ended[0].job_id), items=[part for field in sums.items() for part in field])

"""One attempt at a task of a stored job, in a process that may be killed: REDIS_URL JOB_ID ARTIFACTS."""

import asyncio
import sys

import pytest

from dbserve.artefacts import open_artefacts
from dbserve.contracts.status import Finished, Launched, Started, Task
from dbserve.store import JobStore
from tests.attempts import TASK, attempt, save_before_going_on


async def begin(store: JobStore, job_id: str) -> Task:
    """The task's pending attempt, as a worker that is up has it."""
    run = (await store.task(job_id, TASK)).run
    await store.apply(Launched(run=run, cluster="c"))
    return await store.apply(Started(run=run, node="n", pid=1))


async def main(redis_url: str, job_id: str, location: str) -> None:
    store = JobStore.from_url(redis_url)
    task = await begin(store, job_id)
    await attempt(store, open_artefacts(location), await store.spec(job_id), task=task)
    await store.apply(Finished(run=task.run))
    await store.aclose()


if __name__ == "__main__":
    save_before_going_on(pytest.MonkeyPatch())
    asyncio.run(main(*sys.argv[1:]))

"""Looks at active jobs that overlap, and at jobs of before."""

import asyncio

import pytest

from dbserve.contracts.snapshot import JobOutline
from dbserve.store import JobStore, outlines
from tests.integration.serving import submitted
from tests.jobs import small_plan, small_spec
from tests.waiting import until


async def test_two_looks_at_the_same_time_each_see_every_job(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    known = await submitted(store)
    await store.active_outlines()
    new = await submitted(store)
    read, held = outlines.Outlines._read, [asyncio.Event(), asyncio.Event()]  # pyright: ignore[reportPrivateUsage]
    waiting = iter(held)

    async def late(self: outlines.Outlines, ids: list[str]) -> list[tuple[str, JobOutline]]:
        found = await read(self, ids)
        await next(waiting).wait()
        return found

    monkeypatch.setattr(outlines.Outlines, "_read", late)
    first = asyncio.create_task(store.active_outlines())
    await until(lambda: bool(held[0]._waiters))  # pyright: ignore[reportPrivateUsage]
    await store.wishes.pause(known)
    second = asyncio.create_task(store.active_outlines())
    await until(lambda: bool(held[1]._waiters))  # pyright: ignore[reportPrivateUsage]
    for one in held:
        one.set()
    for look in (first, second):
        assert {job.record.id for job in await look} == {known, new}


async def test_a_job_is_shown_whose_labels_of_nodes_only_an_earlier_version_took(store: JobStore) -> None:
    spec = small_spec()
    as_it_was = spec.model_copy(
        update={"resources": spec.resources.model_copy(update={"node_labels": {"a/b/c": "x", "": "y/z"}})}
    )
    made, _ = await store.create_job(as_it_was, small_plan(spec), idempotency_key=None, request_digest="d")
    other = JobStore(store._redis)  # pyright: ignore[reportPrivateUsage]
    assert (await other.snapshot(made.record.id)).spec == as_it_was, "of another process, which has not parsed it"

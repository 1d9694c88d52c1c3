"""A cancellation that gets lost is said again."""

import asyncio
from contextlib import suppress

from dbserve.cancellation import end


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def loop() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await end(task)
    assert task.cancelled()
    assert lost == 3


async def test_tasks_that_have_ended_or_fail_while_they_end_are_no_reason_to_fail() -> None:
    async def fails() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        raise OSError("on its way out")

    async def ends() -> None:
        return

    tasks = [asyncio.create_task(each) for each in (fails(), ends())]
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await end(*tasks)
    assert all(task.done() for task in tasks)

"""A reconciler that has much to do looks again before all of it is done, and nothing waits behind what fails."""

from pathlib import Path

import pytest

from dbserve import reconciler as under_test
from dbserve.contracts.cluster import Presence
from dbserve.contracts.status import TaskState
from dbserve.store import JobStore
from tests.integration.serving import start, submitted
from tests.integration.test_reconciling import RememberingCluster, reconciler_of


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each tick, one action is all there is time for."""
    monkeypatch.setattr(under_test, "ACTING_SECONDS", 0.0)


@pytest.mark.usefixtures("no_time")
async def test_what_a_tick_has_no_time_for_is_done_by_the_next_one(store: JobStore, tmp_path: Path) -> None:
    job_id = await submitted(store)
    cluster = RememberingCluster()
    reconciler = reconciler_of(store, cluster, tmp_path)
    await reconciler.tick()
    assert len(cluster.launched) == 1
    await reconciler.tick()
    assert {run.task for run in cluster.launched} == {"block-0", "block-1"}
    await reconciler.tick()
    assert len(cluster.launched) == 2, "each once"
    assert (await store.task(job_id, "block-0")).state is TaskState.LAUNCHED


@pytest.mark.usefixtures("no_time")
async def test_a_process_that_cannot_be_killed_keeps_no_other_task_waiting(store: JobStore, tmp_path: Path) -> None:
    dead = await start(store, await submitted(store), "block-0")
    cluster = RememberingCluster()
    cluster.presences[dead] = Presence.PRESENT
    reconciler = reconciler_of(store, cluster, tmp_path)
    for _ in range(2):
        await reconciler.tick()
    assert cluster.stopped == [dead]
    assert len(cluster.launched) == 1, "it had its turn"
    for _ in range(2):
        await reconciler.tick()
    assert cluster.stopped == [dead, dead], "and then comes the stubborn one again"


async def test_with_time_enough_one_tick_does_it_all(store: JobStore, tmp_path: Path) -> None:
    await submitted(store)
    cluster = RememberingCluster()
    await reconciler_of(store, cluster, tmp_path).tick()
    assert len(cluster.launched) == 2

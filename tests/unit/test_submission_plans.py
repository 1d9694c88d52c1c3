"""Plans that are remembered: the same as made anew, and made anew where anything they rest on may have changed."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dbserve.api import submission
from dbserve.api.submission import Plans
from dbserve.contracts.plan import JobPlan
from dbserve.datasets.digits import digit_shards
from dbserve.errors import DataInvalid
from dbserve.planner import plan_job
from dbserve.settings import read_settings
from tests.jobs import small_spec


@pytest.fixture
def plans(tmp_path: Path) -> Plans:
    return Plans(read_settings(cache_dir=tmp_path / "cache"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The directory of a data set of our own."""
    return Path(digit_shards(tmp_path / "own")[0]).parent


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[JobPlan]:
    """The plans that were really made."""
    kept: list[JobPlan] = []

    def counted(*asked: Any) -> JobPlan:
        kept.append(plan_job(*asked))
        return kept[-1]

    monkeypatch.setattr(submission, "plan_job", counted)
    return kept


async def test_jobs_alike_but_for_name_and_labels_are_planned_once(plans: Plans, made: list[JobPlan]) -> None:
    first = await plans.make(small_spec(name="a", labels={"of": "a"}), by_key=False)
    assert await plans.make(small_spec(name="b"), by_key=False) == first
    assert len(made) == 1
    other = await plans.make(small_spec(training={"steps": 30, "batch_size": 32}), by_key=False)
    assert other != first
    assert len(made) == 2


def touch(shards: Path) -> None:
    shard = sorted(shards.iterdir())[0]
    os.utime(shard, (1.0, 1.0))


def grow(shards: Path) -> None:
    shard = sorted(shards.iterdir())[0]
    (shards / "train-99999-of-00002.parquet").write_bytes(shard.read_bytes())


@pytest.mark.parametrize("change", [touch, grow])
async def test_a_change_of_the_shards_is_seen_at_once(
    change: Callable[[Path], None], plans: Plans, made: list[JobPlan], shards: Path
) -> None:
    spec = small_spec(data={"uri": str(shards)})
    await plans.make(spec, by_key=False)
    change(shards)
    await plans.make(spec, by_key=False)
    await plans.make(spec, by_key=False)
    assert len(made) == 2


def empty(shards: Path) -> None:
    for shard in shards.iterdir():
        shard.unlink()


async def test_shards_that_are_gone_are_refused_however_well_they_are_remembered(plans: Plans, shards: Path) -> None:
    spec = small_spec(data={"uri": str(shards)})
    await plans.make(spec, by_key=False)
    empty(shards)
    with pytest.raises(DataInvalid):
        await plans.make(spec, by_key=False)


async def test_only_the_last_plans_are_remembered(
    plans: Plans, made: list[JobPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "REMEMBERED", 2)
    specs = [small_spec(training={"steps": steps, "batch_size": 32}) for steps in (10, 20, 30)]
    for spec in (*specs, specs[2], specs[1], specs[0]):
        await plans.make(spec, by_key=False)
    assert len(made) == 4


async def test_what_may_take_a_while_to_look_at_is_looked_at_by_a_thread(
    plans: Plans, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookers: set[bool] = set()

    def looked(*asked: Any) -> tuple[str, ...]:
        lookers.add(threading.current_thread() is threading.main_thread())
        return ()

    monkeypatch.setattr(plans, "_versions", looked)
    for _ in range(2):
        await plans.make(small_spec(data={"uri": "builtin:digits", "test_uri": f"{shards}/*.parquet"}), by_key=False)
    assert lookers == {False}
    for _ in range(2):
        await plans.make(small_spec(), by_key=False)
    assert lookers == {False, True}

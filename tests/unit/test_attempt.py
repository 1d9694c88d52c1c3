"""One attempt at a training: its checkpoints, where it goes on, and how it ends. On a directory, without a store."""

import logging
import math
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dbserve.artefacts import Artefacts, LocalArtefacts
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import CheckpointFailed, Crashed, Reason
from dbserve.errors import NonfiniteLoss, StaleRun, StorageError
from dbserve.redaction import Redactor
from tests.artefacts import flip
from tests.attempts import STEPS, OneTask, Orders, Wrapped, attempt, final_state, save_before_going_on, training_spec
from tests.training import same
from workers import saving, trainer
from workers.checkpoint import MANIFEST, OPTIMIZER, WEIGHTS, TrainingState
from workers.pulse import Interrupted, Order

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = training_spec()
HOME = "jobs/job/block-0"


@pytest.fixture(autouse=True)
def fast_store(monkeypatch: pytest.MonkeyPatch) -> None:
    save_before_going_on(monkeypatch)


@pytest.fixture
def artefacts(tmp_path: Path) -> LocalArtefacts:
    return LocalArtefacts(tmp_path / "root")


@pytest.fixture
def store() -> OneTask:
    return OneTask(SPEC)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "LAST_PAUSES", (0.0, 0.0))


def lying(artefacts: Artefacts) -> dict[str, list[str]]:
    """The checkpoints of the task as they lie there, by attempt."""
    return {name: list(artefacts.names(f"{HOME}/{name}")) for name in artefacts.names(HOME)}


async def uninterrupted(root: Path, spec: JobSpec = SPEC) -> TrainingState:
    store, artefacts = OneTask(spec), LocalArtefacts(root / "uninterrupted")
    await attempt(store, artefacts, spec)
    return final_state(artefacts, store.task, spec)


# --- checkpoints, and what is left of them


async def test_a_training_leaves_its_last_checkpoints_and_nothing_else(artefacts: Artefacts, store: OneTask) -> None:
    await attempt(store, artefacts, SPEC)
    assert store.saved_steps == [2, 4, 6, 8, 10]
    kept = [ref.path.rpartition("/")[2] for ref in store.task.checkpoints]
    assert [name[:13] for name in kept] == ["step-00000008", "step-00000010"]
    assert lying(artefacts) == {"attempt-1": sorted(kept)}
    assert not store.restored, "nothing was restored"


async def test_a_step_saved_again_by_an_attempt_that_is_counted_again_takes_another_name(
    artefacts: Artefacts, store: OneTask
) -> None:
    await attempt(store, artefacts, SPEC)
    again = OneTask(SPEC)  # the store lost all that it was told
    await attempt(again, artefacts, SPEC)
    assert {ref.path for ref in again.task.checkpoints}.isdisjoint(ref.path for ref in store.task.checkpoints)
    assert len(lying(artefacts)["attempt-1"]) == 2, "what the first left is not named any more, and was removed"
    assert final_state(artefacts, again.task, SPEC).step == STEPS


async def test_what_earlier_attempts_left_half_done_is_removed_and_what_a_later_one_has_is_not(
    artefacts: LocalArtefacts, store: OneTask
) -> None:
    store.lose()
    home = Path(artefacts.location) / HOME
    for left in ("attempt-1/step-00000002-aa", "attempt-1/.step-00000004-bb.0.partial", "attempt-2/.step-9.0.partial"):
        (home / left).mkdir(parents=True)
    (home / "attempt-3/step-00000002-cc").mkdir(parents=True)
    await attempt(store, artefacts, SPEC)
    assert set(lying(artefacts)) == {"attempt-2", "attempt-3"}
    assert [name[:13] for name in lying(artefacts)["attempt-2"]] == ["step-00000008", "step-00000010"]
    assert lying(artefacts)["attempt-3"] == ["step-00000002-cc"]


async def test_an_attempt_given_up_moves_no_pointer_and_removes_nothing(artefacts: Artefacts, store: OneTask) -> None:
    def give_up(step: int) -> Order:
        if step == 5:
            store.task = store.task.model_copy(update={"run": store.task.run.next()})
        return Order.GO  # it has not heard of it yet

    pulse = Orders(give_up)
    with pytest.raises(StaleRun, match="job/block-0/1 was given up"):
        await attempt(store, artefacts, SPEC, pulse)
    assert store.saved_steps == [2, 4]
    assert pulse.steps[-1] == 7, "the step after the one whose pointer was refused"
    assert {ref.path.rpartition("/")[2] for ref in store.task.checkpoints} <= set(lying(artefacts)["attempt-1"])


async def test_a_training_goes_on_past_a_slow_store_with_one_save_at_a_time(
    tmp_path: Path, store: OneTask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # this one is slower than the training
    caplog.set_level(logging.WARNING)
    arrived = threading.Event()

    class Slow(Wrapped):
        def meet(self, place: str) -> None:
            if "step-00000002" in place:
                assert arrived.wait(60), "the training waited for its checkpoint"

    def until_the_last(step: int) -> Order:
        if step == STEPS:
            arrived.set()
        return Order.GO

    slow, pulse = Slow(tmp_path), Orders(until_the_last)
    await attempt(store, slow, SPEC, pulse)  # pyright: ignore[reportArgumentType]
    assert store.saved_steps == [2, 10], "what was due meanwhile was left out, the last was waited for"
    assert slow.most_writing == 1
    assert caplog.text.count("is still being written") == 3
    work = pulse.account.progress().work
    assert (work.failed_checkpoints, work.save_seconds.count) == ({"overrun": 3}, 2)


async def test_a_checkpoint_that_cannot_be_saved_is_said_and_the_next_one_is_tried(
    tmp_path: Path, store: OneTask
) -> None:
    class Lost(Wrapped):
        def meet(self, place: str) -> None:
            if "step-00000004" in place or "step-00000006" in place:
                raise StorageError("the store is away")

    pulse = Orders()
    await attempt(store, Lost(tmp_path), SPEC, pulse)  # pyright: ignore[reportArgumentType]
    assert (store.saved_steps, store.failed_steps) == ([2, 8, 10], [4, 6])
    work = pulse.account.progress().work
    assert (work.failed_checkpoints, work.save_seconds.count) == ({"save": 2}, 3)
    assert store.task.failed_saves == 0, "the next one was saved"


@pytest.mark.usefixtures("impatient")
async def test_the_last_checkpoint_is_tried_again(tmp_path: Path, store: OneTask) -> None:
    class LateInTheEnd(Wrapped):
        tries = 0

        def meet(self, place: str) -> None:
            self.tries += "step-00000010" in place
            if self.tries in {1, 2}:
                raise StorageError("the store is away")

    await attempt(store, LateInTheEnd(tmp_path), SPEC)  # pyright: ignore[reportArgumentType]
    assert store.failed_steps == [10, 10]
    assert store.saved_steps[-1] == STEPS


@pytest.mark.usefixtures("impatient")
async def test_without_its_last_checkpoint_an_attempt_fails_and_the_one_before_counts(
    tmp_path: Path, store: OneTask
) -> None:
    class Away(Wrapped):
        def meet(self, place: str) -> None:
            if "step-00000010" in place:
                raise StorageError("the store is away")

    with pytest.raises(StorageError, match="away"):
        await attempt(store, Away(tmp_path), SPEC)  # pyright: ignore[reportArgumentType]
    assert store.task.checkpoints[-1].step == 8


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here: needs root with CAP_SYS_ADMIN")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


async def test_a_full_disk_costs_checkpoints_and_no_training(tiny_disk: Path, store: OneTask) -> None:
    spec = training_spec(checkpoint={"every_steps": 3, "keep_last": 2})

    def fill_and_free(step: int) -> Order:
        filler = tiny_disk / "filler"
        if step == 5:
            with suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(bytes(4096))
        if step == 8:
            filler.unlink()
        return Order.GO

    await attempt(store, LocalArtefacts(tiny_disk), spec, Orders(fill_and_free))
    assert (store.saved_steps, store.failed_steps) == ([3, 9, 10], [6])
    assert final_state(LocalArtefacts(tiny_disk), store.task, spec).step == STEPS


# --- where an attempt goes on


async def test_an_attempt_ordered_to_stop_saves_its_step_and_the_next_ends_bit_for_bit_as_if_it_had_not(
    tmp_path: Path, artefacts: Artefacts, store: OneTask
) -> None:
    stop = Orders(lambda step: Order.SAVE_AND_STOP if step == 5 else Order.GO)
    with pytest.raises(Interrupted, match="step 5"):
        await attempt(store, artefacts, SPEC, stop)
    assert store.saved_steps == [2, 4, 5]
    store.lose()
    pulse = Orders()
    await attempt(store, artefacts, SPEC, pulse)
    assert pulse.steps == [6, 7, 8, 9, 10]
    assert [(event.step, event.lost) for event in store.restored] == [(5, ())]
    assert same(final_state(artefacts, store.task, SPEC), await uninterrupted(tmp_path))


async def test_an_attempt_given_up_stops_at_the_next_step(artefacts: Artefacts, store: OneTask) -> None:
    pulse = Orders(lambda step: Order.GIVEN_UP if step == 3 else Order.GO)
    with pytest.raises(StaleRun, match="step 3"):
        await attempt(store, artefacts, SPEC, pulse)
    assert pulse.steps == [1, 2, 3]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "damage"),
    [(WEIGHTS, flip), (OPTIMIZER, truncate), (MANIFEST, flip), (MANIFEST, Path.unlink)],
    ids=["flipped weights", "cut optimizer", "flipped manifest", "no manifest"],
)
async def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(
    tmp_path: Path, artefacts: LocalArtefacts, store: OneTask, name: str, damage: object
) -> None:
    await attempt(store, artefacts, SPEC)
    store.lose()
    eighth, tenth = store.task.checkpoints
    damage(Path(artefacts.location) / tenth.path / name)  # pyright: ignore[reportCallIssue]
    pulse = Orders()
    await attempt(store, artefacts, SPEC, pulse)
    (restored,) = store.restored
    assert restored.step == eighth.step
    assert [(lost.step, lost.path) for lost in restored.lost] == [(10, tenth.path)]
    assert name in restored.lost[0].message
    assert pulse.steps == [9, 10]
    assert same(final_state(artefacts, store.task, SPEC), await uninterrupted(tmp_path))
    assert tenth.path not in {ref.path for ref in store.task.checkpoints}
    assert not (Path(artefacts.location) / tenth.path).exists(), "it went once there was a better one"


async def test_where_every_checkpoint_is_damaged_a_training_begins_again_and_says_so(
    artefacts: LocalArtefacts, store: OneTask
) -> None:
    await attempt(store, artefacts, SPEC)
    store.lose()
    for ref in store.task.checkpoints:
        flip(Path(artefacts.location) / ref.path / WEIGHTS)
    pulse = Orders()
    await attempt(store, artefacts, SPEC, pulse)
    (restored,) = store.restored
    assert (restored.step, [lost.step for lost in restored.lost]) == (0, [10, 8])
    assert pulse.steps[0] == 1
    assert final_state(artefacts, store.task, SPEC).step == STEPS


@contextmanager
def unmounted(root: Path, elsewhere: Path) -> Iterator[None]:
    """Leaves an empty directory, as a mount that is gone does."""
    root.rename(elsewhere)
    root.mkdir()
    yield
    root.rmdir()
    elsewhere.rename(root)


async def test_a_store_that_is_out_of_sight_is_not_taken_for_lost_checkpoints(
    tmp_path: Path, artefacts: LocalArtefacts, store: OneTask
) -> None:
    await attempt(store, artefacts, SPEC)
    before = store.task.checkpoints
    store.lose()
    with unmounted(Path(artefacts.location), tmp_path / "elsewhere"):
        with pytest.raises(StorageError, match="not mounted"):
            await attempt(store, artefacts, SPEC)
        assert not store.events
    await attempt(store, artefacts, SPEC)
    assert store.task.checkpoints == before


async def test_an_attempt_that_finds_the_last_step_saved_trains_nothing_and_tidies_up(
    artefacts: LocalArtefacts, store: OneTask
) -> None:
    await attempt(store, artefacts, SPEC)
    orphan = Path(artefacts.location) / HOME / "attempt-1/step-00000006-dd"
    orphan.mkdir()
    store.lose()
    pulse = Orders()
    await attempt(store, artefacts, SPEC, pulse)
    assert (pulse.steps, store.saved_steps) == ([], [])
    assert not orphan.exists()


# --- out of memory, and the watch over a scan


async def test_after_running_out_of_memory_smaller_micro_batches_make_the_same_batch(
    tmp_path: Path, artefacts: Artefacts, store: OneTask, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store.task = store.task.model_copy(update={"micro_rows": 32})
    store.lose(Reason.GPU_OOM)
    assert store.task.split == 2
    pulse = Orders()
    await attempt(store, artefacts, SPEC, pulse)
    assert "trains with 2 micro-batches a step instead of 1, of the same 32 rows together" in caplog.text
    found = final_state(artefacts, store.task, SPEC)
    assert found.summary.samples == STEPS * SPEC.training.batch_size
    expected = await uninterrupted(tmp_path, training_spec(training={"accumulate": 2}))
    assert same(found, expected), "as if the job had asked for it"


async def test_every_rate_of_a_scan_is_a_sign_of_life(artefacts: Artefacts) -> None:
    spec = training_spec(training={"lr": "scan"})
    store, pulse = OneTask(spec), Orders()
    await attempt(store, artefacts, spec, pulse)
    assert pulse.account.progress().trials == 4


async def test_why_a_checkpoint_was_not_saved_is_told_without_secrets(tmp_path: Path, store: OneTask) -> None:
    class Refusing(Wrapped):
        def meet(self, place: str) -> None:
            if "step-00000004" in place:
                raise StorageError("s3://key:hunter22@bucket is away")

    await attempt(store, Refusing(tmp_path), SPEC, redact=Redactor(()))  # pyright: ignore[reportArgumentType]
    (failed,) = [event for event in store.events if isinstance(event, CheckpointFailed)]
    assert "hunter22" not in failed.message


async def test_a_step_without_a_finite_loss_is_counted(
    artefacts: Artefacts, store: OneTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss_of = trainer.loss_of

    def nowhere(*given: Any) -> Any:
        loss = loss_of(*given)
        return lambda batch, generator: loss(batch, generator) * math.nan

    monkeypatch.setattr(trainer, "loss_of", nowhere)
    pulse = Orders()
    with pytest.raises(NonfiniteLoss):
        await attempt(store, artefacts, SPEC, pulse)
    assert pulse.account.progress().work.nonfinite_steps == 1


async def test_a_checkpoint_refused_to_a_task_that_crashed_ends_the_attempt(
    artefacts: Artefacts, store: OneTask
) -> None:
    task = store.task
    await store.apply(Crashed(run=task.run, reason=Reason.WORKER_LOST, message="out of sight"))
    with pytest.raises(StaleRun):
        await attempt(store, artefacts, SPEC, task=task)
    assert not store.task.checkpoints

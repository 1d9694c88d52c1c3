"""The parts of a soak that need no service: what is drawn from a seed, and what the table says."""

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from dbserve.contracts.status import JobStatus
from dbserve.datasets import inspect
from dbserve.planner import load_card, plan_job
from tests.chaos import injector
from tests.chaos.faults import Done, Ground, Kind, NoTarget, damage, kill, stopped
from tests.chaos.injector import DECK, GAP_SECONDS, LASTS, Drawn, Fault, draw, inject, within
from tests.chaos.manifests import Found
from tests.chaos.remains import MARK, marked_processes, unknown_directories
from tests.chaos.soak import written
from tests.chaos.table import BAD, Soak, markdown
from tests.chaos.verdict import Evidence, differing, offences, other_ends
from tests.chaos.workload import ClientLog, Role, Submitted, poison, variants
from tests.snapshots import JOB_ID, checkpoint, snapshot

EVERY_KIND = tuple(Kind)


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The pid of a process that does nothing."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def ground() -> Ground:
    """Nobody's: nothing is really injected."""
    return cast(Ground, None)


def first(seed: int, count: int = 40, kinds: tuple[Kind, ...] = EVERY_KIND) -> list[Drawn]:
    return [*itertools.islice(draw(seed, kinds), count)]


def test_the_same_seed_draws_the_same_faults_at_the_same_times() -> None:
    assert first(7) == first(7)
    assert first(7) != first(8)


def test_what_is_drawn_does_not_depend_on_the_order_the_kinds_are_given_in() -> None:
    assert first(7) == first(7, kinds=EVERY_KIND[::-1])


def test_every_kind_comes_up_before_any_deck_is_dealt_twice() -> None:
    deck = first(3, sum(DECK.values()))
    assert {kind: sum(one.kind is kind for one in deck) for kind in Kind} == DECK


def test_a_kind_that_cannot_be_injected_is_never_drawn() -> None:
    kinds = tuple(kind for kind in Kind if kind is not Kind.DISK_FULL)
    assert {one.kind for one in first(3, 100, kinds)} == set(kinds)


def test_gaps_and_lengths_keep_to_their_ranges() -> None:
    drawn = first(5, 200)
    gaps = [after.at - before.at for before, after in itertools.pairwise(drawn)]
    assert min(gaps) >= GAP_SECONDS[0]
    assert max(gaps) <= GAP_SECONDS[1]
    for one in drawn:
        low, high = LASTS.get(one.kind, (0.0, 0.0))
        assert low <= one.seconds <= high


def test_ten_minutes_hold_at_least_thirty_faults_of_every_kind() -> None:
    for seed in range(20):
        drawn = within(draw(seed, Kind), 600.0)
        assert len(drawn) >= 36
        assert {one.kind for one in drawn} == set(Kind)


def soak(**changes: Any) -> Soak:
    faults = (
        Fault(Kind.API_KILLED, 5.0, "pid 1"),
        Fault(Kind.API_KILLED, 9.0, "pid 2"),
        Fault(Kind.DISK_FULL, 12.0, None, "nothing trains"),
    )
    clean = Soak(
        seed=1,
        minutes=10.0,
        date="2026-01-01T00:00:00+00:00",
        machine={"cores": "2"},
        faults=faults,
        ends={"succeeded": 3},
        checked={"jobs": 3},
    )
    return replace(clean, **changes)


def test_only_faults_that_happened_are_counted() -> None:
    assert soak().injected == {Kind.API_KILLED.value: 2}
    assert "| **together** | **2** |" in markdown(soak())
    assert "Drawn, but without a target when their turn came: 1." in markdown(soak())


def test_a_clean_soak_exits_with_0_and_shows_every_bad_column_as_0() -> None:
    assert soak().exit_code == 0
    assert all(f"| {column} | 0 |" in markdown(soak()) for column in BAD)


@pytest.mark.parametrize("column", BAD)
def test_one_offence_in_any_column_makes_it_exit_with_1_and_is_named(column: str) -> None:
    bad = soak(bad={column: ("job j1: this one",)})
    assert bad.exit_code == 1
    assert bad.counts[column] == 1
    assert f"| {column} | 1 |" in markdown(bad)
    assert f"- {column}: job j1: this one" in markdown(bad)


def test_what_is_written_says_the_same_as_json_and_as_a_table(tmp_path: Path) -> None:
    table = written(soak(bad={BAD[0]: ("j1",)}), tmp_path)
    assert (tmp_path / "soak.md").read_text() == table
    told = json.loads((tmp_path / "soak.json").read_text())
    assert (told["injected"], told["ends"]) == ({Kind.API_KILLED.value: 2}, {"succeeded": 3})
    assert told["counts"] == {**dict.fromkeys(BAD, 0), BAD[0]: 1}


def test_a_column_that_the_table_does_not_show_cannot_be_filled() -> None:
    with pytest.raises(AssertionError, match="nonsense"):
        soak(bad={"nonsense": ("hidden",)})


def test_a_fault_waits_for_its_target_and_tells_what_shows_it(monkeypatch: pytest.MonkeyPatch, ground: Ground) -> None:
    looks = iter([NoTarget("nothing trains"), NoTarget("nothing trains"), Done("pid 7", damaged="jobs/j")])

    def inflicted(*_: object) -> Done:
        found = next(looks)
        if isinstance(found, NoTarget):
            raise found
        return found

    monkeypatch.setattr(injector, "inflict", inflicted)
    monkeypatch.setattr(injector, "LOOK_SECONDS", 0.0)
    [fault] = inject([Drawn(Kind.TRAINER_KILLED, 0.0, 0.0, 0.5)], ground, ending=threading.Event())
    assert (fault.evidence, fault.damaged) == ("pid 7", "jobs/j")


def test_a_fault_that_finds_no_target_does_not_count(monkeypatch: pytest.MonkeyPatch, ground: Ground) -> None:
    def inflicted(*_: object) -> Done:
        raise NoTarget("nothing trains")

    monkeypatch.setattr(injector, "inflict", inflicted)
    monkeypatch.setattr(injector, "PATIENCE_SECONDS", 0.0)
    [fault] = inject([Drawn(Kind.TRAINER_KILLED, 0.0, 0.0, 0.5)], ground, ending=threading.Event())
    assert (fault.evidence, fault.why_not) == (None, "nothing trains")


def test_a_process_counts_as_killed_only_when_it_was_there_and_is_gone(sleeper: int) -> None:
    assert kill(sleeper)
    assert not kill(sleeper)


def test_a_process_of_another_birth_is_left_alone(sleeper: int) -> None:
    assert not kill(sleeper, born=1.0)
    assert Path(f"/proc/{sleeper}").exists()


def test_a_stopped_process_goes_on_afterwards(sleeper: int) -> None:
    def state() -> str:
        return Path(f"/proc/{sleeper}/stat").read_text().rpartition(")")[2].split()[0]

    with stopped(sleeper) as did:
        assert did
        assert state() == "T"
    deadline = time.monotonic() + 10.0
    while state() == "T":
        assert time.monotonic() < deadline


@pytest.mark.parametrize("roll", [0.0, 0.34, 0.5, 0.999])
def test_damage_changes_exactly_one_tensor_file(tmp_path: Path, roll: float) -> None:
    content = {name: bytes(range(64)) for name in ("a.safetensors", "b.safetensors", "manifest.json")}
    for name, each in content.items():
        (tmp_path / name).write_bytes(each)
    damage(tmp_path, roll)
    changed = [name for name, each in content.items() if (tmp_path / name).read_bytes() != each]
    assert len(changed) == 1
    assert changed[0].endswith(".safetensors")


def evidence(status: JobStatus, digest: str) -> Evidence:
    """Of one job, whose only block ended with weights of this digest."""
    outline = snapshot().model_copy(update={"status": status})
    return Evidence({JOB_ID: outline}, {JOB_ID: []}, [], {JOB_ID: {"block-0": digest}}, {JOB_ID: {}}, [])


def told(role: Role, variant: int | None = 0) -> ClientLog:
    return ClientLog(submitted=[Submitted(JOB_ID, role, variant)])


def test_weights_that_are_not_those_of_the_undisturbed_training_are_an_offence() -> None:
    undisturbed = [{"block-0": "a", "block-1": "b"}]
    assert differing(told(Role.PLAIN), evidence(JobStatus.SUCCEEDED, "a"), undisturbed) == []
    assert differing(told(Role.PLAIN), evidence(JobStatus.SUCCEEDED, "b"), undisturbed) == [f"{JOB_ID} block-0"]
    assert differing(told(Role.POISON, None), evidence(JobStatus.FAILED, "b"), undisturbed) == []


@pytest.mark.parametrize(
    ("role", "status", "fits"),
    [
        (Role.PLAIN, JobStatus.SUCCEEDED, True),
        (Role.PLAIN, JobStatus.FAILED, False),
        (Role.PLAIN, JobStatus.CANCELLED, False),
        (Role.CANCELLED, JobStatus.CANCELLED, True),
        (Role.CANCELLED, JobStatus.FAILED, False),
        (Role.PAUSED, JobStatus.CANCELLED, False),
        (Role.POISON, JobStatus.FAILED, True),
        (Role.POISON, JobStatus.SUCCEEDED, False),
    ],
)
def test_a_job_may_end_only_as_what_was_done_with_it_explains(role: Role, status: JobStatus, fits: bool) -> None:
    assert (other_ends(told(role), evidence(status, "a").outlines) == []) == fits


@pytest.mark.parametrize(("status", "excused"), [(JobStatus.CANCELLED, True), (JobStatus.SUCCEEDED, False)])
def test_only_a_cancelled_job_may_keep_a_checkpoint_that_we_damaged(status: JobStatus, excused: bool) -> None:
    ref = checkpoint(5)
    outline = snapshot(block__0={"checkpoints": (ref,)}).model_copy(update={"status": status})
    seen = replace(evidence(status, "a"), outlines={JOB_ID: outline}, found=[Found(ref.path, ref.sha256, "flipped")])
    fault = Fault(Kind.CHECKPOINT_DAMAGED, 1.0, "flipped", damaged=ref.path)
    undisturbed = [{"block-0": "a"}]
    columns = offences(seen, told(Role.CANCELLED), [fault], undisturbed)
    assert (columns["committed checkpoints not whole"] == []) == excused
    assert offences(seen, told(Role.CANCELLED), [], undisturbed)["committed checkpoints not whole"] != []


def test_a_process_that_carries_the_mark_is_found() -> None:
    with subprocess.Popen(["sleep", "600"], env={MARK: "of-this-test"}) as process:
        found = within_seconds(10.0, lambda: marked_processes("of-this-test"))
        process.kill()
    assert [line.split()[0] for line in found] == [str(process.pid)]
    assert marked_processes("of-this-test") == []


def within_seconds(seconds: float, look: Callable[[], list[str]]) -> list[str]:
    """What is seen as soon as there is something to see: a process carries its environment once it was exec'ed."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_every_job_of_a_soak_is_accepted_the_poison_too(tmp_path: Path) -> None:
    for spec in (*variants(800), poison(tmp_path / "poison")):
        facts = inspect(spec.data, modality="images", cache_dir=tmp_path / "cache")
        assert len(plan_job(spec, load_card("vit"), facts).blocks) == 2


def test_directories_of_no_job_are_leftovers(tmp_path: Path) -> None:
    for name in ("jobs/j1/block-0", "jobs/j2", "models/j3"):
        (tmp_path / name).mkdir(parents=True)
    assert unknown_directories(tmp_path, {"j1"}) == ["jobs/j2 belongs to no job", "models/j3 belongs to no job"]

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dbserve.artefacts import LocalArtefacts
from dbserve.contracts.plan import Contract
from dbserve.contracts.report import LossPoint
from dbserve.contracts.status import MemoryBytes
from dbserve.errors import CheckpointInvalid, ContractMismatch, StorageError
from tests.jobs import small_plan
from workers import checkpoint
from workers.checkpoint import MANIFEST, OPTIMIZER, SUMMARY, WEIGHTS, TrainingState, TrainingSummary
from workers.storage import digest

CONTRACT = small_plan().contract


def some_state(step: int = 40, size: int = 3) -> TrainingState:
    generator = torch.Generator().manual_seed(step)
    return TrainingState(
        step=step,
        weights={
            "a.weight": torch.randn(2, size, generator=generator),
            "half": torch.randn(5, generator=generator).bfloat16(),
        },
        optimizer={"exp_avg.a.weight": torch.randn(2, size, generator=generator), "step": torch.tensor(float(step))},
        summary=TrainingSummary(samples=1280, memory=MemoryBytes(parameters=24), loss=(LossPoint(step=40, loss=0.1),)),
    )


class Saved(NamedTuple):
    path: Path
    manifest_sha256: str


def save(directory: Path, state: TrainingState | None = None, contract: Contract = CONTRACT) -> Saved:
    """As checkpoint.save, into a store whose root is the directory's parent."""
    saved = checkpoint.save(
        LocalArtefacts(directory.parent),
        directory.name,
        state or some_state(),
        contract=contract,
        contract_hash=contract.digest(),
        run_label="job/block-0/1",
    )
    return Saved(directory.parent / saved.path, saved.manifest_sha256)


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return save(tmp_path / "attempt-1" / "step-00000040")


def test_what_is_loaded_is_bit_for_bit_what_was_saved(saved: Saved) -> None:
    state, found = some_state(), checkpoint.load(saved.path, contract=CONTRACT, expect_sha256=saved.manifest_sha256)
    assert (found.step, found.summary) == (state.step, state.summary)
    for kind in ("weights", "optimizer"):
        before, after = getattr(state, kind), getattr(found, kind)
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            assert tensor.dtype == after[name].dtype
            assert torch.equal(tensor, after[name])


def test_the_same_state_is_the_same_bytes(saved: Saved, tmp_path: Path) -> None:
    again = save(tmp_path / "attempt-2" / "step-00000040")
    assert again.manifest_sha256 == saved.manifest_sha256


def test_a_checkpoint_is_four_files_of_tensors_and_json(saved: Saved) -> None:
    assert sorted(path.name for path in saved.path.iterdir()) == sorted((WEIGHTS, OPTIMIZER, SUMMARY, MANIFEST))
    assert [path.name for path in saved.path.parent.iterdir()] == [saved.path.name]
    assert saved.manifest_sha256 == digest(saved.path / MANIFEST).sha256


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, SUMMARY, MANIFEST])
def test_a_flipped_byte_anywhere_is_refused_naming_the_file(saved: Saved, name: str) -> None:
    path = saved.path / name
    original = path.read_bytes()
    for place in (0, len(original) // 2, len(original) - 1):
        changed = bytearray(original)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointInvalid, match=name):
            checkpoint.load(saved.path, contract=CONTRACT, expect_sha256=saved.manifest_sha256)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, SUMMARY, MANIFEST])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_truncated_or_missing_file_is_refused_naming_it(saved: Saved, name: str, damage: str) -> None:
    path = saved.path / name
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(CheckpointInvalid, match=name):
        checkpoint.load(saved.path, contract=CONTRACT)


def test_another_whole_checkpoint_in_its_place_is_refused(saved: Saved, tmp_path: Path) -> None:
    other = save(tmp_path / "other", some_state(step=80))
    with pytest.raises(CheckpointInvalid, match="committed with"):
        checkpoint.load(other.path, contract=CONTRACT, expect_sha256=saved.manifest_sha256)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("edges", (80.0, 3.0, 0.002)),
        ("p_mean", 0.123),
        ("class_names", tuple("abcdefghij")),
        ("layers", ((0, 2), (2, 2))),
        ("codes_seed", 99),
        ("preprocessing", "x/255"),
    ],
)
def test_a_foreign_contract_is_refused_naming_the_field(saved: Saved, field: str, value: object) -> None:
    other = CONTRACT.model_copy(update={field: value})
    with pytest.raises(ContractMismatch, match=rf"differ: {field}$"):
        checkpoint.load(saved.path, contract=other)


def test_weights_of_another_contract_under_a_forged_manifest_are_refused(saved: Saved, tmp_path: Path) -> None:
    foreign = save(tmp_path / "foreign", contract=CONTRACT.model_copy(update={"p_mean": 0.1}))
    shutil.copy(foreign.path / WEIGHTS, saved.path / WEIGHTS)
    manifest = json.loads((saved.path / MANIFEST).read_text())
    manifest["files"][WEIGHTS] = digest(saved.path / WEIGHTS).model_dump()
    (saved.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ContractMismatch, match="contract_hash"):
        checkpoint.load(saved.path, contract=CONTRACT)


def test_a_manifest_that_names_a_file_elsewhere_is_refused(saved: Saved) -> None:
    manifest = json.loads((saved.path / MANIFEST).read_text())
    manifest["files"]["../secret"] = manifest["files"][WEIGHTS]
    (saved.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointInvalid, match="files are"):
        checkpoint.load(saved.path, contract=CONTRACT)


def test_a_hash_that_is_not_the_contracts_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ContractMismatch, match="contract_hash"):
        checkpoint.save(
            LocalArtefacts(tmp_path), "c", some_state(), contract=CONTRACT, contract_hash="0" * 64, run_label="j/t/1"
        )
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_never_overwritten(saved: Saved) -> None:
    with pytest.raises(StorageError):
        save(saved.path, some_state(step=99))
    assert checkpoint.load(saved.path, contract=CONTRACT, expect_sha256=saved.manifest_sha256).step == 40


@pytest.mark.parametrize("moment", ["before the optimizer", "before the manifest", "before the rename"])
def test_a_save_that_is_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    class Cut(BaseException):
        """Not an error that anything handles."""

    def cut(*_: object, **__: object) -> None:
        raise Cut

    def after(calls: int, function: Callable[..., object]) -> Callable[..., object]:
        left = iter([function] * calls)
        return lambda *arguments, **named: next(left, cut)(*arguments, **named)

    match moment:
        case "before the optimizer":
            monkeypatch.setattr(checkpoint, "write_tensors", after(1, checkpoint.write_tensors))
        case "before the manifest":
            monkeypatch.setattr(checkpoint, "digest", cut)
        case _:
            monkeypatch.setattr("pathlib.Path.rename", cut)
    with pytest.raises(Cut):
        save(tmp_path / "step-00000040")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here: needs root with CAP_SYS_ADMIN")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_a_storage_error_and_leaves_the_older_checkpoint(tiny_disk: Path) -> None:
    older = save(tiny_disk / "step-00000040")
    with pytest.raises(StorageError, match="step-00000080"):
        save(tiny_disk / "step-00000080", some_state(step=80, size=1_000_000))
    assert [path.name for path in tiny_disk.iterdir()] == ["step-00000040"]
    assert checkpoint.load(older.path, contract=CONTRACT, expect_sha256=older.manifest_sha256).step == 40


def test_everything_is_synced_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    visible: list[bool] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        visible.append((tmp_path / "step-00000040").exists())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    save(tmp_path / "step-00000040")
    assert {WEIGHTS, OPTIMIZER, SUMMARY, MANIFEST} <= set(synced[:4])
    assert visible == [False] * 5 + [True]  # four files and their directory, then the parent
    assert synced[-1] == tmp_path.name

import json
import shutil
from pathlib import Path

import pytest
import torch

from dbserve.artefacts import LocalArtefacts
from dbserve.contracts.plan import Contract, JobPlan
from dbserve.contracts.status import CheckpointRef
from dbserve.errors import CheckpointInvalid, ContractMismatch
from tests.artefacts import flip, save
from tests.jobs import small_plan, small_spec
from workers import checkpoint
from workers.assemble import MODEL, ModelManifest, assemble, load_model
from workers.checkpoint import TrainingState, TrainingSummary
from workers.storage import digest
from workers.trainer import build_network

SPEC = small_spec()
PLAN = small_plan(SPEC)


Finals = dict[int, CheckpointRef]


def trained(root: Path, plan: JobPlan = PLAN, *, step: int = 20, place: str = "jobs/job") -> Finals:
    """A final checkpoint of every block, with the weights it would begin with."""
    return {
        block.index: save(
            root,
            f"{place}/block-{block.index}/step-{step}",
            TrainingState(
                step=step,
                weights=build_network(SPEC, plan, plan.task(f"block-{block.index}")).state_dict(),
                optimizer={"step": torch.tensor(1.0)},
                summary=TrainingSummary(),
            ),
            plan,
            run=f"job/block-{block.index}/1",
        )
        for block in plan.blocks
    }


def assembled(root: Path, finals: Finals, plan: JobPlan = PLAN, *, place: str = "models/m") -> ModelManifest:
    return assemble(plan, LocalArtefacts(root), finals, place, job_id="job")


@pytest.fixture
def saved(tmp_path: Path) -> Finals:
    return trained(tmp_path)


@pytest.fixture
def model(tmp_path: Path, saved: Finals) -> Path:
    assembled(tmp_path, saved)
    return tmp_path / "models/m"


def test_an_assembled_model_holds_every_blocks_weights_and_where_they_come_from(
    tmp_path: Path, model: Path, saved: Finals
) -> None:
    manifest, blocks = load_model(model, contract=PLAN.contract)
    assert (manifest.contract_hash, manifest.job_id) == (PLAN.contract_hash, "job")
    for entry, block, planned in zip(manifest.blocks, blocks, PLAN.blocks, strict=True):
        weights = checkpoint.load(tmp_path / saved[entry.index].path, contract=PLAN.contract).weights
        assert all(torch.equal(tensor, weights[name]) for name, tensor in block.state_dict().items())
        assert not block.training
        assert (entry.layers, entry.sigma_max, entry.steps) == (planned.layers, planned.sigma_max, 20)
        assert entry.run == f"job/block-{entry.index}/1"
        assert entry.parameters == planned.parameters
        assert entry.checkpoint == saved[entry.index]


def test_no_storage_is_shared_between_blocks(model: Path) -> None:
    _, blocks = load_model(model)
    stored = [{tensor.untyped_storage().data_ptr() for tensor in block.parameters()} for block in blocks]
    assert stored[0].isdisjoint(stored[1])


def test_loading_a_model_moves_nobodys_random_numbers(model: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_model(model)
    assert torch.equal(torch.rand(3), expected)


def with_field(contract: Contract, field: str) -> JobPlan:
    changed = contract.model_copy(update={field: getattr(contract, field) + 0.1})
    return PLAN.model_copy(update={"contract": changed, "contract_hash": changed.digest()})


@pytest.mark.parametrize("field", ["p_mean", "sigma_max", "sigma_data"])
def test_a_block_trained_under_another_contract_is_refused_naming_the_field(tmp_path: Path, field: str) -> None:
    other = trained(tmp_path, with_field(PLAN.contract, field), place="jobs/other")
    mixed = {**trained(tmp_path), 1: other[1]}
    with pytest.raises(ContractMismatch, match=rf"step-20 .*differ: {field}$"):
        assembled(tmp_path, mixed)
    assert not list((tmp_path / "models").iterdir())


def test_checkpoints_in_each_others_place_are_refused(tmp_path: Path, saved: Finals) -> None:
    with pytest.raises(ContractMismatch, match="task is 'block-1', but block 0 is trained by 'block-0'"):
        assembled(tmp_path, {0: saved[1], 1: saved[0]})


def test_a_block_that_did_not_train_to_its_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match="step is 10, but block-0 ends at 20"):
        assembled(tmp_path, trained(tmp_path, step=10))


def test_a_missing_block_is_refused_by_number(tmp_path: Path, saved: Finals) -> None:
    with pytest.raises(CheckpointInvalid, match="no checkpoint of block 1"):
        assembled(tmp_path, {0: saved[0]})


def test_a_damaged_checkpoint_is_refused_and_nothing_is_left(tmp_path: Path, saved: Finals) -> None:
    flip(tmp_path / saved[1].path / checkpoint.WEIGHTS)
    with pytest.raises(CheckpointInvalid, match="sha256"):
        assembled(tmp_path, saved)
    assert not list((tmp_path / "models").iterdir())


def test_a_checkpoint_other_than_the_store_points_at_is_refused(tmp_path: Path, saved: Finals) -> None:
    wrong = saved | {0: saved[0].model_copy(update={"sha256": "0" * 64})}
    with pytest.raises(CheckpointInvalid, match="committed with"):
        assembled(tmp_path, wrong)


def test_assembling_twice_keeps_the_first_model(tmp_path: Path, model: Path, saved: Finals) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in model.iterdir()}
    again = assembled(tmp_path, saved)
    assert again == load_model(model)[0]
    assert {path.name: path.stat().st_mtime_ns for path in model.iterdir()} == before


def test_assembling_over_a_damaged_model_replaces_it(tmp_path: Path, model: Path, saved: Finals) -> None:
    flip(model / "block-0.safetensors")
    assembled(tmp_path, saved)
    load_model(model, contract=PLAN.contract)


def test_assembling_other_checkpoints_replaces_the_model(tmp_path: Path, model: Path, saved: Finals) -> None:
    later = saved | {0: trained(tmp_path, place="jobs/again")[0]}
    assembled(tmp_path, later)
    assert load_model(model, contract=PLAN.contract)[0].blocks[0].checkpoint == later[0]


def swap_files(model: Path) -> None:
    first, second = (model / f"block-{index}.safetensors" for index in (0, 1))
    first.rename(model / "x")
    second.rename(first)
    (model / "x").rename(second)


def edit(model: Path, **changes: object) -> None:
    manifest = json.loads((model / MODEL).read_text())
    (model / MODEL).write_text(json.dumps(manifest | changes))


def test_swapped_block_files_are_refused_by_the_place_they_carry(model: Path) -> None:
    swap_files(model)
    with pytest.raises(ContractMismatch, match=r"block-0\.safetensors: block is '1' in the file, '0' was expected"):
        load_model(model)


def test_swapped_files_under_a_forged_manifest_are_refused_too(model: Path) -> None:
    swap_files(model)
    blocks = json.loads((model / MODEL).read_text())["blocks"]
    for block in blocks:
        block["bytes"] = digest(model / block["file"]).model_dump()
    edit(model, blocks=blocks)
    with pytest.raises(ContractMismatch, match="block is '1'"):
        load_model(model)


def test_reordered_entries_are_refused(model: Path) -> None:
    edit(model, blocks=json.loads((model / MODEL).read_text())["blocks"][::-1])
    with pytest.raises(ContractMismatch, match=r"order \(1, 0\)"):
        load_model(model)


def test_a_block_left_out_is_refused(model: Path) -> None:
    edit(model, blocks=json.loads((model / MODEL).read_text())["blocks"][:1])
    with pytest.raises(ContractMismatch, match="order"):
        load_model(model)


@pytest.mark.parametrize("index", [0, 1])
def test_tampered_weights_are_refused_naming_the_file(model: Path, index: int) -> None:
    flip(model / f"block-{index}.safetensors")
    with pytest.raises(CheckpointInvalid, match=f"block-{index}.safetensors: sha256"):
        load_model(model)


def test_a_file_of_another_model_is_refused_by_its_contract(tmp_path: Path, model: Path) -> None:
    other = with_field(PLAN.contract, "p_mean")
    assembled(tmp_path, trained(tmp_path, other, place="jobs/other"), other, place="models/other")
    shutil.copy(tmp_path / "models/other/block-0.safetensors", model)
    with pytest.raises(ContractMismatch, match="contract_hash"):
        load_model(model)


def test_a_model_of_another_contract_is_refused_naming_the_field(model: Path) -> None:
    with pytest.raises(ContractMismatch, match=r"differ: p_mean$"):
        load_model(model, contract=with_field(PLAN.contract, "p_mean").contract)


def test_a_contract_edited_in_the_manifest_is_refused(model: Path) -> None:
    contract = json.loads((model / MODEL).read_text())["contract"]
    edit(model, contract=contract | {"edges": contract["edges"][::-1]})
    with pytest.raises(CheckpointInvalid, match="contract_hash"):
        load_model(model)


def test_a_directory_without_a_manifest_is_no_model(model: Path) -> None:
    (model / MODEL).unlink()
    with pytest.raises(CheckpointInvalid, match=r"model\.json is missing"):
        load_model(model)

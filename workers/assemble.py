"""Assembly: B trained blocks and their plan become one model directory; and back, refusing what does not belong.

    models/<model_id>/block-0.safetensors ...  metadata: contract_hash, block, layers
                     /model.json               ModelManifest, visible last

Accuracy does not reveal a wrong order or a foreign code table (docs/method.md), so the files themselves must. The whole
network is never in memory: blocks are copied, verified and loaded one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from dbserve.artefacts import Artefacts, Place
from dbserve.contracts.plan import BlockPlan, Contract, JobPlan, TaskKind
from dbserve.contracts.status import CheckpointRef
from dbserve.errors import CheckpointInvalid, ContractMismatch, StorageError
from workers import checkpoint
from workers.models import architecture
from workers.storage import FileDigest, check_digest, digest, read_document, read_tensors, write_tensors

MODEL = "model.json"


class BlockEntry(BaseModel, frozen=True):
    """One block of an assembled model, and where it comes from."""

    index: int
    file: str
    bytes: FileDigest
    layers: tuple[int, int]  # [start, stop)
    sigma_min: float
    sigma_max: float
    parameters: int  # a count
    steps: int
    run: str  # "<job>/<task>/<attempt>": who trained it
    checkpoint: CheckpointRef | None  # where its weights were copied from


class ModelManifest(BaseModel, frozen=True):
    """model.json: everything needed to load the model, and where each block comes from."""

    format: int = 1
    job_id: str
    created_at: str  # ISO 8601, UTC
    contract: Contract
    contract_hash: str
    blocks: tuple[BlockEntry, ...]  # block 0 owns sigma_max and comes first


def assemble(
    plan: JobPlan, artefacts: Artefacts, finals: Mapping[int, CheckpointRef], target: Place, *, job_id: str
) -> ModelManifest:
    """Put the blocks' final checkpoints (block index -> the store's pointer) together in `target`, or nothing at all.

    The pointers' digests are verified too, and kept in the manifest. A model that an earlier attempt left whole in
    `target`, of the same checkpoints, is taken as it is; anything else there is replaced.
    Raises ContractMismatch naming the field when a checkpoint was made under another contract or is another block's,
    CheckpointInvalid when one is missing, damaged or not trained to its end, StorageError when something cannot be
    read or `target` cannot be written.
    """
    if missing := [block.index for block in plan.blocks if block.index not in finals]:
        raise CheckpointInvalid(f"no checkpoint of block {', '.join(map(str, missing))}: nothing to assemble")
    if artefacts.names(target):
        if (earlier := _left_whole(plan, artefacts, finals, target)) is not None:
            return earlier
        artefacts.remove(target)
    with artefacts.whole(target, last=MODEL) as building:
        manifest = ModelManifest(
            job_id=job_id,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            contract=plan.contract,
            contract_hash=plan.contract_hash,
            blocks=tuple(_take(block, plan, artefacts, finals[block.index], building) for block in plan.blocks),
        )
        (building / MODEL).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    return manifest


@dataclass(frozen=True)
class StoredModel:
    """A model directory of which every byte is verified. Its blocks are built one by one, when they are asked for."""

    directory: Path
    manifest: ModelManifest

    def block(self, index: int) -> nn.Module:
        """On the CPU, in evaluation mode. Raises CheckpointInvalid where the file does not fit the contract's block."""
        contract, (start, stop) = self.manifest.contract, self.manifest.blocks[index].layers
        build = partial(architecture(contract.architecture).denoiser, contract, stop - start)
        path = _file_of(self.directory, index)
        return _filled(build, read_tensors(path), str(path))


def load_model(directory: Path, *, contract: Contract | None = None) -> tuple[ModelManifest, tuple[nn.Module, ...]]:
    """The model's manifest and all its blocks in order, on the CPU, in evaluation mode. Raises as open_model() does."""
    model = open_model(directory, contract=contract)
    return model.manifest, tuple(model.block(entry.index) for entry in model.manifest.blocks)


def open_model(directory: Path, *, contract: Contract | None = None) -> StoredModel:
    """The model that lies there, verified.

    Raises ContractMismatch naming the field where the model is not of `contract` or a file is not the block its place
    asks for, CheckpointInvalid where bytes were changed or are missing.
    """
    manifest = _read_manifest(directory)
    checkpoint.refuse_other_contract(
        manifest.contract, manifest.contract_hash, contract or manifest.contract, str(directory)
    )
    expected = tuple(range(len(manifest.contract.layers)))
    if (found := tuple(entry.index for entry in manifest.blocks)) != expected:
        raise ContractMismatch(f"{directory / MODEL}: blocks are in the order {found}, the contract has {expected}")
    for entry in manifest.blocks:
        _verify_block(directory, entry, manifest)
    return StoredModel(directory, manifest)


def _left_whole(
    plan: JobPlan, artefacts: Artefacts, finals: Mapping[int, CheckpointRef], target: Place
) -> ModelManifest | None:
    """The model in `target`, if it is whole and made of the very checkpoints the store points at."""
    with artefacts.fetch(target) as directory:
        try:
            manifest = open_model(directory, contract=plan.contract).manifest
        except (CheckpointInvalid, ContractMismatch):
            return None
    same = all(entry.checkpoint == finals[entry.index] for entry in manifest.blocks)
    return manifest if same else None


def _take(block: BlockPlan, plan: JobPlan, artefacts: Artefacts, pointer: CheckpointRef, building: Path) -> BlockEntry:
    with artefacts.fetch(pointer.path) as source:
        return _copied(block, plan, source, pointer, building)


def _copied(block: BlockPlan, plan: JobPlan, source: Path, pointer: CheckpointRef, building: Path) -> BlockEntry:
    task = next(task for task in plan.tasks if task.kind is TaskKind.BLOCK and task.index == block.index)
    manifest = checkpoint.verify(source, contract=plan.contract, expect_sha256=pointer.sha256)
    if manifest.task != task.name:
        raise ContractMismatch(
            f"{source}: task is {manifest.task!r}, but block {block.index} is trained by {task.name!r}"
        )
    if manifest.step != task.steps:
        raise CheckpointInvalid(f"{source}: step is {manifest.step}, but {task.name} ends at {task.steps}")
    file = _file_of(building, block.index)
    weights = checkpoint.answering_weights(source)
    write_tensors(file, weights, _metadata(plan.contract_hash, block.index, block.layers))
    return BlockEntry(
        index=block.index,
        file=file.name,
        bytes=digest(file),
        layers=block.layers,
        sigma_min=block.sigma_min,
        sigma_max=block.sigma_max,
        parameters=sum(tensor.numel() for tensor in weights.values()),
        steps=manifest.step,
        run=manifest.run,
        checkpoint=pointer,
    )


def _metadata(contract_hash: str, index: int, layers: tuple[int, int]) -> dict[str, str]:
    return {"contract_hash": contract_hash, "block": str(index), "layers": f"{layers[0]}:{layers[1]}"}


def _read_manifest(directory: Path) -> ModelManifest:
    path = directory / MODEL
    try:
        return ModelManifest.model_validate_json(read_document(path))
    except FileNotFoundError as error:
        raise CheckpointInvalid(f"{path} is missing: no whole model lies there") from error
    except ValidationError as error:
        raise CheckpointInvalid(f"{path} is no model manifest: {error.errors(include_url=False)[0]['loc']}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def _file_of(directory: Path, index: int) -> Path:
    """Never a name out of the manifest."""
    return directory / f"block-{index}.safetensors"


def _verify_block(directory: Path, entry: BlockEntry, manifest: ModelManifest) -> None:
    if entry.layers != manifest.contract.layers[entry.index]:
        raise ContractMismatch(f"{directory / MODEL}: layers of block {entry.index} are not the contract's")
    path = _file_of(directory, entry.index)
    checkpoint.refuse_other_metadata(path, _metadata(manifest.contract_hash, entry.index, entry.layers))
    check_digest(path, entry.bytes)


def baseline_of(contract: Contract, layers: int, weights: Mapping[str, Tensor], *, where: str) -> nn.Module:
    """A plain network with these weights, in evaluation mode. Raises CheckpointInvalid naming what does not fit."""
    return _filled(partial(architecture(contract.architecture).baseline, contract, layers), weights, where)


def _filled(build: Callable[[], nn.Module], weights: Mapping[str, Tensor], where: str) -> nn.Module:
    # building draws an initialisation; nobody else's random numbers may move by it
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        network = build()
    try:
        network.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        raise CheckpointInvalid(f"{where} does not fit the contract's network: {error}") from error
    return network.eval()

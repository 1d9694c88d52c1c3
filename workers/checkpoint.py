"""Checkpoints: whole or invisible. Content first, the manifest with its digests last.

.../attempt-1/step-00000200-5f0c9a3e/weights.safetensors    metadata: contract_hash, run, step
                                    /optimizer.safetensors  the same
                                    /ema.safetensors        the same; only where averaged weights are kept
                                    /summary.json           TrainingSummary
                                    /manifest.json          CheckpointManifest: sha256 and size of each, the contract
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from dbserve.artefacts import Artefacts, Place
from dbserve.contracts.plan import Contract
from dbserve.contracts.report import LossPoint
from dbserve.contracts.status import MemoryBytes
from dbserve.errors import CheckpointInvalid, ContractMismatch, StorageError
from dbserve.failpoints import failpoint
from workers.storage import (
    FileDigest,
    check_digest,
    digest,
    read_document,
    read_metadata,
    read_tensors,
    write_tensors,
)

WEIGHTS, OPTIMIZER, SUMMARY, MANIFEST = "weights.safetensors", "optimizer.safetensors", "summary.json", "manifest.json"
AVERAGE = "ema.safetensors"
_CONTENT = (WEIGHTS, OPTIMIZER, SUMMARY)
_TENSORS = (WEIGHTS, OPTIMIZER, AVERAGE)


class RateTrial(BaseModel, frozen=True):
    """What a short training at one learning rate came to: the mean loss of its last quarter; None: not finite."""

    rate: float
    loss: float | None


class TrainingSummary(BaseModel, frozen=True):
    """What a task's training has been so far, over all its attempts."""

    samples: int = 0
    train_seconds: float = 0.0  # inside steps, the wait for data included
    data_wait_seconds: float = 0.0
    memory: MemoryBytes = MemoryBytes()
    loss: tuple[LossPoint, ...] = ()  # thinned: at most about 200
    learning_rate: float | None = None  # peak; of a scan, the one that was kept. None: not known yet
    scan: tuple[RateTrial, ...] = ()
    scan_steps: int = 0  # optimizer steps of all the trials; neither in train_seconds nor in samples
    scan_seconds: float = 0.0


@dataclass(frozen=True)
class TrainingState:
    """All that a resumed training needs. Random numbers are a function of (seed, task, step) and are not kept.

    `weights`, `optimizer` and `average` hold CPU tensors; the optimizer's are flat: "exp_avg.<parameter>",
    "exp_avg_sq.<parameter>", "step", of muon "momentum_buffer.<parameter>". `average`, under the names of `weights`, is
    empty where no average is kept.
    """

    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    summary: TrainingSummary
    average: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


class CheckpointManifest(BaseModel, frozen=True):
    """The last file written; without it a directory is no checkpoint."""

    format: int = 1
    run: str  # "<job>/<task>/<attempt>": who wrote it
    step: int
    contract: Contract
    contract_hash: str
    files: dict[str, FileDigest]
    torch: str

    @property
    def task(self) -> str:
        """Raises CheckpointInvalid when `run` does not name one."""
        parts = self.run.split("/")
        if len(parts) != 3:
            raise CheckpointInvalid(f"run {self.run!r} is not <job>/<task>/<attempt>")
        return parts[1]


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: its place under the artefact root, and the digest that the store's pointer carries."""

    path: str
    manifest_sha256: str


def save(
    artefacts: Artefacts, place: Place, state: TrainingState, *, contract: Contract, contract_hash: str, run_label: str
) -> Saved:
    """Write the checkpoint `place`, e.g. .../attempt-1/step-00000200-5f0c9a3e, where nothing may be yet.

    `run_label` is str(Run). Raises StorageError when it cannot be written whole; no checkpoint is there then.
    """
    if contract.digest() != contract_hash:
        raise ContractMismatch(f"contract_hash {contract_hash} is not the digest of the contract to be saved")
    metadata = {"contract_hash": contract_hash, "run": run_label, "step": str(state.step)}
    with artefacts.whole(place, last=MANIFEST) as building:
        write_tensors(building / WEIGHTS, state.weights, metadata)
        write_tensors(building / OPTIMIZER, state.optimizer, metadata)
        if state.average:
            write_tensors(building / AVERAGE, state.average, metadata)
        (building / SUMMARY).write_text(state.summary.model_dump_json(), encoding="utf-8")
        manifest = CheckpointManifest(
            run=run_label,
            step=state.step,
            contract=contract,
            contract_hash=contract_hash,
            files={path.name: digest(path) for path in sorted(building.iterdir())},
            torch=torch.__version__,
        )
        (building / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        manifest_sha256 = digest(building / MANIFEST).sha256
        failpoint("checkpoint.staged")
    return Saved(path=str(place), manifest_sha256=manifest_sha256)


def answering_weights(directory: Path) -> dict[str, Tensor]:
    """The weights that a finished training answers with: the averaged ones where they are kept.

    The checkpoint has passed verify().
    """
    return read_tensors(directory / (AVERAGE if (directory / AVERAGE).exists() else WEIGHTS))


def load(directory: Path, *, contract: Contract, expect_sha256: str | None = None) -> TrainingState:
    """The state in a checkpoint directory, every byte verified first.

    Raises ContractMismatch naming the fields that differ, CheckpointInvalid naming the file or field that is wrong.
    `expect_sha256` is the digest of the manifest that the store points at.
    """
    manifest = verify(directory, contract=contract, expect_sha256=expect_sha256)
    return TrainingState(
        step=manifest.step,
        weights=read_tensors(directory / WEIGHTS),
        optimizer=read_tensors(directory / OPTIMIZER),
        summary=read_summary(directory),
        average=read_tensors(directory / AVERAGE) if AVERAGE in manifest.files else {},
    )


def read_summary(directory: Path) -> TrainingSummary:
    """The summary of a checkpoint that verify() has passed."""
    try:
        return TrainingSummary.model_validate_json(read_document(directory / SUMMARY))
    except ValidationError as error:
        raise CheckpointInvalid(f"{directory / SUMMARY}: {_where(error)}") from error


def verify(directory: Path, *, contract: Contract, expect_sha256: str | None = None) -> CheckpointManifest:
    """The manifest, once the contract and every file's bytes are found to agree with it. Raises as load() does."""
    manifest = read_manifest(directory, expect_sha256=expect_sha256)
    refuse_other_contract(manifest.contract, manifest.contract_hash, contract, str(directory))
    if set(manifest.files) - {AVERAGE} != set(_CONTENT):
        raise CheckpointInvalid(f"{directory / MANIFEST}: files are {sorted(manifest.files)}, not {sorted(_CONTENT)}")
    if AVERAGE not in manifest.files and (directory / AVERAGE).exists():
        raise CheckpointInvalid(f"{directory / AVERAGE} is not in the manifest")
    for name, expected in manifest.files.items():
        check_digest(directory / name, expected)
    said = {"contract_hash": manifest.contract_hash, "run": manifest.run, "step": str(manifest.step)}
    for name in _TENSORS:
        if name in manifest.files:
            refuse_other_metadata(directory / name, said)
    return manifest


def read_manifest(directory: Path, *, expect_sha256: str | None = None) -> CheckpointManifest:
    """Raises CheckpointInvalid when the manifest is missing, another one, or not a manifest."""
    path = directory / MANIFEST
    try:
        if expect_sha256 is not None and digest(path).sha256 != expect_sha256:
            raise CheckpointInvalid(f"{path}: sha256 is not the one the checkpoint was committed with")
        return CheckpointManifest.model_validate_json(read_document(path))
    except FileNotFoundError as error:
        raise CheckpointInvalid(f"{path} is missing: no whole checkpoint lies there") from error
    except ValidationError as error:
        raise CheckpointInvalid(f"{path}: {_where(error)}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def refuse_other_contract(found: Contract, found_hash: str, wanted: Contract, where: str) -> None:
    """Raises ContractMismatch naming the differing fields, CheckpointInvalid when hash and contract disagree."""
    if differing := found.differences(wanted):
        raise ContractMismatch(f"{where} was made under another contract; these fields differ: {', '.join(differing)}")
    if found_hash != found.digest():
        raise CheckpointInvalid(f"{where}: contract_hash is not the digest of its contract")


def refuse_other_metadata(path: Path, wanted: Mapping[str, str]) -> None:
    """Raises ContractMismatch naming the entry of a tensor file's own metadata that is not the wanted one."""
    found = read_metadata(path)
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ContractMismatch(f"{path}: {name} is {found.get(name)!r} in the file, {value!r} was expected")


def _where(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}"

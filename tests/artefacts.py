"""Checkpoints in an artefact store, as a task would leave them."""

from pathlib import Path

from dbserve.artefacts import Artefacts, LocalArtefacts
from dbserve.contracts.plan import JobPlan
from dbserve.contracts.status import CheckpointRef
from workers import checkpoint
from workers.checkpoint import TrainingState


def save(artefacts: Artefacts | Path, place: str, state: TrainingState, plan: JobPlan, *, run: str) -> CheckpointRef:
    """Saves it under the contract of `plan`; the pointer that the store would hold. A path is a local root."""
    store = LocalArtefacts(artefacts) if isinstance(artefacts, Path) else artefacts
    saved = checkpoint.save(
        store, place, state, contract=plan.contract, contract_hash=plan.contract_hash, run_label=run
    )
    return CheckpointRef(step=state.step, path=saved.path, sha256=saved.manifest_sha256, attempt=1, at=0.0)


def flip(path: Path) -> None:
    """Changes one bit of the last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

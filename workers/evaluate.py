"""evaluate(): everything measured about one job, as a Report. No Ray, no Redis, no HTTP."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from dbserve.contracts.card import Family
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import BASELINES, JobPlan
from dbserve.contracts.report import Report
from dbserve.contracts.status import OUT_OF_MEMORY, Task
from workers.assemble import StoredModel, open_model
from workers.data import Dataset
from workers.evaluation import classification, generation, masked_text, next_token
from workers.evaluation.costs import cost_row, layers_of, loss_curve, memory_report, verified_summary
from workers.evaluation.findings import shared_findings
from workers.evaluation.residence import Chosen, InTurn, Room, Stored
from workers.evaluation.subject import Examined, Subject
from workers.models import architecture

LEAST_ROOM = 64 * 2**20  # bytes

EXAMINATIONS: dict[Family, Callable[[Subject], Examined]] = {
    "classification": classification.examine,
    "generation": generation.examine,
    "masked_text": masked_text.examine,
    "next_token": next_token.examine,
}


@torch.inference_mode()
def evaluate(
    spec: JobSpec,
    plan: JobPlan,
    data: Dataset,
    model_dir: Path,
    finals: Mapping[str, Path],
    runs: Sequence[Task],
    *,
    job_id: str,
    model_id: str,
    device: torch.device | str = "cpu",
) -> Report:
    """Examine an assembled model against the baselines of its job, as its architecture's family is examined.

    `finals`: the final checkpoint by name of every task that trained to its end. A baseline may be missing there, and
    is then missing in the report, with a warning. `runs`: the tasks as the store has them (node, attempts, times).
    Raises ContractMismatch or CheckpointInvalid where an artefact is not what the plan says.
    """
    device = torch.device(device)
    run_of = {run.run.task: run for run in runs}
    lost = {
        task.name: plan.network_of(task).memory.total
        for task in plan.tasks
        if task.kind in BASELINES and task.name not in finals
    }
    plan = plan.model_copy(update={"tasks": tuple(task for task in plan.tasks if task.name not in lost)})
    trained = {task.name: verified_summary(plan, task, finals) for task in plan.tasks if task.steps}
    model = open_model(model_dir, contract=plan.contract)
    card = architecture(plan.contract.architecture).card()
    room = Room(room_of(plan))
    subject = Subject(
        spec=spec,
        plan=plan,
        data=data,
        blocks=_blocks(model, plan, room, device),
        finals=finals,
        device=device,
        room=room,
    )
    examined = EXAMINATIONS[card.family](subject)
    memory = memory_report(plan, trained)
    cost = tuple(
        cost_row(plan, plan.task(name), summary, run_of.get(name), plan.training.batch_size)
        for name, summary in trained.items()
    )
    return Report(
        job_id=job_id,
        job_name=spec.name,
        model_id=model_id,
        contract_hash=model.manifest.contract_hash,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        architecture=plan.contract.architecture,
        dataset=spec.data.uri,
        train_rows=len(data.train),
        validation_rows=len(subject.held_out(data.validation)),
        test_rows=len(subject.held_out(data.test)),
        classes=len(plan.contract.class_names) or None,
        blocks=len(plan.blocks),
        depth=layers_of(plan.end_to_end),
        seed=spec.training.seed,
        steps_per_task=spec.training.steps,
        trunk_steps=spec.blocks.branch.steps if spec.blocks.branch else 0,
        decode=examined.decode,
        validation_accuracy=examined.validation_accuracy,
        quality=examined.quality,
        experimental=card.experimental,
        memory=memory,
        cost=cost,
        loss=tuple(loss_curve(name, summary) for name, summary in trained.items()),
        diagnosis=examined.diagnosis,
        swap_accuracy=examined.swap_accuracy,
        warnings=(
            *plan.warnings,
            *(_why_missing(name, run_of.get(name), needed) for name, needed in lost.items()),
            *examined.warnings,
        ),
        findings=(*examined.findings, *shared_findings(memory, cost, len(subject.held_out(data.test)))),
        versions=_versions(),
        hardware=_hardware(device),
    )


def _blocks(model: StoredModel, plan: JobPlan, room: Room, device: torch.device) -> Sequence[nn.Module]:
    """In order, on the device, in the room in turn."""

    def load(index: int) -> nn.Module:
        return model.block(index).to(device)

    names = tuple(f"block-{block.index}" for block in plan.blocks)
    stored = {
        name: Stored(size=4 * block.parameters, load=partial(load, block.index))
        for name, block in zip(names, plan.blocks, strict=True)
    }
    return Chosen(InTurn(room, stored), names)


def room_of(plan: JobPlan) -> int:
    """Bytes of weights that may be in memory together: what the training of a block held from step to step, so that
    whoever could train the blocks can examine them; more where that is little, and taking turns saves nothing."""
    memory = [block.memory for block in plan.blocks]
    return max(LEAST_ROOM, *(block.parameters + block.gradients + block.optimizer for block in memory))


def _why_missing(baseline: str, run: Task | None, needed: int) -> str:
    """`needed`: bytes in training, as planned."""
    if run is None or run.reason is None:
        return f"{baseline} could not be trained here: it did not finish. Nothing is said against it"
    size = f", of {needed:,} bytes that its training needs by plan" if run.reason in OUT_OF_MEMORY else ""
    return f"{baseline} could not be trained here: {run.reason}{size} ({run.message}). Nothing is said against it"


def _versions() -> dict[str, str]:
    packages = ("dbserve", "torch", "numpy")
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {len(os.sched_getaffinity(0))} CPU cores, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())

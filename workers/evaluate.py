"""evaluate(): everything measured about one job, as a Report. No Ray, no Redis, no HTTP."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import BASELINES, JobPlan
from dbserve.contracts.report import DecodeRule, Quality, Report
from dbserve.contracts.status import Task
from workers.assemble import load_model
from workers.data import Dataset, Split
from workers.evaluation.answers import Answers, BlockChain, as_tensor, chain_answers
from workers.evaluation.baselines import Baselines, baseline_answers, verified_summary
from workers.evaluation.costs import cost_row, layers_of, loss_curve, memory_report
from workers.evaluation.diagnose import diagnose
from workers.evaluation.findings import Compared, findings, warnings
from workers.evaluation.scores import accuracy, mean_member, score

DECODE_RULES: tuple[DecodeRule, ...] = ("chain", "product_of_experts", "first_block")  # a tie goes to the earlier


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
    """Examine an assembled model against the baselines of its job.

    `finals`: the final checkpoint by name of every task that trained to its end. A baseline may be missing there, and
    is then missing in the report, with a warning. `runs`: the tasks as the store has them (node, attempts, times).
    Raises ContractMismatch or CheckpointInvalid where an artefact is not what the plan says.
    """
    device = torch.device(device)
    batch_size = spec.evaluation.batch_size
    run_of = {run.run.task: run for run in runs}
    lost = [task.name for task in plan.tasks if task.kind in BASELINES and task.name not in finals]
    plan = plan.model_copy(update={"tasks": tuple(task for task in plan.tasks if task.name not in lost)})
    trained = {task.name: verified_summary(plan, task, finals) for task in plan.tasks if task.steps}
    manifest, blocks = load_model(model_dir, contract=plan.contract)
    model = BlockChain.of(manifest.contract, blocks, device)
    labels = as_tensor(data.test.targets)

    answers = chain_answers(model, data.test, batch_size)
    baselines = baseline_answers(plan, finals, data.test, batch_size, device)
    validation_accuracy = _validation_accuracy(model, data.validation, batch_size)
    diagnosis = diagnose(model, data.test, answers, batch_size)

    report = Report(
        job_id=job_id,
        job_name=spec.name,
        model_id=model_id,
        contract_hash=manifest.contract_hash,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        architecture=plan.contract.architecture,
        dataset=spec.data.uri,
        train_rows=len(data.train),
        validation_rows=len(data.validation),
        test_rows=len(data.test),
        classes=len(plan.contract.class_names),
        blocks=len(blocks),
        depth=layers_of(plan.end_to_end),
        seed=spec.training.seed,
        steps_per_task=spec.training.steps,
        trunk_steps=spec.blocks.branch.steps if spec.blocks.branch else 0,
        decode=_best_rule(validation_accuracy),
        validation_accuracy=validation_accuracy,
        quality=_quality(plan, answers, baselines, labels),
        memory=memory_report(plan, trained),
        cost=tuple(
            cost_row(plan, plan.task(name), summary, run_of.get(name), spec.training.batch_size)
            for name, summary in trained.items()
        ),
        loss=tuple(loss_curve(name, summary) for name, summary in trained.items()),
        diagnosis=diagnosis.blocks,
        swap_accuracy=diagnosis.swap_accuracy,
        warnings=(
            *plan.warnings,
            *(_why_missing(name, run_of.get(name)) for name in lost),
            *warnings(diagnosis.blocks, rows=diagnosis.rows, classes=len(plan.contract.class_names)),
        ),
        findings=(),
        versions=_versions(),
        hardware=_hardware(device),
    )
    compared = Compared(
        labels=labels,
        ours={rule: answers.by(rule) for rule in DECODE_RULES},
        end_to_end=baselines.end_to_end,
        shallow_ensemble=baselines.shallow_ensemble,
    )
    return report.model_copy(update={"findings": findings(report, compared)})


def _why_missing(baseline: str, run: Task | None) -> str:
    why = f"{run.reason}: {run.message}" if run is not None and run.reason is not None else "it did not finish"
    return f"the baseline {baseline} is missing ({why}): nothing is said against it"


def _validation_accuracy(model: BlockChain, validation: Split, batch_size: int) -> dict[DecodeRule, float]:
    """Of each decode rule; empty where no rows were held out for it."""
    if not len(validation):
        return {}
    answers = chain_answers(model, validation, batch_size)
    labels = as_tensor(validation.targets)
    return {rule: accuracy(answers.by(rule), labels) for rule in DECODE_RULES}


def _best_rule(validation_accuracy: dict[DecodeRule, float]) -> DecodeRule:
    """The most accurate; a tie goes to the chain, then to the product of experts. Without figures: the chain."""
    return max(DECODE_RULES, key=lambda rule: validation_accuracy.get(rule, 0.0))


def _quality(plan: JobPlan, answers: Answers, baselines: Baselines, labels: Tensor) -> Quality:
    depth, shallow_depth = layers_of(plan.end_to_end), layers_of(plan.shallow)
    members = [score(member, labels, layer_evaluations=shallow_depth) for member in baselines.shallow]
    return Quality(
        chain=score(answers.by("chain"), labels, layer_evaluations=depth),
        product_of_experts=score(answers.by("product_of_experts"), labels, layer_evaluations=depth),
        first_block=score(answers.by("first_block"), labels, layer_evaluations=layers_of(plan.blocks[0])),
        end_to_end=(
            None if baselines.end_to_end is None else score(baselines.end_to_end, labels, layer_evaluations=depth)
        ),
        shallow_ensemble=(
            None
            if baselines.shallow_ensemble is None
            else score(baselines.shallow_ensemble, labels, layer_evaluations=shallow_depth * len(members))
        ),
        shallow_single=mean_member(members, len(labels)) if members else None,
    )


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

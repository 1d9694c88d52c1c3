"""Examination of classifiers: three ways of answering, every baseline on the same rows, each block diagnosed."""

from __future__ import annotations

from torch import Tensor

from dbserve.contracts.plan import TaskKind
from dbserve.contracts.report import DecodeRule, Quality
from workers.data import Split
from workers.evaluation.answers import Answers, BlockChain, as_tensor, chain_answers, network_answers
from workers.evaluation.costs import layers_of
from workers.evaluation.diagnose import diagnose
from workers.evaluation.findings import Compared, findings, warnings
from workers.evaluation.scores import accuracy, mean_member, mean_of_probabilities, score
from workers.evaluation.subject import Examined, Subject

DECODE_RULES: tuple[DecodeRule, ...] = ("chain", "product_of_experts", "first_block")  # a tie goes to the earlier


def examine(subject: Subject) -> Examined:
    """Accuracy, cross-entropy and calibration of the model and of every baseline, and what each block does."""
    batch_size = subject.spec.evaluation.batch_size
    contract = subject.plan.contract
    test, validation = subject.held_out(subject.data.test), subject.held_out(subject.data.validation)
    model = BlockChain.of(contract, subject.blocks, subject.device)
    answers = chain_answers(model, test, batch_size)
    baselines = {
        name: network_answers(network, test, batch_size, subject.device)
        for name, network in subject.baselines().items()
    }
    compared = Compared(
        labels=as_tensor(test.targets),
        ours={rule: answers.by(rule) for rule in DECODE_RULES},
        end_to_end=baselines.get("end_to_end"),
        shallow_ensemble=_ensemble(subject, baselines),
        shallow_long=baselines.get("shallow_long"),
        data_parallel=baselines.get("data_parallel"),
    )
    quality = _quality(subject, answers, baselines, compared)
    validation_accuracy = _validation_accuracy(model, validation, batch_size)
    decode = model.answering.decode or max(DECODE_RULES, key=lambda rule: validation_accuracy.get(rule, 0.0))
    diagnosis = diagnose(model, test, answers, batch_size)
    return Examined(
        quality=quality,
        decode=decode,
        validation_accuracy=validation_accuracy,
        diagnosis=diagnosis.blocks,
        swap_accuracy=diagnosis.swap_accuracy,
        warnings=warnings(diagnosis.blocks, rows=diagnosis.rows, classes=len(contract.class_names)),
        findings=findings(
            compared,
            quality,
            decode=decode,
            chosen=model.answering.decode is None,
            validation_accuracy=validation_accuracy,
            validation_rows=len(validation),
            blocks=len(subject.blocks),
            swap_accuracy=diagnosis.swap_accuracy,
        ),
    )


def _ensemble(subject: Subject, baselines: dict[str, Tensor]) -> Tensor | None:
    """The mean of the shallow networks' probabilities, one for each block; None where one of them is missing."""
    members = [baselines[name] for name in subject.shallow_members()]
    wanted = "shallow_ensemble" in subject.spec.evaluation.baselines and len(members) == len(subject.blocks)
    return mean_of_probabilities(members) if wanted else None


def _validation_accuracy(model: BlockChain, validation: Split, batch_size: int) -> dict[DecodeRule, float]:
    """Of each decode rule; empty where no rows were held out for it."""
    if not len(validation):
        return {}
    answers = chain_answers(model, validation, batch_size)
    labels = as_tensor(validation.targets)
    return {rule: accuracy(answers.by(rule), labels) for rule in DECODE_RULES}


def _quality(subject: Subject, answers: Answers, baselines: dict[str, Tensor], compared: Compared) -> Quality:
    plan, labels = subject.plan, compared.labels
    depth, shallow_depth = layers_of(plan.end_to_end), layers_of(plan.shallow)
    tasks = [task for task in plan.tasks if task.kind is TaskKind.SHALLOW]
    members = [score(baselines[task.name], labels, layer_evaluations=shallow_depth) for task in tasks]

    def scored(answer: Tensor | None, layers: int):
        return None if answer is None else score(answer, labels, layer_evaluations=layers)

    return Quality(
        chain=score(answers.by("chain"), labels, layer_evaluations=depth),
        product_of_experts=score(answers.by("product_of_experts"), labels, layer_evaluations=depth),
        first_block=score(answers.by("first_block"), labels, layer_evaluations=layers_of(plan.blocks[0])),
        end_to_end=scored(compared.end_to_end, depth),
        shallow_ensemble=scored(compared.shallow_ensemble, shallow_depth * len(members)),
        shallow_single=mean_member(members, len(labels)) if members else None,
        shallow_long=scored(compared.shallow_long, shallow_depth),
        data_parallel=scored(compared.data_parallel, depth),
    )

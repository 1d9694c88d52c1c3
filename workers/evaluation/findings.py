"""The report in words: what was won, what was lost, what looks wrong. Plain sentences with their figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from dbserve.contracts.report import BlockDiagnosis, CostRow, DecodeRule, MemoryReport, Quality, Score
from workers.evaluation.scores import Difference, paired_difference

Z_DOMINATES = 0.60  # z-only accuracy
LITTLE_INFORMATION = 0.02  # share; or half an equal share, where so many blocks make this less
LARGE_HANDOFF_GAP = 0.5  # nats
HARDLY = 0.02  # of accuracy
_NAMES: dict[DecodeRule, str] = {
    "chain": "the chain",
    "product_of_experts": "the product of experts",
    "first_block": "the first block alone",
}


@dataclass(frozen=True)
class Compared:
    """Answers to the same test rows, side by side: log-probabilities (N, K); labels (N,)."""

    labels: Tensor
    ours: Mapping[DecodeRule, Tensor]
    end_to_end: Tensor | None
    shallow_ensemble: Tensor | None
    shallow_long: Tensor | None
    data_parallel: Tensor | None


def warnings(diagnosis: Sequence[BlockDiagnosis], *, rows: int, classes: int) -> tuple[str, ...]:
    """What a reader should not overlook. `rows` were diagnosed."""
    least = min(LITTLE_INFORMATION, 0.5 / len(diagnosis))
    noise = math.sqrt(0.25 / rows)  # the largest standard error a share of the rows can have
    return tuple(
        f"Block {block.index}: {sentence}"
        for block in diagnosis
        for sentence in (*_idleness(block, 1 / classes, noise), *_bad_interval(block, least), *_bad_handoff(block))
    )


def _idleness(block: BlockDiagnosis, chance: float, noise: float) -> Iterator[str]:
    over_z = block.true_image_accuracy - block.z_only_accuracy
    if block.accuracy_alone < chance + 3 * noise and over_z < 3 * noise:
        yield (
            f"looks untrained: alone it is right on {_percent(block.accuracy_alone)} of the test rows (chance is "
            f"{_percent(chance)}), and with z it does no better than z by itself."
        )
    elif block.true_image_accuracy - block.shuffled_image_accuracy < 3 * noise:
        yield (
            f"hardly uses the image: given z it is right on {_percent(block.true_image_accuracy)} with the true image "
            f"and on {_percent(block.shuffled_image_accuracy)} with another one."
        )


def _bad_interval(block: BlockDiagnosis, least: float) -> Iterator[str]:
    if block.z_only_accuracy > Z_DOMINATES:
        yield (
            f"at its upper edge (sigma {block.sigma_max:.3g}) the label can be read off z without the image "
            f"{_percent(block.z_only_accuracy)} of the time, so it learns little about images: raise noise.p_mean."
        )
    if block.information_share is not None and block.information_share < least:
        yield (
            f"in its interval z gains {_percent(block.information_share)} of all it comes to tell about the label as "
            "sigma falls, so these noise levels are nearly one task; other edges would share the work better."
        )


def _bad_handoff(block: BlockDiagnosis) -> Iterator[str]:
    if block.handoff_gap > LARGE_HANDOFF_GAP:
        yield (
            f"its loss is {block.loss_handoff:.2f} nats on what the previous blocks hand over and "
            f"{block.loss_teacher:.2f} on z made from the true label, as in training: it inherits errors it cannot "
            "mend."
        )


def findings(
    compared: Compared,
    quality: Quality,
    *,
    decode: DecodeRule,
    chosen: bool,
    validation_accuracy: Mapping[DecodeRule, float],
    validation_rows: int,
    blocks: int,
    swap_accuracy: float | None,
) -> tuple[str, ...]:
    """What a classifier's figures come to, the unfavourable included. `chosen`: by validation rows, not by the job.

    "Level" means within two standard errors of the difference, row by row.
    """
    return (
        _decode_sentence(decode, validation_accuracy, validation_rows)
        if chosen
        else f"As the job asks, {_NAMES[decode]} answers, whatever validation rows say.",
        *_against_end_to_end(compared, quality, decode),
        *_against_shallow(compared, quality, blocks),
        *_against_equal_budgets(compared, quality, blocks),
        *_against_first_block(compared, quality, blocks),
        *_calibration(quality),
        *_swap_sentence(swap_accuracy, quality.chain),
    )


def shared_findings(memory: MemoryReport, cost: Sequence[CostRow], test_rows: int) -> tuple[str, ...]:
    """What holds of every family: bytes, layer evaluations and seconds, and how far the errors reach."""
    return (
        _memory_sentence(memory),
        *_cost_sentences(cost),
        f"Standard errors are over {test_rows} test rows (and samples) of one training with one seed; they say "
        "nothing of how another seed would come out.",
    )


def _decode_sentence(decode: DecodeRule, accuracy: Mapping[DecodeRule, float], rows: int) -> str:
    if not accuracy:
        return f"Without validation rows {_NAMES[decode]} answers by default."
    figures = ", ".join(f"{_NAMES[rule]} {_percent(value)}" for rule, value in accuracy.items())
    return f"On {rows} validation rows: {figures}. So {_NAMES[decode]} answers."


def _against_end_to_end(compared: Compared, quality: Quality, decode: DecodeRule) -> Iterator[str]:
    if compared.end_to_end is None or quality.end_to_end is None:
        yield "No end-to-end baseline was trained, so nothing here says what isolation costs."
        return
    for rule in dict.fromkeys(("chain", decode)):
        difference = paired_difference(compared.ours[rule], compared.end_to_end, compared.labels)
        yield (
            f"{_capital(_NAMES[rule])} is {_versus(difference)} the same network trained end-to-end "
            f"({_percent(_of(quality, rule).accuracy)} against {_percent(quality.end_to_end.accuracy)})."
        )


def _against_shallow(compared: Compared, quality: Quality, blocks: int) -> Iterator[str]:
    if compared.shallow_ensemble is None or quality.shallow_ensemble is None or quality.shallow_single is None:
        yield "No whole shallow ensemble was trained, so nothing here says whether depth composes."
        return
    ensemble, single = quality.shallow_ensemble, quality.shallow_single
    difference = paired_difference(compared.ours["chain"], compared.shallow_ensemble, compared.labels)
    figures = f"{_percent(quality.chain.accuracy)} against {_percent(ensemble.accuracy)}"
    if blocks == 1:
        yield f"With one block the chain is one shallow network: {_versus(difference)} the plain one ({figures})."
    elif not difference.settled:
        yield (
            f"The chain is {_versus(difference)} the ensemble of {blocks} shallow networks ({figures}): it behaves "
            f"like an ensemble of {blocks} shallow networks, and depth does not compose."
        )
    elif difference.value < 0:
        yield (
            f"The chain is {_versus(difference)} the ensemble of {blocks} shallow networks ({figures}): plain shallow "
            "networks of the same size, averaged, answer better at the same cost."
        )
    else:
        yield f"The chain is {_versus(difference)} the ensemble of {blocks} shallow networks ({figures})."
    yield (
        f"One plain network of {single.layer_evaluations} layers, which is what end-to-end training fits into one "
        f"block's memory, is right on {_percent(single.accuracy)} (mean of {len(single.members)}); the chain is "
        f"{_points(quality.chain.accuracy - single.accuracy)} from it."
    )


def _against_equal_budgets(compared: Compared, quality: Quality, blocks: int) -> Iterator[str]:
    rivals = (
        (
            f"one shallow network trained {blocks} times as long, which takes as many layer evaluations on one worker",
            compared.shallow_long,
            quality.shallow_long,
        ),
        (
            f"all layers on {blocks} workers, data-parallel, with a gradient exchange every step",
            compared.data_parallel,
            quality.data_parallel,
        ),
    )
    for name, answers, score in rivals:
        if answers is not None and score is not None:
            difference = paired_difference(compared.ours["chain"], answers, compared.labels)
            figures = f"{_percent(quality.chain.accuracy)} against {_percent(score.accuracy)}"
            yield f"The chain is {_versus(difference)} {name} ({figures})."


def _against_first_block(compared: Compared, quality: Quality, blocks: int) -> Iterator[str]:
    if blocks == 1:
        return
    difference = paired_difference(compared.ours["chain"], compared.ours["first_block"], compared.labels)
    share = quality.first_block.layer_evaluations / quality.chain.layer_evaluations
    comment = "" if difference.settled else ", so the later blocks change nothing that shows"
    yield (
        f"The first block alone, with {_percent(share, 0)} of the layers, is right on "
        f"{_percent(quality.first_block.accuracy)}; the chain is {_versus(difference)} it{comment}."
    )


def _calibration(quality: Quality) -> Iterator[str]:
    if quality.end_to_end is None:
        return
    ours, theirs = quality.chain, quality.end_to_end
    yield (
        f"Calibration error (15 bins): chain {ours.expected_calibration_error:.3f}, end-to-end "
        f"{theirs.expected_calibration_error:.3f}; cross-entropy {ours.cross_entropy:.3f} against "
        f"{theirs.cross_entropy:.3f} nats."
    )


def _memory_sentence(memory: MemoryReport) -> str:
    if memory.ratio_kind == "measured":
        return (
            f"The largest block trains in {memory.ratio:.3f} of the bytes of end-to-end training, as measured "
            f"(parameters, gradients, optimizer, activations); the plan said {memory.ratio_predicted:.3f}."
        )
    return f"By the plan, not measured, the largest block trains in {memory.ratio:.3f} of the bytes of end-to-end."


def _cost_sentences(cost: Sequence[CostRow]) -> Iterator[str]:
    own = [row for row in cost if row.task == "trunk" or row.task.startswith("block-")]
    whole = next((row for row in cost if row.task == "end_to_end"), None)
    if whole is None or not own:
        return
    evaluations = sum(row.layer_evaluations for row in own)
    seconds = sum(row.step_seconds_mean * row.steps for row in own)
    whole_seconds = whole.step_seconds_mean * whole.steps
    longest = max(row.wall_seconds for row in own)
    yield (
        f"Training the blocks took {evaluations:.3g} layer evaluations, end-to-end {whole.layer_evaluations:.3g} "
        f"({evaluations / whole.layer_evaluations:.2f} times); in seconds of training {seconds:.1f} against "
        f"{whole_seconds:.1f}. The longest of the blocks' tasks ran for {longest:.1f} s, end-to-end for "
        f"{whole.wall_seconds:.1f} s."
    )


def _swap_sentence(swap_accuracy: float | None, chain: Score) -> Iterator[str]:
    if swap_accuracy is None:
        return
    figures = f"{_percent(swap_accuracy)} right, {_percent(chain.accuracy)} in order"
    if chain.accuracy - swap_accuracy < HARDLY:
        verdict = "accuracy would not reveal a wrong order, so every file carries its place and the contract's hash"
    else:
        verdict = "here accuracy would reveal a wrong order"
    yield f"With a copy of block 0 in the last block's place the chain still answers ({figures}): {verdict}."


def _of(quality: Quality, rule: DecodeRule) -> Score:
    scores: dict[DecodeRule, Score] = {
        "chain": quality.chain,
        "product_of_experts": quality.product_of_experts,
        "first_block": quality.first_block,
    }
    return scores[rule]


def _versus(difference: Difference) -> str:
    """e.g. "1.2 ± 0.4 points below"; "level with (-0.1 ± 0.4 points)" where two standard errors cover nothing."""
    error = f"± {100 * difference.error:.1f} points"
    if not difference.settled:
        return f"level with ({100 * difference.value:+.1f} {error})"
    return f"{100 * abs(difference.value):.1f} {error} {'above' if difference.value > 0 else 'below'}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]

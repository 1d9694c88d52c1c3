"""What was measured of image generators, and what it comes to in words: plain sentences with their figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from workers.evaluation.denoising import Losses
from workers.evaluation.entrants import Entrant
from workers.evaluation.features import FEATURES
from workers.evaluation.frechet import Distances
from workers.evaluation.sampling import Drawn
from workers.evaluation.scores import Difference

OURS, REVERSED, FLOOR = "blocks", "reversed", "floor"
SEES_LITTLE = 2.0  # times chance
FEW_SAMPLES = 4 * FEATURES
FAR_FROM_SIGMA_DATA = 2.0  # a factor, either way
LITTLE_SAMPLING = 0.02  # share of the sampler's steps; or half an equal share, where so many blocks make this less


@dataclass(frozen=True)
class Generated:
    """All that was measured. Without samples: no distances, nothing drawn, no classifier, no steps."""

    entrants: tuple[Entrant, ...]
    losses: Losses
    blocks: int
    classes: int
    sigma_data: float
    data_scale: float  # root mean square of the training rows
    distances: Distances | None = None
    drawn: Mapping[str, Drawn] = field(default_factory=dict[str, Drawn])
    samples: int = 0
    classifier_accuracy: float = 0.0  # on test rows
    steps: tuple[int, ...] = ()  # of the sampler, by block

    def rivals(self) -> Iterator[Entrant]:
        return (entrant for entrant in self.entrants if not entrant.ours)


def warnings(found: Generated) -> Iterator[str]:
    """What a reader should not overlook."""
    for index in range(found.blocks):
        yield from (f"Block {index}: {sentence}" for sentence in _idleness(found, index))
        yield from (f"Block {index}: {sentence}" for sentence in _unasked(found, index))
    if not 1 / FAR_FROM_SIGMA_DATA < found.data_scale / found.sigma_data < FAR_FROM_SIGMA_DATA:
        yield (
            f"The training rows' root mean square is {found.data_scale:.3g}, but sigma_data is {found.sigma_data:g}: "
            "scale the rows, or set noise.sigma_data (and the noise levels with it)."
        )
    if found.distances is None:
        yield "Too few samples were asked for (evaluation.samples), so nothing here says what the blocks generate."
        return
    if found.samples < FEW_SAMPLES:
        yield (
            f"{found.samples} samples are few for {FEATURES} features: all Frechet distances, the floor's too, are "
            "too large; compare them with each other only."
        )
    if found.classes > 1 and found.classifier_accuracy < SEES_LITTLE / found.classes:
        yield (
            f"The classifier whose features measure the samples is right on {_percent(found.classifier_accuracy)} of "
            "the test rows: distances and class accuracies here mean little."
        )
    yield from _disorder(found, found.distances)


def _idleness(found: Generated, index: int) -> Iterator[str]:
    losses = found.losses
    idle = losses.idle(index)
    gain = losses.difference(OURS, idle, index)
    if gain.value >= -2 * gain.error:
        yield (
            f"looks untrained: its denoising loss is {losses.within(OURS, index):.3f}, and without any training "
            f"the {idle} reaches {losses.within(idle, index):.3f}."
        )


def _unasked(found: Generated, index: int) -> Iterator[str]:
    if not found.steps:
        return
    share = found.steps[index] / sum(found.steps)
    if not found.steps[index]:
        yield "no sampling step falls into its noise levels, so it takes no part in the samples: raise sampling_steps."
    elif share < min(LITTLE_SAMPLING, 0.5 / found.blocks):
        yield f"only {_percent(share)} of the sampling steps fall into its noise levels: it hardly shapes the samples."


def _disorder(found: Generated, distances: Distances) -> Iterator[str]:
    if REVERSED not in distances.values:
        return
    worse = distances.difference(REVERSED, OURS)
    if worse.value < 2 * worse.error:
        yield (
            f"In reversed order the blocks generate no worse ({distances.values[REVERSED]:.3g} against "
            f"{distances.values[OURS]:.3g}), so they have not learnt noise levels of their own yet."
        )


def findings(found: Generated) -> Iterator[str]:
    """Frechet distance, denoising loss, cost and order, the unfavourable included.

    "Level" means within two standard errors of the paired difference.
    """
    if found.distances is not None:
        yield from _distance_sentences(found, found.distances)
        yield from _class_sentences(found)
        yield from _cost_sentences(found)
    yield from _loss_sentences(found)
    yield from _interval_sentences(found)


def _distance_sentences(found: Generated, distances: Distances) -> Iterator[str]:
    ours = distances.values[OURS]
    yield (
        f"Frechet distance of {found.samples} samples of the assembled blocks: {ours:.3g} "
        f"(standard error {distances.standard_error(OURS):.2g}); as many real training images have "
        f"{distances.values[FLOOR]:.3g}. It is measured in a classifier of this job's own, so it is no published FID."
    )
    for rival in found.rivals():
        difference = distances.difference(OURS, rival.key)
        pair = _pair(ours, distances.values[rival.key])
        yield f"The blocks' samples are {_versus(difference)} those of: {rival.title} ({pair})."
    if not any(rival.key == "end_to_end" for rival in found.rivals()):
        yield "No end-to-end baseline was trained, so nothing here says what isolation costs."
    if REVERSED in distances.values:
        difference = distances.difference(OURS, REVERSED)
        pair = _pair(ours, distances.values[REVERSED])
        yield f"In their right order the blocks are {_versus(difference)} in reversed order ({pair})."


def _class_sentences(found: Generated) -> Iterator[str]:
    shares = ", ".join(
        f"{entrant.title} {_percent(_share(found.drawn[entrant.key]))}"
        for entrant in found.entrants
        if entrant.key != REVERSED
    )
    yield (
        f"The classifier finds the class that was asked for in the samples of: {shares}; in real test images "
        f"{_percent(found.classifier_accuracy)} of the time."
    )


def _cost_sentences(found: Generated) -> Iterator[str]:
    ours = found.drawn[OURS]
    for rival in found.rivals():
        if rival.key == "end_to_end":
            theirs = found.drawn[rival.key]
            yield (
                f"One sample runs {ours.layer_evaluations} layers in {ours.seconds:.3g} s by the blocks, and "
                f"{theirs.layer_evaluations} layers in {theirs.seconds:.3g} s end-to-end."
            )


def _loss_sentences(found: Generated) -> Iterator[str]:
    ours = found.losses.whole(OURS)
    for rival in found.rivals():
        theirs, difference = found.losses.whole(rival.key), found.losses.whole_difference(OURS, rival.key)
        pair = _pair(ours.value, theirs.value)
        yield f"Denoising loss on test rows: the blocks are {_versus(difference)}: {rival.title} ({pair})."


def _interval_sentences(found: Generated) -> Iterator[str]:
    """Where a block alone is behind the whole network in the noise levels it is specialised in."""
    if not any(rival.key == "end_to_end" for rival in found.rivals()):
        return
    for index in range(found.blocks):
        difference = found.losses.difference(OURS, "end_to_end", index)
        pair = _pair(found.losses.within(OURS, index), found.losses.within("end_to_end", index))
        yield f"In its own noise levels block {index} is {_versus(difference)} the end-to-end network (loss {pair})."


def _share(drawn: Drawn) -> float:
    return float(drawn.right.double().mean())


def _versus(difference: Difference) -> str:
    """Less is better in all that is compared here."""
    if not difference.settled:
        return f"level (difference {difference.value:+.2g}, standard error {difference.error:.2g}) with"
    side = "better" if difference.value < 0 else "worse"
    return f"{abs(difference.value):.3g} {side} (standard error {difference.error:.2g}) than"


def _pair(ours: float, theirs: float) -> str:
    return f"{ours:.3g} against {theirs:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

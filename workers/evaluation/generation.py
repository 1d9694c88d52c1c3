"""Examination of image generators: what they generate, how well they denoise, and what a sample costs.

Every contestant starts from the same noise for the same classes, and denoises the same noised test rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dbserve.contracts.report import BlockFacts, Comparison, Contestant, Measured, Metric, Sample
from workers.data import Split
from workers.evaluation.answers import as_tensor, image_batches
from workers.evaluation.denoising import LOSS_ROWS, denoising_losses, root_mean_square
from workers.evaluation.entrants import entrants_of
from workers.evaluation.features import FEATURES, STEPS, FeatureNetwork, train_features
from workers.evaluation.frechet import Distances, distances
from workers.evaluation.generation_words import FLOOR, Generated, findings, warnings
from workers.evaluation.pictures import picture_grid
from workers.evaluation.sampling import Studio, asked_classes
from workers.evaluation.subject import Examined, Subject
from workers.method.partition import block_of
from workers.models import architecture
from workers.models.protocol import ImageGenerator

LEAST_SAMPLES = 2  # a covariance needs as many
_SEED = 20260718


def examine(subject: Subject) -> Examined:
    """Frechet distance, class accuracy, denoising loss and cost of the blocks and of every baseline; samples to see."""
    contract, evaluation = subject.plan.contract, subject.spec.evaluation
    generator = cast(ImageGenerator, architecture(contract.architecture))
    entrants = entrants_of(subject)
    losses = denoising_losses(generator, entrants, subject)
    generated = Generated(
        entrants=entrants,
        losses=losses,
        blocks=len(subject.blocks),
        classes=len(contract.class_names),
        sigma_data=contract.sigma_data,
        data_scale=root_mean_square(subject.data.train),
    )
    pictures: tuple[Sample, ...] = ()
    if evaluation.samples >= LEAST_SAMPLES:
        generated, pictures = _sampled(subject, generator, generated)
    return Examined(
        quality=Comparison(
            family="generation",
            primary="denoising_loss" if generated.distances is None else "frechet",
            metrics=tuple(_metrics(generated)),
            contestants=tuple(_contestants(generated)),
            block_metrics=tuple(_block_metrics(generated)),
            blocks=tuple(_facts(subject, generated, index) for index in range(len(subject.blocks))),
            samples=pictures,
        ),
        warnings=tuple(warnings(generated)),
        findings=tuple(findings(generated)),
    )


def _sampled(subject: Subject, generator: ImageGenerator, found: Generated) -> tuple[Generated, tuple[Sample, ...]]:
    """What was found, with what sampling adds to it; and the pictures."""
    contract, evaluation, device = subject.plan.contract, subject.spec.evaluation, subject.device
    train, test = subject.data.train, subject.held_out(subject.data.test)
    network = train_features(train, found.classes, device)
    studio = Studio(
        generator=generator,
        contract=contract,
        network=network,
        labels=asked_classes(test, evaluation.samples),
        steps=evaluation.sampling_steps,
        batch_size=evaluation.batch_size,
        pictures=contract.preprocessing != "identity",
        device=device,
    )
    drawn = {entrant.key: studio.draw(entrant) for entrant in found.entrants}
    floor, _ = _seen(network, _real(train, studio.labels.numpy()), evaluation.batch_size, device)
    reference, right = _seen(network, test, evaluation.batch_size, device)
    steps = Counter(block_of(level, contract.edges) for level in studio.levels())
    found = replace(
        found,
        distances=distances({key: one.features for key, one in drawn.items()} | {FLOOR: floor}, reference),
        drawn=drawn,
        samples=evaluation.samples,
        classifier_accuracy=float(right.double().mean()),
        steps=tuple(steps[index] for index in range(found.blocks)),
    )
    return found, tuple(_pictures(found, test))


def _seen(network: FeatureNetwork, split: Split, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features (N, F) of real images, and whether (N,) the classifier is right about them."""
    features: list[Tensor] = []
    right: list[Tensor] = []
    for images, labels in image_batches(split, batch_size, device):
        features.append(network.features(images).cpu())
        right.append((network(images).argmax(dim=1) == labels).cpu())
    return torch.cat(features), torch.cat(right)


def _real(split: Split, classes: NDArray[np.int64]) -> Split:
    """A row of each of these classes, at random: in the share of its classes a floor must not differ from the samples.

    Where a class has fewer rows they come again; where it has none, rows of any class stand in.
    """
    order = np.random.default_rng(_SEED).permutation(len(split))
    rows = np.empty(len(classes), dtype=np.int64)
    for label in np.unique(classes):
        places = np.flatnonzero(classes == label)
        own = order[split.targets[order] == label]
        rows[places] = np.resize(own if len(own) else order, len(places))
    return Split(split.inputs[rows], split.targets[rows])


def _metrics(found: Generated) -> Iterator[Metric]:
    if found.distances is not None:
        yield Metric(
            key="frechet",
            title="Frechet distance",
            better="lower",
            note=f"of {found.samples} samples from all test images examined, in the {FEATURES} features of a small "
            f"convolutional classifier trained on this job's training images ({STEPS} steps, right on "
            f"{found.classifier_accuracy:.1%} of the test images): no published FID. No ridge; standard errors by "
            "paired bootstrap. The distance grows as samples get fewer, so only equal numbers compare",
        )
        yield Metric(
            key="class_accuracy",
            title="Class accuracy",
            better="higher",
            note="share of samples in which that classifier finds the class that was asked for",
        )
    yield Metric(
        key="denoising_loss",
        title="Denoising loss",
        better="lower",
        note=f"EDM's weighted squared error on at most {LOSS_ROWS} test images, all on one noise; about 1: untrained",
    )
    if found.distances is not None:
        yield Metric(
            key="seconds", title="Seconds a sample", unit="s", better="lower", note="on this worker, in batches"
        )


def _contestants(found: Generated) -> Iterator[Contestant]:
    for entrant in found.entrants:
        loss = found.losses.whole(entrant.key)
        values = {"denoising_loss": Measured(value=loss.value, standard_error=loss.error)}
        drawn = found.drawn.get(entrant.key)
        if drawn is not None and found.distances is not None:
            values |= {
                "frechet": _distance(found.distances, entrant.key),
                "class_accuracy": _share(float(drawn.right.double().mean()), len(drawn.right)),
                "seconds": Measured(value=drawn.seconds),
            }
        yield Contestant(
            key=entrant.key,
            title=entrant.title,
            note=entrant.note,
            ours=entrant.ours,
            layer_evaluations=None if drawn is None else drawn.layer_evaluations,
            values=values,
            paired=_against_blocks(found, entrant.key),
        )
    if found.distances is not None:
        yield Contestant(
            key=FLOOR,
            title="Real images",
            note="training images of the samples' classes; the class accuracy is that of the test images",
            values={
                "frechet": _distance(found.distances, FLOOR),
                "class_accuracy": Measured(value=found.classifier_accuracy),
            },
        )


def _against_blocks(found: Generated, key: str) -> Measured | None:
    """In the primary metric, on the same noise (and resampled together); None for the blocks themselves."""
    if key == "blocks":
        return None
    losses, distances = found.losses, found.distances
    difference = losses.whole_difference("blocks", key) if distances is None else distances.difference("blocks", key)
    return Measured(value=difference.value, standard_error=difference.error)


def _distance(found: Distances, key: str) -> Measured:
    return Measured(value=found.values[key], standard_error=found.standard_error(key))


def _share(share: float, count: int) -> Measured:
    return Measured(value=share, standard_error=math.sqrt(share * (1 - share) / count))


def _block_metrics(found: Generated) -> Iterator[Metric]:
    inside = "in the block's own noise levels, on test images"
    yield Metric(key="loss", title="Loss", better="lower", note=f"denoising loss {inside}")
    keys = [rival.key for rival in found.rivals()]
    if "end_to_end" in keys:
        yield Metric(key="loss_end_to_end", title="End-to-end's", better="lower", note=f"its loss {inside}")
        yield Metric(key="difference", title="Difference", better="lower", note="the block's less end-to-end's")
        yield Metric(key="difference_error", title="Its standard error", note="paired, row by row")
    if "shallow" in keys:
        yield Metric(key="loss_shallow", title="Shallow's", better="lower", note=f"its loss {inside}")
    yield Metric(
        key="loss_idle", title="Without training", note="of the scaled noise or the mean image, the better one"
    )
    if found.steps:
        yield Metric(key="steps", title="Sampling steps", note="of the sampler that fall into its noise levels")


def _facts(subject: Subject, found: Generated, index: int) -> BlockFacts:
    losses, keys = found.losses, {entrant.key for entrant in found.entrants}
    values: dict[str, float | None] = {
        "loss": losses.within("blocks", index),
        "loss_idle": losses.within(losses.idle(index), index),
    }
    if "end_to_end" in keys:
        difference = losses.difference("blocks", "end_to_end", index)
        values |= {
            "loss_end_to_end": losses.within("end_to_end", index),
            "difference": difference.value,
            "difference_error": difference.error,
        }
    if "shallow" in keys:
        values["loss_shallow"] = losses.within("shallow", index)
    if found.steps:
        values["steps"] = found.steps[index]
    planned = subject.plan.blocks[index]
    return BlockFacts(index=index, sigma_min=planned.sigma_min, sigma_max=planned.sigma_max, values=values)


def _pictures(found: Generated, test: Split) -> Iterator[Sample]:
    """A sheet of each contestant's first samples, by class, and one of the test images whose classes they have."""
    count = 0
    for entrant in found.entrants:
        images = found.drawn[entrant.key].kept
        if images and len(images[0]) in (1, 3):
            count = len(images)
            yield picture_grid(
                images, entrant.title, f"{count} of {found.samples} samples, by class; same noise for all"
            )
    if count:
        few = test.first(count)
        images = [as_tensor(few.inputs[row]).permute(2, 0, 1) for row in few.targets.argsort(kind="stable")]
        yield picture_grid(images, "Real images", "test images of these classes")

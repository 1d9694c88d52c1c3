"""Examination of masked diffusion of text: a bound on the likelihood, who is good at which range, texts to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dbserve.contracts.report import BlockFacts, Comparison, Contestant, Measured, Metric, Sample
from dbserve.datasets.vocabulary import Codec, codec_of
from workers.data import Split
from workers.evaluation.entrants import Entrant, Part, entrants_of
from workers.evaluation.masked_bound import Bounds, bounds_of, mean_of_windows
from workers.evaluation.masked_samples import (
    MOST_TEXTS,
    Texts,
    dictionary_of,
    held_out,
    known_words,
    made,
)
from workers.evaluation.masked_words import RangesFound, findings, warnings
from workers.evaluation.residence import Chosen
from workers.evaluation.scores import paired_measure
from workers.evaluation.subject import Examined, Subject
from workers.evaluation.texts import NGRAMS, UNITS, windows_of

TOKENS = 1 << 16  # of one forward pass at most
DICTIONARY = 5_000_000  # tokens of training text whose words are known
SHOWN = 2  # texts of each contestant


def examine(subject: Subject) -> Examined:
    """Bits a token (at most) of the blocks and of every baseline on test windows, range by range; texts they make."""
    contract, evaluation = subject.plan.contract, subject.spec.evaluation
    vocabulary, length = contract.tokens
    windows = windows_of(subject.held_out(subject.data.test))
    entrants = (*(one for one in entrants_of(subject) if one.key != "reversed"), *_shifted(subject))
    bounds = bounds_of(
        entrants,
        windows,
        contract.edges,
        batch_size=min(evaluation.batch_size, max(1, TOKENS // length)),
        device=subject.device,
    )
    unigram = _unigram_losses(subject.data.train, windows, vocabulary.size)
    bounds.losses["unigram"] = unigram[:, None] * torch.tensor([part.width for part in bounds.parts])
    ranges = RangesFound(bounds, tuple(one.key for one in entrants), len(subject.blocks), UNITS[vocabulary.kind])
    told = _texts(subject, entrants, windows) if evaluation.samples and len(windows) else None
    return Examined(
        quality=Comparison(
            family="masked_text",
            primary="bound",
            metrics=tuple(_metrics(ranges, told)),
            contestants=tuple(_contestants(entrants, bounds, told)),
            block_metrics=tuple(_block_metrics(entrants)),
            blocks=tuple(_facts(subject, bounds, index) for index in range(len(subject.blocks))),
            samples=() if told is None else tuple(_samples(entrants, told, evaluation.sampling_steps)),
        ),
        warnings=tuple(warnings(ranges)),
        findings=tuple(findings(ranges)),
    )


def _shifted(subject: Subject) -> Iterator[Entrant]:
    """Each block in its neighbour's range: block b + 1 answers for b, and the last but one for the last."""
    count = len(subject.blocks)
    if count == 1:
        return
    places = [*range(1, count), count - 2]
    layers = [stop - start for start, stop in subject.plan.contract.layers]
    yield Entrant(
        key="neighbour",
        title="Blocks in a neighbour's range",
        parts=tuple(Part(Chosen(subject.blocks, (place,)), layers[place]) for place in places),
        edges=subject.plan.contract.edges,
        note="diagnosis: specialists should do worse there",
        ours=True,
    )


def _unigram_losses(train: Split, windows: Tensor, vocabulary: int) -> Tensor:
    """-ln of each token's frequency in the training text (one added to each count), mean of a window: (W,) float64."""
    counts = np.bincount(train.inputs.reshape(-1), minlength=vocabulary) + 1.0
    frequencies = torch.from_numpy(counts / counts.sum())  # pyright: ignore[reportUnknownMemberType]
    return -frequencies.log()[windows].mean(dim=1)


@dataclass(frozen=True)
class Told:
    """What was made, by contestant, "floor" being the held-out text; `given` (S, T) are the windows with the hole."""

    texts: dict[str, Texts]
    given: Tensor
    known: dict[str, float | None]
    codec: Codec

    def shown(self, row: Tensor) -> str:
        return _spelled(self.codec, row)


def _texts(subject: Subject, entrants: tuple[Entrant, ...], windows: Tensor) -> Told:
    contract, evaluation = subject.plan.contract, subject.spec.evaluation
    vocabulary, _ = contract.tokens
    count = min(evaluation.samples, MOST_TEXTS, len(windows))
    given = windows[torch.linspace(0, len(windows) - 1, count).long()]
    mask = int(contract.options["table"] or vocabulary.size)  # pyright: ignore[reportArgumentType]
    make: Callable[..., Texts] = partial(
        made, given=given, mask=mask, steps=evaluation.sampling_steps, device=subject.device
    )
    texts = {entrant.key: make(entrant) for entrant in entrants if entrant.key != "neighbour"}
    texts["floor"] = held_out(given)
    codec = codec_of(vocabulary)
    stream = subject.data.train.inputs.reshape(-1)[:DICTIONARY]
    words = dictionary_of(stream, codec.decode)
    known = {key: known_words([_spelled(codec, row) for row in one.free], words) for key, one in texts.items()}
    return Told(texts, given, known, codec)


def _spelled(codec: Codec, row: Tensor) -> str:
    return codec.decode(int(token) for token in row)


def _metrics(ranges: RangesFound, told: Told | None) -> Iterator[Metric]:
    yield Metric(
        key="bound",
        title="Bits, at most",
        unit=ranges.unit,
        better="lower",
        note=f"bound on -log2 of the likelihood of {ranges.windows} test windows, each by itself (nothing before it is "
        "seen); the same levels and masks for all; standard error over the windows",
    )
    if told is None:
        return
    count, steps = len(told.given), "texts from nothing"
    for n in NGRAMS:
        yield Metric(
            key=f"distinct_{n}",
            title=f"Distinct-{n}",
            note=f"different {n}-grams per {n}-gram of {count} {steps}; good is near the held-out text's, which is as "
            "long: below it they repeat themselves, above it they are noise",
        )
    yield Metric(
        key="known_words",
        title="Known words",
        better="higher",
        note=f"share of the words of those texts that occur in the training text; read it beside distinct-{NGRAMS[-1]}",
    )
    for n in NGRAMS:
        yield Metric(
            key=f"filled_distinct_{n}",
            title=f"Distinct-{n}, filled",
            note=f"the same within the middle half of {count} test windows, hidden and filled in from both sides",
        )
    yield Metric(
        key="recovered",
        title="Recovered",
        better="higher",
        note="share of those hidden tokens that came out as they were; they are drawn, not guessed at best",
    )


def _contestants(entrants: tuple[Entrant, ...], bounds: Bounds, told: Told | None) -> Iterator[Contestant]:
    for entrant in entrants:
        yield Contestant(
            key=entrant.key,
            title=entrant.title,
            note=entrant.note,
            ours=entrant.ours,
            layer_evaluations=max(part.layers * len(part.networks) for part in entrant.parts),
            values=_bits(bounds, entrant.key) | _variety(told, entrant.key),
            paired=_against_blocks(bounds, entrant.key),
        )
    yield Contestant(
        key="unigram",
        title="Token frequencies",
        note="of the training text, without any context: what a network must beat",
        values=_bits(bounds, "unigram"),
        paired=_against_blocks(bounds, "unigram"),
    )
    if told is not None:
        yield Contestant(
            key="floor", title="Held-out text", note="what the data score themselves", values=_variety(told, "floor")
        )


def _bits(bounds: Bounds, key: str) -> dict[str, Measured]:
    mean = mean_of_windows(bounds.whole(key))
    error = mean.error / math.log(2) if math.isfinite(mean.error) else None
    return {"bound": Measured(value=mean.value / math.log(2), standard_error=error)}


def _against_blocks(bounds: Bounds, key: str) -> Measured | None:
    """In bits, window by window; None for the blocks themselves."""
    return None if key == "blocks" else paired_measure(bounds.whole("blocks"), bounds.whole(key), math.log(2))


def _variety(told: Told | None, key: str) -> dict[str, Measured]:
    if told is None or key not in told.texts:
        return {}
    texts = told.texts[key]
    found: dict[str, float | None] = {f"distinct_{n}": texts.distinct(n) for n in NGRAMS}
    found["known_words"] = told.known[key]
    found |= {f"filled_distinct_{n}": texts.filled_distinct(n) for n in NGRAMS}
    if key != "floor":
        found["recovered"] = texts.recovered(told.given)
    return {name: Measured(value=value) for name, value in found.items() if value is not None}


def _block_metrics(entrants: tuple[Entrant, ...]) -> Iterator[Metric]:
    for entrant in entrants:
        yield Metric(
            key=entrant.key,
            title=entrant.title,
            unit="nats/token",
            better="lower",
            note="what the block's range of t adds to the bound when this contestant answers there",
        )
    yield Metric(
        key="unigram",
        title="Token frequencies",
        unit="nats/token",
        note="the same without any context: a block that does no better has learnt nothing else",
    )


def _facts(subject: Subject, bounds: Bounds, index: int) -> BlockFacts:
    planned = subject.plan.blocks[index]
    return BlockFacts(
        index=index,
        sigma_min=planned.sigma_min,
        sigma_max=planned.sigma_max,
        values={key: float(bounds.interval(key, index).mean()) for key in bounds.losses},
    )


def _samples(entrants: tuple[Entrant, ...], told: Told, steps: int) -> Iterator[Sample]:
    titles = {entrant.key: entrant.title for entrant in entrants} | {"floor": "Held-out text"}
    for key, texts in told.texts.items():
        for row in texts.free[:SHOWN]:
            caption = "a test window" if key == "floor" else f"from nothing, {steps} steps"
            yield Sample(title=titles[key], caption=caption, text=told.shown(row))
        if key == "floor":
            continue
        hole = texts.hole
        for row in texts.filled[:SHOWN]:
            pieces = [told.shown(row[: hole.start]), told.shown(row[hole]), told.shown(row[hole.stop :])]
            yield Sample(
                title=titles[key],
                caption="what stands between ⟦ and ⟧ was hidden and filled in",
                text="{}⟦{}⟧{}".format(*pieces),
            )

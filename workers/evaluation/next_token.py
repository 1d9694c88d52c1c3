"""Examination of models of the next token: exact likelihood of test text for all, the blocks' bound, texts to read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dbserve.contracts.report import BlockFacts, Comparison, Contestant, Measured, Metric, Sample
from dbserve.datasets.vocabulary import codec_of
from workers.data import Split
from workers.evaluation.costs import layers_of
from workers.evaluation.entrants import Entrant, entrants_of
from workers.evaluation.next_token_words import Found, findings, warnings
from workers.evaluation.predictors import Predictor, Written, mean_of_networks, window_losses, written
from workers.evaluation.scores import paired_measure
from workers.evaluation.subject import Examined, Subject
from workers.evaluation.texts import NGRAMS, UNITS, distinct, windows_of
from workers.evaluation.token_blocks import Blocks, plain_writer, predictors_of
from workers.method.likelihood import Bound
from workers.models.llama import LlamaDecoder, LlamaDenoiser, Options
from workers.models.recurrent import RecurrentDenoiser, answer, options_of, schedule

BOUND_WINDOWS = 128  # the bound and the blocks' facts are taken on so many windows at most
MOST_TEXTS = 16
SHOWN = 2  # texts of each contestant
RUNS = (1, 2, 4, 8)  # of a recurrent core: how its answer changes with them, besides the job's own number


@dataclass(frozen=True)
class Ours:
    """What an architecture's blocks bring: predictors, the job's own first ("blocks"); what is known of each block;
    the bound of the windows (W, T) it was taken on, and that of a perfect denoiser of "average" by the same draws."""

    predictors: tuple[Predictor, ...]
    block_metrics: tuple[Metric, ...] = ()
    facts: tuple[dict[str, float], ...] = ()
    bound: Bound | None = None
    wrapped: Bound | None = None
    warnings: tuple[str, ...] = ()


def examine(subject: Subject) -> Examined:
    """Bits a token of the blocks and of every baseline on the same test windows, each window by itself."""
    contract = subject.plan.contract
    vocabulary, _ = contract.tokens
    windows = windows_of(subject.held_out(subject.data.test))
    ours = OURS[contract.architecture](subject, windows)
    predictors = (*ours.predictors, *rivals(subject))
    return compared(subject, ours, predictors, windows, unit=UNITS[vocabulary.kind])


def compared(
    subject: Subject, ours: Ours, predictors: tuple[Predictor, ...], windows: Tensor, *, unit: str
) -> Examined:
    """The comparison of predictors on test windows (W, T) int64, with unigram and bigram tables as the floor."""
    vocabulary, length = subject.plan.contract.tokens
    size = _table(predictors[0], windows, subject.device)
    losses = {one.key: window_losses(one.predict, windows, size, subject.device) for one in predictors}
    losses |= {
        key: table_losses(subject.data.train, windows, vocabulary.size, order=order)
        for key, order in (("unigram", 1), ("bigram", 2))
    }
    count = min(subject.spec.evaluation.samples, MOST_TEXTS)
    texts = {one.key: written(one, count, length, subject.device) for one in predictors} if count else {}
    found = Found(
        losses=losses,
        titles={one.key: one.title for one in predictors},
        unit=unit,
        bound=None if ours.bound is None else ours.bound.total.double().mean(dim=1),
        wrapped=None if ours.wrapped is None else ours.wrapped.total.double().mean(dim=1),
        facts=ours.facts,
        distinct={key: distinct(one.tokens, NGRAMS[-1]) for key, one in texts.items()},
        seconds={key: one.seconds for key, one in texts.items()},
        layers={one.key: one.layers for one in predictors},
    )
    return Examined(
        quality=Comparison(
            family="next_token",
            primary="bits",
            metrics=tuple(_metrics(found, len(windows), count)),
            contestants=tuple(_contestants(predictors, found, texts, windows[:count])),
            block_metrics=ours.block_metrics,
            blocks=tuple(_facts(subject, index, values) for index, values in enumerate(ours.facts)),
            samples=tuple(_samples(subject, predictors, texts, windows)),
        ),
        warnings=(*ours.warnings, *warnings(found)),
        findings=tuple(findings(found)),
    )


def rivals(subject: Subject) -> Iterator[Predictor]:
    """The baselines that were trained; an ensemble answers with its members' mean probability."""
    for entrant in entrants_of(subject):
        if not entrant.ours:
            yield _plain(entrant)


def _plain(entrant: Entrant) -> Predictor:
    (part,) = entrant.parts
    cached = isinstance(part.networks[0], LlamaDecoder)  # one of a kind; each that is asked for is read
    return Predictor(
        key=entrant.key,
        title=entrant.title,
        layers=part.layers * part.members,
        predict=mean_of_networks(part.networks),
        note=entrant.note.replace(", all noise levels", ""),
        writer=partial(plain_writer, cast(Sequence[LlamaDecoder], part.networks)) if cached else None,
    )


def _llama(subject: Subject, windows: Tensor) -> Ours:
    contract = subject.plan.contract
    options = Options.model_validate(contract.options)
    blocks = Blocks(cast(Sequence[LlamaDenoiser], subject.blocks), contract.edges, options.euler_steps)
    some = windows[:BOUND_WINDOWS]
    bound = blocks.bound(some, subject.device)
    facts = blocks.facts(some, subject.device)
    for values, part in zip(facts, bound.blocks, strict=True):
        values["bound_share"] = float(part.mean())
    layers = [layers_of(planned) for planned in subject.plan.blocks]
    return Ours(
        predictors=predictors_of(blocks, layers, options.decode),
        block_metrics=LLAMA_BLOCK_METRICS,
        facts=tuple(facts),
        bound=bound,
        wrapped=blocks.wrapped_bound(some, subject.device),
    )


def _recurrent(subject: Subject, _windows: Tensor) -> Ours:
    contract = subject.plan.contract
    options = options_of(contract)
    network = cast(RecurrentDenoiser, subject.blocks[0])

    def predict(levels: tuple[float, ...], tokens: Tensor) -> Tensor:
        return answer(network, tokens, levels).float().log_softmax(dim=2)

    def after(steps: int, key: str) -> Predictor:
        return Predictor(
            key=key,
            title=f"One core, {steps} runs" if steps > 1 else "One core, a single run",
            layers=options.prelude + steps * (options.core + options.coda),  # every run's guess is read out
            predict=partial(predict, schedule(contract, steps)),
            note="z from 0 at sigma_max, by the mean code of the answer after every run",
            ours=True,
        )

    others = [steps for steps in RUNS if steps != options.steps]
    named = {1: "single_run"}
    return Ours(
        predictors=(
            after(options.steps, "blocks"),
            *(after(steps, named.get(steps, f"runs_{steps}")) for steps in others),
        )
    )


OURS: dict[str, Callable[[Subject, Tensor], Ours]] = {"llama": _llama, "recurrent": _recurrent}
LLAMA_BLOCK_METRICS = (
    Metric(
        key="bound_share",
        title="In the bound",
        unit="nats/token",
        note="what the block's interval adds to the bound; all blocks' and the two ends' add up to it",
    ),
    Metric(
        key="pure_noise",
        title="Pure noise",
        unit="nats/token",
        better="lower",
        note="-ln p(token | past): the block as a plain model of its own layers",
    ),
    Metric(
        key="teacher",
        title="Upper edge",
        unit="nats/token",
        better="lower",
        note="-ln p(token | past, z) with z made from the true token at the block's upper edge",
    ),
    Metric(
        key="shuffled",
        title="Upper edge, another past",
        unit="nats/token",
        note="the same with another window's past: near the column before it, the block does not look at the past",
    ),
    Metric(
        key="z_only",
        title="z alone",
        unit="nats/token",
        note="-ln p(token | z) by Bayes' rule, all tokens equally likely: what z tells without any network",
    ),
)


def _table(predictor: Predictor, windows: Tensor, device: torch.device) -> int:
    """Tokens that a predictor tells apart: the table's size, which may exceed the vocabulary's."""
    return predictor.predict(windows[:1, :1].to(device)).shape[2]


def table_losses(train: Split, windows: Tensor, vocabulary: int, *, order: int) -> Tensor:
    """-ln of each token's frequency in the training text, of order 2 after the token before it: (W,) float64, the mean
    of a window. One is added to every count of a token; a pair's frequency is added to by so much of its second's."""
    stream: NDArray[np.int64] = train.inputs.reshape(-1).astype(np.int64)
    counts = np.bincount(stream, minlength=vocabulary) + 1.0
    frequencies = torch.from_numpy(counts / counts.sum())  # pyright: ignore[reportUnknownMemberType]
    alone = frequencies[windows]
    if order == 1:
        return -alone.log().mean(dim=1)
    pairs, times = np.unique(stream[:-1] * vocabulary + stream[1:], return_counts=True)
    known = torch.from_numpy(pairs)  # pyright: ignore[reportUnknownMemberType]
    seen = torch.from_numpy(times).double()  # pyright: ignore[reportUnknownMemberType]
    asked = windows[:, :-1] * vocabulary + windows[:, 1:]
    place = torch.searchsorted(known, asked).clamp(max=len(known) - 1)
    both = torch.where(known[place] == asked, seen[place], 0.0)
    before = torch.from_numpy(counts - 1.0)[windows[:, :-1]]  # pyright: ignore[reportUnknownMemberType]
    smoothed = (both + alone[:, 1:]) / (before + 1.0)
    return -torch.cat((alone[:, :1], smoothed), dim=1).log().mean(dim=1)


def _metrics(found: Found, windows: int, texts: int) -> Iterator[Metric]:
    yield Metric(
        key="bits",
        title="Bits",
        unit=found.unit,
        better="lower",
        note=f"exact -log2 p of {windows} test windows, each token from those before it in its window; standard error "
        "over the windows",
    )
    if found.bound is not None:
        yield Metric(
            key="bound",
            title="Bits, at most",
            unit=found.unit,
            better="lower",
            note=f"of the denoisers along all noise levels (I-MMSE), on the first {len(found.bound)} windows; what "
            "sampling z could reach, where the decodes above take its mean",
        )
    if texts:
        for n in NGRAMS:
            yield Metric(
                key=f"distinct_{n}",
                title=f"Distinct-{n}",
                note=f"different {n}-grams per {n}-gram of {texts} texts; good is near the held-out text's, as long",
            )
        yield Metric(
            key="seconds",
            title="Seconds a token",
            unit="s",
            better="lower",
            note=f"of {texts} texts written side by side",
        )


def _contestants(
    predictors: tuple[Predictor, ...], found: Found, texts: dict[str, Written], held_out: Tensor
) -> Iterator[Contestant]:
    for one in predictors:
        values = _bits(found.losses[one.key])
        if one.key == "blocks" and found.bound is not None:
            values["bound"] = _bits(found.bound)["bits"]
        if one.key in texts:
            values |= _variety(texts[one.key].tokens) | {"seconds": Measured(value=texts[one.key].seconds)}
        yield Contestant(
            key=one.key,
            title=one.title,
            note=one.note,
            ours=one.ours,
            layer_evaluations=one.layers,
            values=values,
            paired=_against_blocks(found, one.key),
        )
    for key, title in (("bigram", "Pairs of tokens"), ("unigram", "Token frequencies")):
        note = "counted in the training text: what a network must beat"
        paired = _against_blocks(found, key)
        yield Contestant(key=key, title=title, note=note, values=_bits(found.losses[key]), paired=paired)
    if texts:
        yield Contestant(
            key="floor", title="Held-out text", note="what the data score themselves", values=_variety(held_out)
        )


def _bits(losses: Tensor) -> dict[str, Measured]:
    error = float(losses.std()) / math.sqrt(len(losses)) / math.log(2) if len(losses) > 1 else None
    return {"bits": Measured(value=float(losses.mean()) / math.log(2), standard_error=error)}


def _against_blocks(found: Found, key: str) -> Measured | None:
    """In bits, window by window; None for the blocks themselves."""
    return None if key == "blocks" else paired_measure(found.losses["blocks"], found.losses[key], math.log(2))


def _variety(tokens: Tensor) -> dict[str, Measured]:
    shares = {f"distinct_{n}": distinct(tokens, n) for n in NGRAMS}
    return {key: Measured(value=share) for key, share in shares.items() if share is not None}


def _facts(subject: Subject, index: int, values: dict[str, float]) -> BlockFacts:
    planned = subject.plan.blocks[index]
    return BlockFacts(index=index, sigma_min=planned.sigma_min, sigma_max=planned.sigma_max, values={**values})


def _samples(
    subject: Subject, predictors: tuple[Predictor, ...], texts: dict[str, Written], windows: Tensor
) -> Iterator[Sample]:
    if not texts:
        return
    vocabulary, _ = subject.plan.contract.tokens
    codec = codec_of(vocabulary)

    def shown(row: Tensor) -> str:
        known = row[row < vocabulary.size]  # a table may be larger than the vocabulary
        return codec.decode(cast(list[int], known.tolist()))  # pyright: ignore[reportUnknownMemberType]

    for one in predictors:
        for row in texts[one.key].tokens[:SHOWN]:
            yield Sample(title=one.title, caption="written from nothing", text=shown(row))
    for row in windows[:SHOWN]:
        yield Sample(title="Held-out text", caption="a test window", text=shown(row))

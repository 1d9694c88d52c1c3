"""The blocks of "llama" as predictors, and what each of them does in its own noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.evaluation.predictors import Predictor, Writer
from workers.evaluation.scores import mean_of_probabilities
from workers.method.likelihood import Bound, likelihood_bound
from workers.method.tokens import averaged, log_prior, noised_tokens, soft_chain
from workers.models.llama import LlamaDecoder, LlamaDenoiser, Memory, Reading

DRAWS = 8  # noise levels in a block's interval, of every window
LOGITS = 1 << 24  # logits at one time at most
_SEED = 20261124


@dataclass(frozen=True)
class Blocks:
    """All blocks side by side, and the edges between them."""

    networks: Sequence[LlamaDenoiser]  # of a large model in memory in turn
    edges: tuple[float, ...]
    euler_steps: int

    @cached_property
    def codes(self) -> Tensor:
        """The same for all of them."""
        return self.networks[0].codes

    def average(self, readings: Sequence[Reading]) -> Tensor:
        """Log-probabilities (N, T, V): the mean of the clean streams'."""
        pairs = zip(self.networks, readings, strict=True)
        return averaged([F.log_softmax(block.logits(reading.hidden).float(), dim=2) for block, reading in pairs])

    def chain(self, readings: Sequence[Reading]) -> Tensor:
        """Log-probabilities (N, T, V) of the soft chain; the clean streams are read once for all its steps."""
        rows, tokens = readings[0].hidden.shape[:2]
        answer = partial(self.answer, readings)
        return soft_chain(answer, self.codes, self.edges, steps=self.euler_steps, rows=rows, tokens=tokens)

    def answer(self, readings: Sequence[Reading], block: int, z: Tensor, sigma: Tensor) -> Tensor:
        return self.networks[block].answer(readings[block], z, sigma)

    def read(self, tokens: Tensor) -> list[Reading]:
        """Every block's clean stream over whole texts (N, T)."""
        return [block.read(block.shifted(tokens)) for block in self.networks]

    def bound(self, windows: Tensor, device: torch.device) -> Bound:
        """The likelihood's bound of windows (W, T), each by itself."""
        return self._integrated(windows, device, self.answer)

    def wrapped_bound(self, windows: Tensor, device: torch.device) -> Bound:
        """The same integral, by the same draws, with a perfect denoiser of `average` in the blocks' place: it must come
        out at the likelihood of `average`, which says how well the integral itself is taken."""

        def perfect(readings: Sequence[Reading], _block: int, z: Tensor, sigma: Tensor) -> Tensor:
            return self.average(readings) + log_prior(z, self.codes, sigma)

        return self._integrated(windows, device, perfect)

    def _integrated(
        self,
        windows: Tensor,
        device: torch.device,
        answer: Callable[[Sequence[Reading], int, Tensor, Tensor], Tensor],
    ) -> Bound:
        generator = torch.Generator(device).manual_seed(_SEED)
        parts: list[Bound] = []
        for tokens in _pieces(windows, len(self.codes), device):
            readings = self.read(tokens)
            parts.append(
                likelihood_bound(
                    partial(answer, readings),
                    self.average(readings),
                    tokens,
                    self.codes,
                    self.edges,
                    draws=DRAWS,
                    generator=generator,
                )
            )
        each = zip(*(part.blocks for part in parts), strict=True)
        return Bound(
            torch.cat([part.above for part in parts]).cpu(),
            tuple(torch.cat(block).cpu() for block in each),
            torch.cat([part.below for part in parts]).cpu(),
        )

    def facts(self, windows: Tensor, device: torch.device) -> list[dict[str, float]]:
        """Of each block, in nats a token: `pure_noise` its clean stream's loss; at its upper edge, with z made from the
        true tokens, `teacher` its loss, `shuffled` that with another window's past, `z_only` that of z alone."""
        generator = torch.Generator(device).manual_seed(_SEED)
        sums: list[dict[str, float]] = [{} for _ in self.networks]
        for tokens in _pieces(windows, len(self.codes), device):
            for index, block in enumerate(self.networks):
                reading = block.read(block.shifted(tokens))
                other = block.read(block.shifted(tokens.roll(1, dims=0)))
                sigma = torch.full((len(tokens),), self.edges[index], device=device)
                z = noised_tokens(self.codes, tokens, sigma, generator=generator)
                losses = {
                    "pure_noise": block.logits(reading.hidden),
                    "teacher": block.answer(reading, z, sigma),
                    "shuffled": block.answer(other, z, sigma),
                    "z_only": log_prior(z, self.codes, sigma),
                }
                for name, logits in losses.items():
                    sums[index][name] = sums[index].get(name, 0.0) + _loss(logits, tokens) * len(tokens)
        return [{name: total / len(windows) for name, total in block.items()} for block in sums]


def predictors_of(blocks: Blocks, layers: Sequence[int], decode: str) -> tuple[Predictor, ...]:
    """The two ways in which blocks of so many layers each predict: the job's own first, as "blocks"."""
    steps = max(1, -(-blocks.euler_steps // len(layers)))
    total = sum(layers)
    average = Predictor(
        key="average",
        title="Assembled blocks, averaged",
        layers=total,
        predict=lambda tokens: blocks.average(blocks.read(tokens)),
        note="the mean of the blocks' log-probabilities in pure noise, where z says nothing",
        ours=True,
        writer=partial(_begun, blocks, blocks.average),
    )
    chain = Predictor(
        key="chain",
        title="Assembled blocks, in a chain",
        layers=total + steps * total,
        predict=lambda tokens: blocks.chain(blocks.read(tokens)),
        note=f"z from 0 at sigma_max through {steps} Euler steps of every block, by the mean code of its answer",
        ours=True,
        writer=partial(_begun, blocks, blocks.chain),
    )
    first, second = (average, chain) if decode == "average" else (chain, average)
    return (replace(first, key="blocks"), second)


def plain_writer(networks: Sequence[LlamaDecoder], rows: int) -> Writer:
    """Writes N texts with the mean probabilities of plain decoders, each place read once."""
    streams = [_Stream(networks, place, rows) for place in range(len(networks))]

    def log_probabilities(place: int, latest: Tensor | None) -> Tensor:
        last = streams[place].next(latest).hidden[:, -1]
        return F.log_softmax(networks[place].logits(last).float(), dim=1)

    return lambda latest: mean_of_probabilities([log_probabilities(place, latest) for place in range(len(networks))])


def _begun(blocks: Blocks, combined: Callable[[Sequence[Reading]], Tensor], rows: int) -> Writer:
    streams = [_Stream(blocks.networks, place, rows) for place in range(len(blocks.networks))]
    return lambda latest: combined([stream.next(latest) for stream in streams])[:, -1]


class _Stream:
    """A clean stream that is read one place at a time; what it has read stays as keys and values."""

    def __init__(self, networks: Sequence[LlamaDecoder], place: int, rows: int) -> None:
        self._networks = networks
        self._place = place
        self._rows = rows
        self._memory: Memory = ()

    def next(self, latest: Tensor | None) -> Reading:
        """The place after the latest tokens (N,); None: the first place."""
        network = self._networks[self._place]
        inputs = network.start.expand(self._rows, 1, -1) if latest is None else network.embedding(latest)[:, None]
        reading = network.read(inputs, self._memory)
        self._memory = reading.memory
        return reading


def _pieces(windows: Tensor, size: int, device: torch.device) -> Iterator[Tensor]:
    """Windows (W, T) in parts whose logits fit."""
    rows = max(1, LOGITS // (windows.shape[1] * size))
    for start in range(0, len(windows), rows):
        yield windows[start : start + rows].to(device)


def _loss(logits: Tensor, tokens: Tensor) -> float:
    return float(F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten()))

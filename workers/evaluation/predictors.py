"""Whatever predicts the next token from its past, and what it is worth: likelihood of text, texts it writes.

Shapes: N rows, T tokens, V table, W windows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.evaluation.scores import mean_of_probabilities

LOGITS = 1 << 24  # logits at one time at most
_SEED = 20261123

Predict = Callable[[Tensor], Tensor]  # tokens (N, T) -> log-probabilities (N, T, V), of place t from tokens before t
Writer = Callable[[Tensor | None], Tensor]  # latest tokens (N,), None at the start -> log-probabilities (N, V)


@dataclass(frozen=True)
class Predictor:
    """A distribution of every token given its past alone, which is what makes its likelihood comparable."""

    key: str
    title: str
    layers: int  # run for one token
    predict: Predict
    note: str = ""
    ours: bool = False
    writer: Callable[[int], Writer] | None = None  # begins N texts, with caches; None: reads all of them every time

    def begin(self, rows: int, device: torch.device) -> Writer:
        if self.writer is not None:
            return self.writer(rows)
        return _Rereading(self.predict, torch.zeros(rows, 0, dtype=torch.int64, device=device)).next


@dataclass(frozen=True)
class Written:
    """Texts of a predictor, (N, T), and the seconds it took to write one token of all of them."""

    tokens: Tensor
    seconds: float


def mean_of_networks(networks: Sequence[nn.Module]) -> Predict:
    """The mean probabilities of networks that give logits (N, T, V) of tokens (N, T) from their past."""
    return lambda tokens: mean_of_probabilities([F.log_softmax(one(tokens).float(), dim=2) for one in networks])


def window_losses(predict: Predict, windows: Tensor, vocabulary: int, device: torch.device) -> Tensor:
    """Mean -ln p(token | the window's tokens before it) of every window (W, T): (W,) float64, nats."""
    rows = max(1, LOGITS // (windows.shape[1] * vocabulary))
    losses: list[Tensor] = []
    for start in range(0, len(windows), rows):
        tokens = windows[start : start + rows].to(device)
        log_p = predict(tokens).gather(2, tokens[..., None])[..., 0]
        losses.append(-log_p.double().mean(dim=1).cpu())
    return torch.cat(losses)


def written(predictor: Predictor, rows: int, length: int, device: torch.device) -> Written:
    """Texts drawn token by token from the start; every predictor draws from a generator of the same seed."""
    generator = torch.Generator(device).manual_seed(_SEED)
    write = predictor.begin(rows, device)
    latest: Tensor | None = None
    tokens: list[Tensor] = []
    began = time.perf_counter()
    for _ in range(length):
        latest = torch.multinomial(write(latest).exp(), 1, generator=generator)[:, 0]
        tokens.append(latest)
    return Written(torch.stack(tokens, dim=1).cpu(), (time.perf_counter() - began) / length)


class _Rereading:
    """Predicts the place after the text so far, by predicting all of it with any token in that place."""

    def __init__(self, predict: Predict, tokens: Tensor) -> None:
        self._predict = predict
        self._tokens = tokens  # (N, t)

    def next(self, latest: Tensor | None) -> Tensor:
        if latest is not None:
            self._tokens = torch.cat((self._tokens, latest[:, None]), dim=1)
        return self._predict(F.pad(self._tokens, (0, 1)))[:, -1]

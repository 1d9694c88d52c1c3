"""Activation checkpointing: a residual layer keeps its inputs alone, and its backward pass computes the rest anew."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from workers.memory import SavedBytes, watching
from workers.models.protocol import ResidualNetwork


class Recomputed:
    """The network's residual layers, from now on recomputed in the backward pass; gradients stay bit for bit the same.

    Dropout draws again what it drew: checkpoint() puts the generators' states back.
    """

    def __init__(self, network: nn.Module) -> None:
        layers = cast(ResidualNetwork, network).residual_layers()
        self._layers = list({id(layer): layer for layer in layers}.values())  # a shared one once
        self._forwards: list[Callable[..., Any]] = [layer.forward for layer in self._layers]
        for layer, forward in zip(self._layers, self._forwards, strict=True):
            layer.forward = partial(checkpoint, forward, use_reentrant=False)

    @contextmanager
    def counting(self, saved: SavedBytes) -> Generator[None, None, None]:
        """Counts what autograd's hooks do not see: the layers' inputs, and the most that one layer saves while it is
        computed anew, which is found by running each layer once more."""
        hooks = [
            layer.register_forward_pre_hook(partial(_count, saved, forward), with_kwargs=True)
            for layer, forward in zip(self._layers, self._forwards, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _count(
    saved: SavedBytes, forward: Callable[..., Any], _layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    inputs = [tensor for value in (*arguments, *named.values()) for tensor in _tensors(value)]
    for tensor in inputs:
        saved.saw(tensor)
    devices = {tensor.device for tensor in inputs if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        alone = saved.apart()
        with watching(alone):
            kept = forward(*arguments, **named)
        del kept
        saved.at_a_time(alone.total)


def _tensors(value: object) -> Iterator[Tensor]:
    """An argument's tensors: itself, or the fields of a dataclass (keys and values, rotations)."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))

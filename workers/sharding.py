"""Sharding: each worker of a task keeps its share of parameters, gradients, optimizer state and averaged weights.

By torch's fully_shard (FSDP2; Zhao et al. 2023, arXiv 2304.11277, as ZeRO stage 3, arXiv 1910.02054): a parameter is a
DTensor, cut along its first dimension. Its whole is gathered for the layer that computes with it, and its gradients are
summed up and cut at once. What is saved is whole, as one worker would save it.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dbserve.contracts.job import JobSpec
from workers.data import Batch
from workers.group import Together, Workers
from workers.memory import SavedBytes
from workers.models import Loss
from workers.models.decoder import DecoderLayer
from workers.models.protocol import ResidualNetwork

_GO, _CAPTURE = 0, 1


def is_sharded(spec: JobSpec, size: int) -> bool:
    """Whether a task's workers share out its state: one alone has nobody to share it with."""
    return spec.resources.sharding == "state" and size > 1


class Captures:
    """How a sharded state is put together: the leader says when, and all take part, between two steps."""

    def __init__(self, workers: Together) -> None:
        self._workers = workers

    def announced(self, capture: Callable[[], Any]) -> Any:
        """The leader's: what capture() gives, once the others do the same."""
        self._workers.agree(_CAPTURE)
        return capture()

    def proceed(self) -> None:
        """The leader's: to the next step."""
        self._workers.agree(_GO)

    def attend(self, capture: Callable[[], Any]) -> None:
        """The others': captures as often as the leader does, until it goes on."""
        while self._workers.agree(_GO) == _CAPTURE:
            capture()


class Entrance(nn.Module):
    """Where a sharded network is entered: through forward() of a module, whose hooks gather what is not in a layer.

    A loss calls its network in whatever way it likes, so it is called in here.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, loss: Loss, batch: Batch, generator: torch.Generator) -> Tensor:
        return loss(batch, generator)

    def through(self, loss: Loss) -> Loss:
        """The same loss, computed with whole parameters."""
        return lambda batch, generator: self(loss, batch, generator)

    def leave(self) -> None:
        """Lets go of what a forward pass without a backward pass has gathered."""
        cast(Any, self).reshard()

    @contextmanager
    def counting(self, saved: SavedBytes) -> Generator[None, None, None]:
        """Parameters that are gathered for a forward pass inside it are not what it saves."""
        hooks: list[RemovableHandle] = []
        for unit in (*_apart(self.network), self):
            hooks.append(unit.register_forward_pre_hook(lambda module, _inputs: saved.pass_over(module.parameters())))
            hooks.append(unit.register_forward_hook(lambda _module, _inputs, _output: saved.pass_over_no_more()))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def shard(network: nn.Module, workers: Workers) -> Entrance:
    """Shares out the network's parameters, the same for all workers until now."""
    from torch.distributed.device_mesh import init_device_mesh  # late: only sharded trainings need them
    from torch.distributed.fsdp import fully_shard

    device = next(network.parameters()).device
    mesh = init_device_mesh(device.type, (workers.size,))
    entrance = Entrance(network)
    for unit in (*_apart(network), entrance):
        fully_shard(unit, mesh=mesh)
        unit: Any = unit
        unit.set_gradient_divide_factor(1.0)  # each part's loss is its share of the step's: gradients are summed up
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return entrance


def _apart(network: nn.Module) -> Iterator[nn.Module]:
    """The layers that are gathered one at a time: those that are entered by forward() alone, and give one tensor.

    A decoder's hands on its keys and values, too, whose gradients may come back before that of its output would have
    it gathered, and may be entered for them alone: it is gathered with the rest of the network.
    """
    layers = cast(ResidualNetwork, network).residual_layers()
    yield from {id(layer): layer for layer in layers if not isinstance(layer, DecoderLayer)}.values()

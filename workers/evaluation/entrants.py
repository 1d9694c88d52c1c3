"""Who generates: the assembled blocks, every baseline, and the blocks in the wrong order."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from dbserve.contracts.plan import TaskKind
from workers.evaluation.costs import layers_of
from workers.evaluation.residence import Chosen
from workers.evaluation.subject import Subject
from workers.method.ode import Denoiser, mean_of
from workers.models.protocol import ImageGenerator

TITLES = {
    "end_to_end": "End-to-end",
    "shallow": "Shallow",
    "shallow_long": "Shallow, trained longer",
    "shallow_ensemble": "Shallow ensemble",
    "data_parallel": "Data-parallel",
}
NOTES = {
    "end_to_end": "all layers, all noise levels, as many steps as a block",
    "shallow": "a block's layers, all noise levels",
    "shallow_long": "a block's layers, all noise levels, steps x blocks",
    "shallow_ensemble": "the mean answer of as many shallow networks as there are blocks",
    "data_parallel": "all layers, as many workers as blocks, steps / blocks",
}


@dataclass(frozen=True)
class Part:
    """What answers in one interval of noise levels: a network, or the mean of several."""

    networks: Sequence[nn.Module]
    layers: int  # of each

    def denoiser(self, generator: ImageGenerator, labels: Tensor, guidance: float, count: LayerCount) -> Denoiser:
        members = [partial(self._answer, place, generator, labels, guidance, count) for place in range(self.members)]
        return members[0] if len(members) == 1 else mean_of(members)

    @property
    def members(self) -> int:
        return len(self.networks)

    def _answer(
        self,
        place: int,
        generator: ImageGenerator,
        labels: Tensor,
        guidance: float,
        count: LayerCount,
        z: Tensor,
        sigma: Tensor,
    ) -> Tensor:
        """The network is asked for anew each time: it may have made room for another one."""
        network = self.networks[place]
        with count.layers_run_by(network, self.layers):
            return generator.of_classes(network, labels, guidance)(z, sigma)


@dataclass(frozen=True)
class Entrant:
    """One part for each interval of `edges`, the highest noise first."""

    key: str
    title: str
    parts: tuple[Part, ...]
    edges: tuple[float, ...]
    note: str = ""
    ours: bool = False

    def denoisers(
        self, generator: ImageGenerator, labels: Tensor, guidance: float, count: LayerCount | None = None
    ) -> list[Denoiser]:
        """Of these classes (N,), on the networks' device."""
        return [part.denoiser(generator, labels, guidance, count or LayerCount()) for part in self.parts]


@dataclass
class LayerCount:
    """Layers that networks really ran so far, whatever sampler and guidance asked of them; each for a whole batch."""

    total: int = 0

    @contextmanager
    def layers_run_by(self, network: nn.Module, layers: int) -> Generator[None, None, None]:
        """Counts the passes inside it through a network of that many layers."""
        hook = network.register_forward_hook(partial(self._add, layers))
        try:
            yield
        finally:
            hook.remove()

    def _add(self, layers: int, *_forward: object) -> None:
        self.total += layers


def entrants_of(subject: Subject) -> tuple[Entrant, ...]:
    """The blocks first, then the baselines that were trained; last, where there are several, the blocks reversed."""
    contract, plan = subject.plan.contract, subject.plan
    parts = tuple(Part(Chosen(subject.blocks, (block.index,)), layers_of(block)) for block in plan.blocks)
    found = [Entrant("blocks", "Assembled blocks", parts, contract.edges, "each in its own noise levels", ours=True)]
    whole_range = (contract.sigma_max, contract.sigma_min)
    for key, networks, layers in _rivals(subject):
        found.append(Entrant(key, TITLES[key], (Part(networks, layers),), whole_range, NOTES[key]))
    if len(parts) > 1:
        note = "diagnosis: each block in another's noise levels, which should do worse"
        found.append(Entrant("reversed", "Blocks in reversed order", parts[::-1], contract.edges, note, ours=True))
    return tuple(found)


def _rivals(subject: Subject) -> Iterator[tuple[str, Sequence[nn.Module], int]]:
    networks = subject.baselines()
    for kind in (TaskKind.END_TO_END, TaskKind.DATA_PARALLEL, TaskKind.SHALLOW_LONG):
        for task in subject.plan.tasks:
            if task.kind is kind:
                yield kind.value, Chosen(networks, (task.name,)), layers_of(subject.plan.network_of(task))
    members = subject.shallow_members()
    layers = layers_of(subject.plan.shallow)
    if members:
        yield "shallow", Chosen(networks, members[:1]), layers
    if "shallow_ensemble" in subject.spec.evaluation.baselines and len(members) == len(subject.blocks) > 1:
        yield "shallow_ensemble", Chosen(networks, members), layers

"""Initial weights from an existing network: every block starts from its own layers of it, the baselines likewise."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import Contract, JobPlan, TaskKind, TaskPlan
from dbserve.conversion import Source, StoredTensor, layer_map, read_source, root_of, stored_tensors
from dbserve.conversion.sources import POINTER
from dbserve.errors import ConfigInvalid
from workers.models.protocol import ResidualNetwork
from workers.trainer import build_network


def initial_weights(spec: JobSpec, plan: JobPlan, task: TaskPlan) -> dict[str, Tensor] | None:
    """All weights of the task's network: the source's where it has them, the others drawn from the seed.

    None where the job has no source, or the source no weights. Raises ConfigInvalid at /architecture/source where a
    file is broken or a shape is not ours.
    """
    if spec.architecture.source is None:
        return None
    source = read_source(spec.architecture.source)
    stored = stored_tensors(source.directory)
    if not stored:
        return None
    network = build_network(spec, plan, task)
    weights = dict(network.state_dict())
    layers = cast(ResidualNetwork, network).residual_layers()
    first = _first_layer(plan, task, len(layers))
    with _Tensors(stored, root_of(stored, layer_map(source.kind))) as tensors:
        found = {
            **dict(_of_layers(network, layers, source, first, tensors)),
            **dict(_READERS[source.kind](source, plan.contract, tensors)),
        }
    for name, tensor in found.items():
        if name in weights:  # a head of its own is the source's, or ours, alone
            if tensor.shape != weights[name].shape:
                raise ConfigInvalid(
                    f"{source.directory}: what is to be {name} has shape {tuple(tensor.shape)}, "
                    f"not {tuple(weights[name].shape)}",
                    POINTER,
                )
            weights[name] = tensor
    return weights


def _first_layer(plan: JobPlan, task: TaskPlan, count: int) -> int:
    """Where in the source the task's `count` layers begin. A shallow network starts as the block of its index does."""
    layers = plan.contract.layers
    match task.kind:
        case TaskKind.BLOCK:
            return layers[task.index][0]
        case TaskKind.SHALLOW | TaskKind.SHALLOW_LONG:
            return min(layers[task.index][0], layers[-1][1] - count)
        case _:
            return 0


class _Tensors:
    """Stored tensors by name, root left out, in float32; each file is opened once."""

    def __init__(self, stored: Mapping[str, StoredTensor], root: str) -> None:
        self._stored = stored
        self._root = root
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> "_Tensors":
        return self

    def __exit__(self, *_error: object) -> None:
        for file in self._open.values():
            file.__exit__(None, None, None)

    def get(self, name: str) -> Tensor | None:
        """None where there is none of that name, with the root or (a head) without."""
        for full in (self._root + name, name):
            if full in self._stored:
                path = self._stored[full].file
                if path not in self._open:
                    opened: Any = safe_open(path, framework="pt")
                    self._open[path] = opened.__enter__()
                return cast(Tensor, self._open[path].get_tensor(full)).to(torch.float32)
        return None

    def stacked(self, names: Sequence[str]) -> Tensor:
        """Their tensors one above the other; ConfigInvalid where one is missing."""
        found = [self.get(name) for name in names]
        for name, tensor in zip(names, found, strict=True):
            if tensor is None:
                raise ConfigInvalid(f"the weights hold no {self._root}{name}", POINTER)
        return torch.cat([tensor for tensor in found if tensor is not None])


def _of_layers(
    network: nn.Module, layers: Sequence[nn.Module], source: Source, first: int, tensors: _Tensors
) -> Iterator[tuple[str, Tensor]]:
    names = layer_map(source.kind)
    modules = cast(Iterator[tuple[str, nn.Module]], network.named_modules())
    place_of = {module: name for name, module in modules}
    for index, layer in enumerate(layers, start=first):
        for ours, parts in names.parts.items():
            theirs = [names.layer.format(index) + part for part in parts]
            yield f"{place_of[layer]}.{ours}", tensors.stacked(theirs)


Outside = Iterator[tuple[str, Tensor]]  # what is not of a layer: our parameter's name, its weights


def _vit(source: Source, contract: Contract, tensors: _Tensors) -> Outside:
    """Patches, positions, cls token, final norm; the head where its classes are the data's, in their order."""
    cls, positions = tensors.get("embeddings.cls_token"), tensors.get("embeddings.position_embeddings")
    if cls is not None and positions is not None:
        yield "trunk.cls", cls + positions[:, :1]
        yield "trunk.positions", positions[:, 1:]
    yield from _patches(tensors, "embeddings.patch_embeddings.projection", "trunk.embedding")
    yield from _same(tensors, {"layernorm.weight": "trunk.norm.weight", "layernorm.bias": "trunk.norm.bias"})
    if source.class_names == contract.class_names:
        yield from _same(tensors, {"classifier.weight": "head.weight", "classifier.bias": "head.bias"})


def _llama(source: Source, _contract: Contract, tensors: _Tensors) -> Outside:
    """The token table, what texts begin with, the final norm, and the head where it is not the table."""
    table = tensors.get("embed_tokens.weight")
    if table is not None:
        yield "embedding.weight", table
        if source.start_token is not None:
            yield "start", table[source.start_token]
    yield from _same(tensors, {"norm.weight": "norm.weight", "lm_head.weight": "head.weight"})


def _dit(_source: Source, _contract: Contract, tensors: _Tensors) -> Outside:
    """The patches. Its head answers for other noise, and its time embedding counts timesteps: ours start afresh."""
    return _patches(tensors, "pos_embed.proj", "embedding")


_READERS = {"vit": _vit, "llama": _llama, "dit": _dit}


def _patches(tensors: _Tensors, theirs: str, ours: str) -> Outside:
    """A convolution whose stride is its kernel is a linear layer of patches: (D, C, p, p) -> (D, C p p)."""
    weight, bias = tensors.get(f"{theirs}.weight"), tensors.get(f"{theirs}.bias")
    if weight is not None and bias is not None:
        yield f"{ours}.weight", weight.flatten(1)
        yield f"{ours}.bias", bias


def _same(tensors: _Tensors, names: Mapping[str, str]) -> Outside:
    for theirs, ours in names.items():
        tensor = tensors.get(theirs)
        if tensor is not None:
            yield ours, tensor

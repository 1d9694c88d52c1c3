"""Which stored tensors make up our parameters, and what a directory stores. Reads headers only, and no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dbserve.conversion.networks import Source
from dbserve.conversion.sources import POINTER, opened, read_json
from dbserve.errors import ConfigInvalid

_NAMES = ("model", "diffusion_pytorch_model")  # as transformers and diffusers call their files
_MAX_HEADER = 16 * 1024 * 1024  # bytes, of a hundred thousand tensors; safetensors' own limit is 100 MB


@dataclass(frozen=True)
class StoredTensor:
    file: Path
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerMap:
    """How the tensors of one layer are called. Parts of a parameter lie one above the other (along dimension 0)."""

    roots: tuple[str, ...]  # what names may begin with: a whole network's, or its body's alone
    layer: str  # then `layer.format(index)`
    parts: Mapping[str, tuple[str, ...]]  # our parameter's name in a layer -> theirs


def layer_map(kind: str) -> LayerMap:
    """The names of a layer of that kind of ours."""
    return _MAPS[kind]


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """The safetensors of a directory by name; empty where it has no weights at all. ConfigInvalid on a broken file."""
    for name in _NAMES:
        index, whole = directory / f"{name}.safetensors.index.json", directory / f"{name}.safetensors"
        if index.exists():
            found: Any = read_json(index).get("weight_map")
            if not isinstance(found, dict):
                raise ConfigInvalid(f"{index} has no weight_map", POINTER)
            shards = sorted({str(shard) for shard in cast(dict[str, Any], found).values()})
            if outside := [shard for shard in shards if Path(shard).name != shard]:
                raise ConfigInvalid(f"{index} names a file elsewhere: {outside[0]}", POINTER)
            return {key: tensor for shard in shards for key, tensor in _header(directory / shard).items()}
        if whole.exists():
            return _header(whole)
    if pickled := sorted([*directory.glob("*.bin"), *directory.glob("*.pt"), *directory.glob("*.ckpt")]):
        raise ConfigInvalid(
            f"{pickled[0].name} is a pickle, which could run anything: save the weights as safetensors", POINTER
        )
    return {}


def root_of(stored: Mapping[str, StoredTensor], names: LayerMap) -> str:
    """What the names of this directory begin with; ConfigInvalid where its first layer is not found."""
    for root in names.roots:
        if any(name.startswith(root + names.layer.format(0)) for name in stored):
            return root
    raise ConfigInvalid(f"the weights hold no {names.roots[0]}{names.layer.format(0)}*", POINTER)


def check_weights(source: Source) -> None:
    """ConfigInvalid where weights are stored, but a layer lacks one, or has one that ours has no place for."""
    stored = stored_tensors(source.directory)
    if not stored:
        return
    names = layer_map(source.kind)
    root = root_of(stored, names)
    depth = cast(int, source.options["depth"])
    wanted = {part for parts in names.parts.values() for part in parts}
    for index in range(depth):
        prefix = root + names.layer.format(index)
        found = {name.removeprefix(prefix) for name in stored if name.startswith(prefix)}
        if missing := sorted(wanted - found):
            raise ConfigInvalid(f"the weights hold no {prefix}{missing[0]}", POINTER)
        strange = sorted(name for name in found - wanted if not name.startswith(source.unused or ("\0",)))
        if strange:
            raise ConfigInvalid(f"{prefix}{strange[0]}: our layers have nothing like it", POINTER)
    if any(name.startswith(root + names.layer.format(depth)) for name in stored):
        raise ConfigInvalid(f"the weights hold more layers than config.json says ({depth})", POINTER)


def _header(path: Path) -> dict[str, StoredTensor]:
    """Names and shapes of a safetensors file: 8 bytes of length (little-endian), then JSON."""
    try:
        with opened(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER:
                raise ConfigInvalid(f"{path} is no safetensors file", POINTER)
            header: Any = json.loads(file.read(length))
        return {
            name: StoredTensor(path, _shape(entry["shape"]))
            for name, entry in cast(dict[str, Any], header).items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigInvalid(f"{path} cannot be read: {error}", POINTER) from error


def _shape(said: list[Any]) -> tuple[int, ...]:
    """Raises ValueError."""
    if type(said) is not list or not all(type(size) is int and size >= 0 for size in said):
        raise ValueError(f"{said!r:.80} is no shape")
    return tuple(said)


def _paired(names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Weight and bias of each."""
    return {
        f"{ours}.{kind}": tuple(f"{part}.{kind}" for part in parts)
        for ours, parts in names.items()
        for kind in ("weight", "bias")
    }


_MAPS = {
    "vit": LayerMap(
        roots=("vit.", ""),
        layer="encoder.layer.{}.",
        parts=_paired(
            {
                "attention_norm": ("layernorm_before",),
                "qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
                "projection": ("attention.output.dense",),
                "mlp_norm": ("layernorm_after",),
                "expand": ("intermediate.dense",),
                "contract": ("output.dense",),
            }
        ),
    ),
    "llama": LayerMap(
        roots=("model.", ""),
        layer="layers.{}.",
        parts={
            "attention_norm.weight": ("input_layernorm.weight",),
            "queries.weight": ("self_attn.q_proj.weight",),
            "keys.weight": ("self_attn.k_proj.weight",),
            "values.weight": ("self_attn.v_proj.weight",),
            "output.weight": ("self_attn.o_proj.weight",),
            "mlp_norm.weight": ("post_attention_layernorm.weight",),
            "gate.weight": ("mlp.gate_proj.weight",),
            "up.weight": ("mlp.up_proj.weight",),
            "down.weight": ("mlp.down_proj.weight",),
        },
    ),
    "dit": LayerMap(
        roots=("",),
        layer="transformer_blocks.{}.",
        parts=_paired(
            {
                "qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                "projection": ("attn1.to_out.0",),
                "expand": ("ff.net.0.proj",),
                "contract": ("ff.net.2",),
                "modulation.1": ("norm1.linear",),
            }
        ),
    ),
}

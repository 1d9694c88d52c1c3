"""config.json -> options of our architectures: one reader a model type. Everything we cannot be is refused by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue

from dbserve.conversion.sources import POINTER, Settings, read_json, source_directory
from dbserve.errors import ConfigInvalid

SKIPPING = ("UNet", "UVit", "UViT", "HunyuanDiT", "SkipDiT")  # model types that begin so join early layers to late ones
NORMALISED = 0.5  # mean and standard deviation that our x/127.5-1 amounts to


@dataclass(frozen=True)
class Source:
    """What config.json says of a network. None: it is no network of images, or of text."""

    directory: Path
    kind: str  # of our architecture
    options: dict[str, JsonValue]  # what it settles
    image: tuple[int, int] | None = None  # (side in pixels, channels)
    class_names: tuple[str, ...] = ()
    tokens: int | None = None  # rows of its token table
    start_token: int | None = None  # what its texts begin with
    unused: tuple[str, ...] = field(default=())  # tensors of a layer that ours has no use for, as name prefixes


def read_source(uri: str) -> Source:
    """The network in a directory; ConfigInvalid at /architecture/source with the reason where we have no such one."""
    directory = source_directory(uri)
    values = read_json(directory / "config.json")
    named: Any = values.get("model_type") or values.get("_class_name")
    if not isinstance(named, str):
        raise ConfigInvalid("config.json names neither a model_type nor a _class_name", POINTER)
    if named.startswith(SKIPPING):
        raise ConfigInvalid(
            f"{named} has skip connections from early to late layers: blocks that never talk to each other cannot",
            POINTER,
        )
    reader = _READERS.get(named)
    if reader is None:
        raise ConfigInvalid(f"networks of type {named!r} cannot be converted; {', '.join(_READERS)} can", POINTER)
    return reader(directory, Settings(values))


def _vit(directory: Path, config: Settings) -> Source:
    width, heads = config.count("hidden_size", 768), config.count("num_attention_heads", 12)
    _divides(heads, width)
    config.only("qkv_bias", True, "our attention has biases")
    side, patch = config.side("image_size", 224), config.side("patch_size", 16)
    if side % patch:
        raise config.refused("patch_size", f"does not divide image_size ({side})")
    _check_normalisation(directory)
    labels: Any = config.values.get("id2label") or {}
    return Source(
        directory=directory,
        kind="vit",
        options={
            "depth": config.count("num_hidden_layers", 12),
            "width": width,
            "heads": heads,
            "patch": patch,
            "mlp": config.count("intermediate_size", 3072),
            "norm_eps": config.number("layer_norm_eps", 1e-12),
            "activation": config.choice("hidden_act", "gelu", {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}),
            "conditioning": "add",  # its norms have weights, which modulated norms have not
        },
        image=(side, config.count("num_channels", 3)),
        class_names=tuple(map(str, cast(dict[str, Any], labels).values())) if isinstance(labels, dict) else (),
    )


def _llama(directory: Path, config: Settings) -> Source:
    width, heads = config.count("hidden_size", 4096), config.count("num_attention_heads", 32)
    _divides(heads, width)
    config.only("head_dim", width // heads, f"our heads are hidden_size / num_attention_heads = {width // heads} wide")
    config.only("hidden_act", "silu", "our MLP is SwiGLU with silu")
    config.only("attention_bias", False, "our attention has no biases")
    config.only("mlp_bias", False, "our MLP has no biases")
    config.only("rope_scaling", None, "our rotary positions are not scaled")
    config.only("partial_rotary_factor", 1.0, "our rotary positions turn whole heads")
    tied = config.values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise config.refused("tie_word_embeddings", "must be true or false")
    vocabulary, kv_heads = config.count("vocab_size", 32000), config.count("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.refused("num_key_value_heads", f"does not divide num_attention_heads ({heads})")
    start: Any = config.values.get("bos_token_id", 1)
    return Source(
        directory=directory,
        kind="llama",
        options={
            "depth": config.count("num_hidden_layers", 32),
            "width": width,
            "heads": heads,
            "kv_heads": kv_heads,
            "mlp": config.count("intermediate_size", 11008),
            "table": vocabulary,
            "positions": config.count("max_position_embeddings", 2048),
            "tied": tied,
            "rope_theta": _rope_theta(config),
            "norm_eps": config.number("rms_norm_eps", 1e-6),
        },
        tokens=vocabulary,
        start_token=start if type(start) is int and 0 <= start < vocabulary else None,
        unused=("self_attn.rotary_emb.",),
    )


def _dit(directory: Path, config: Settings) -> Source:
    heads, each = config.count("num_attention_heads", 16), config.count("attention_head_dim", 72)
    config.only("norm_type", "ada_norm_zero", "our modulation is adaLN-zero")
    config.only("norm_elementwise_affine", False, "our modulated norms have no weights of their own")
    config.only("attention_bias", True, "our attention has biases")
    side, patch = config.side("sample_size", 32), config.side("patch_size", 2)
    if side % patch:
        raise config.refused("patch_size", f"does not divide sample_size ({side})")
    activations = {"gelu-approximate": "gelu_tanh", "gelu": "gelu"}
    return Source(
        directory=directory,
        kind="dit",
        options={
            "depth": config.count("num_layers", 28),
            "width": heads * each,
            "heads": heads,
            "patch": patch,
            "mlp": 4 * heads * each,
            "norm_eps": config.number("norm_eps", 1e-5),
            "attention_norm_eps": 1e-6,  # which its adaLN-zero does not let be set
            "activation": config.choice("activation_fn", "gelu-approximate", activations),
            "conditioning": "adaln",
        },
        image=(side, config.count("in_channels", 4)),
        unused=("norm1.emb.",),  # its time and class embedding; it counts noise in timesteps
    )


_READERS: dict[str, Callable[[Path, Settings], Source]] = {
    "vit": _vit,
    "llama": _llama,
    "DiTTransformer2DModel": _dit,
}


def _divides(heads: int, width: int) -> None:
    if width % heads:
        raise ConfigInvalid(f"config.json: {heads} heads do not divide hidden_size ({width})", POINTER)


def _rope_theta(config: Settings) -> float:
    """Base of the rotary frequencies: a setting of its own, or (since transformers 5) inside rope_parameters."""
    nested: Any = config.values.get("rope_parameters")
    if nested is None:
        return config.number("rope_theta", 10_000.0)
    if not isinstance(nested, dict):
        raise config.refused("rope_parameters", "must be an object")
    rope = Settings(cast(dict[str, Any], nested))
    rope.only("rope_type", "default", "our rotary positions are not scaled")
    rope.only("partial_rotary_factor", 1.0, "our rotary positions turn whole heads")
    return rope.number("rope_theta", 10_000.0)


def _check_normalisation(directory: Path) -> None:
    """Pixels must reach the network as ours do; a directory without a preprocessor is taken at its word."""
    path = directory / "preprocessor_config.json"
    if not path.exists():
        return
    for name in ("image_mean", "image_std"):
        given: Any = read_json(path).get(name, NORMALISED)
        values = cast(list[Any], given) if isinstance(given, list) else [given]
        if any(value != NORMALISED for value in values):
            raise ConfigInvalid(
                f"{path.name}: {name} = {given}: our pixels are x / 127.5 - 1, a mean and deviation of {NORMALISED}",
                POINTER,
            )

"""Directories as transformers and diffusers write them, without either: config.json, weights under their names."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

VIT: dict[str, Any] = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 20,
    "max_position_embeddings": 32,
}
DIT: dict[str, Any] = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 1,
    "num_layers": 4,
    "sample_size": 8,
    "patch_size": 2,
}


def write_config(directory: Path, base: dict[str, Any], **changes: Any) -> Path:
    """The directory, now with a config.json; a change to ... removes the key."""
    directory.mkdir(parents=True, exist_ok=True)
    values = {name: value for name, value in {**base, **changes}.items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(values))
    return directory


def write_llama_weights(directory: Path, *, layers: int = 4, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Random weights of LLAMA under Hugging Face's names, and what else there shall be; gives them back."""
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (16,),
        "self_attn.q_proj": (16, 16),
        "self_attn.k_proj": (8, 16),
        "self_attn.v_proj": (8, 16),
        "self_attn.o_proj": (16, 16),
        "post_attention_layernorm": (16,),
        "mlp.gate_proj": (24, 16),
        "mlp.up_proj": (24, 16),
        "mlp.down_proj": (16, 24),
    }
    weights = {
        f"model.layers.{layer}.{name}.weight": torch.randn(shape)
        for layer in range(layers)
        for name, shape in shapes.items()
    }
    weights["model.embed_tokens.weight"] = torch.randn(20, 16)
    weights["model.norm.weight"] = torch.randn(16)
    weights["lm_head.weight"] = torch.randn(20, 16)
    save_file({**weights, **more}, directory / "model.safetensors")
    return weights

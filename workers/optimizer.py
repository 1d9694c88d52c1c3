"""AdamW, its learning rate, and its state as flat named tensors (safetensors knows no nesting)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dbserve.contracts.job import TrainingSpec

_MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(training: TrainingSpec, step: int, total: int) -> float:
    """The rate of step (0-based) of total: linear warmup, then constant, or a cosine that reaches 0 after the last."""
    warmup = min(training.warmup, total)
    if step < warmup:
        return training.lr * (step + 1) / warmup
    if training.schedule == "constant":
        return training.lr
    return training.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def adamw(network: nn.Module, training: TrainingSpec) -> torch.optim.AdamW:
    """Fused AdamW; matrices decay, vectors and embeddings (biases, norms, cls, positions) do not."""
    parameters = list(network.parameters())
    return torch.optim.AdamW(
        [
            {"params": [parameter for parameter in parameters if parameter.ndim == 2]},
            {"params": [parameter for parameter in parameters if parameter.ndim != 2], "weight_decay": 0.0},
        ],
        lr=training.lr,
        betas=training.betas,
        weight_decay=training.weight_decay,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def flat_state(network: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """Copies on the CPU: "exp_avg.<parameter>", "exp_avg_sq.<parameter>", "step". Empty before the first step."""
    flat: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        state: dict[str, Tensor] | None = optimizer.state.get(parameter)
        if state:
            flat |= {f"{moment}.{name}": _copy(state[moment]) for moment in _MOMENTS}
            flat["step"] = _copy(state["step"])
    return flat


def restore_state(network: nn.Module, optimizer: torch.optim.AdamW, flat: dict[str, Tensor]) -> None:
    """Puts flat_state()'s tensors back, bit for bit; KeyError where a parameter has none."""
    if not flat:
        return
    for name, parameter in network.named_parameters():
        state: dict[str, Any] = {f"{moment}": flat[f"{moment}.{name}"].to(parameter, copy=True) for moment in _MOMENTS}
        # The fused kernel counts steps on the device of the parameter.
        state["step"] = flat["step"].to(parameter.device, copy=True)
        optimizer.state[parameter] = state


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)

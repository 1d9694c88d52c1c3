"""Optimizers, their learning rate, and their state as flat named tensors (safetensors knows no nesting)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from dbserve.contracts.job import TrainingSpec
from dbserve.errors import ConfigInvalid
from workers.models.protocol import ResidualNetwork
from workers.shares import local, share_of

_STEP = "step"  # AdamW's count, the same for every parameter
_DECAY_SHARE = 0.2  # of the steps, at the end of the schedule wsd


def learning_rate(training: TrainingSpec, peak: float, step: int, total: int) -> float:
    """The rate of step (0-based) of total: linear warmup to `peak`, then the schedule.

    cosine: half a cosine; wsd: constant, then linear over the last fifth; both reach 0 after the last step.
    """
    warmup = min(training.warmup, total)
    if step < warmup:
        return peak * (step + 1) / warmup
    match training.schedule:
        case "constant":
            return peak
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        case "wsd":
            return peak * min(1.0, (total - step) / (_DECAY_SHARE * total))


class Optimizer:
    """AdamW of every parameter; or muon of the matrices of the residual layers and AdamW of the others.

    Matrices decay; vectors and embeddings (biases, norms, cls, positions) do not. Muon's update is scaled to the root
    mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982, section 2.2), so one rate suits both.
    Raises ConfigInvalid at /training/optimizer where the installed torch has no muon.
    """

    def __init__(self, network: nn.Module, training: TrainingSpec) -> None:
        parameters = dict(network.named_parameters())
        hidden = _hidden_matrices(network) if training.optimizer == "muon" else set[int]()
        self._by_muon = {name: tensor for name, tensor in parameters.items() if id(tensor) in hidden}
        self._by_adamw = {name: tensor for name, tensor in parameters.items() if id(tensor) not in hidden}
        self._adamw = _adamw(list(self._by_adamw.values()), training)
        self._muon = _muon(list(self._by_muon.values()), training) if self._by_muon else None

    @property
    def bytes(self) -> int:
        """Of its state; 0 before the first step."""
        entries = [entry for optimizer in self._all() for entry in optimizer.state.values()]
        return sum(local(value).nbytes for entry in entries for value in entry.values() if isinstance(value, Tensor))

    def step(self, rate: float) -> None:
        """One update from the gradients, which it then drops."""
        for optimizer in self._all():
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]

    def state(self) -> dict[str, Tensor]:
        """The tensors themselves: "exp_avg.<parameter>", "exp_avg_sq.<parameter>", "step"; of muon
        "momentum_buffer.<parameter>". Empty before the first step."""
        flat: dict[str, Tensor] = {}
        for optimizer, parameters, kinds in self._kinds():
            for name, parameter in parameters.items():
                if entry := optimizer.state.get(parameter):
                    flat |= {f"{kind}.{name}": entry[kind] for kind in kinds}
                    flat |= {_STEP: entry[_STEP]} if _STEP in entry else {}
        return flat

    def restore(self, flat: Mapping[str, Tensor]) -> None:
        """Takes over whole copies of state()'s tensors, bit for bit; KeyError where a parameter has none."""
        if not flat:
            return
        for optimizer, parameters, kinds in self._kinds():
            for name, parameter in parameters.items():
                entry: dict[str, Any] = {kind: share_of(flat[f"{kind}.{name}"], parameter) for kind in kinds}
                if optimizer is self._adamw:  # the fused kernel counts steps on the parameter's device
                    entry[_STEP] = flat[_STEP].to(parameter.device, copy=True)
                optimizer.state[parameter] = entry

    def _all(self) -> list[torch.optim.Optimizer]:
        return [self._adamw] if self._muon is None else [self._adamw, self._muon]

    def _kinds(self) -> list[tuple[torch.optim.Optimizer, dict[str, nn.Parameter], tuple[str, ...]]]:
        """Each optimizer with its parameters and what it keeps of one."""
        adamw = (self._adamw, self._by_adamw, ("exp_avg", "exp_avg_sq"))
        return [adamw] if self._muon is None else [adamw, (self._muon, self._by_muon, ("momentum_buffer",))]


def _hidden_matrices(network: nn.Module) -> set[int]:
    """Identities of the residual layers' matrices."""
    layers = cast(ResidualNetwork, network).residual_layers()
    return {id(tensor) for layer in layers for tensor in layer.parameters() if tensor.ndim == 2}


def _adamw(parameters: Sequence[nn.Parameter], training: TrainingSpec) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [
            {"params": [parameter for parameter in parameters if parameter.ndim == 2]},
            {"params": [parameter for parameter in parameters if parameter.ndim != 2], "weight_decay": 0.0},
        ],
        betas=training.betas,
        weight_decay=training.weight_decay,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def _muon(matrices: Sequence[nn.Parameter], training: TrainingSpec) -> torch.optim.Optimizer:
    muon = cast(Callable[..., torch.optim.Optimizer] | None, getattr(torch.optim, "Muon", None))
    if muon is None:
        raise ConfigInvalid(
            f"torch {torch.__version__} on this worker has no muon (2.9 and later have); use adamw, or update torch",
            "/training/optimizer",
        )
    return muon(matrices, weight_decay=training.weight_decay, adjust_lr_fn="match_rms_adamw")

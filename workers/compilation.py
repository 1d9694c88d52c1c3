"""torch.compile of a network's layers, refused before training where the worker lacks what it needs."""

import importlib.util
import os
import shutil
from typing import cast

import torch
from torch import nn

from dbserve.errors import ConfigInvalid
from workers.models.protocol import ResidualNetwork

_POINTER = "/training/compile"
_COMPILERS = ("c++", "g++", "clang++")


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Compiles the residual layers in place; parameters and their names stay. The work is done at the second step.

    Layer by layer: they share their code, so it is compiled once for all of them, where compiling a whole network took
    minutes more; and an architecture's loss may call its network in whatever way it likes. While the first step's bytes
    are counted, nothing is compiled (autograd's hooks prevent it), so the count is that of the layers as written.

    Raises ConfigInvalid at /training/compile naming what this worker lacks.
    """
    _use(_compiler())
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigInvalid("compile needs the Python package triton on a CUDA worker; it is not installed", _POINTER)
    for layer in cast(ResidualNetwork, network).residual_layers():
        layer.compile()  # pyright: ignore[reportUnknownMemberType]


def _compiler() -> str:
    given = os.environ.get("CXX")
    for name in (given,) if given else _COMPILERS:
        if found := shutil.which(name):
            return found
    wanted = f"CXX={given}" if given else ", ".join(_COMPILERS)
    raise ConfigInvalid(
        f"compile needs a C++ compiler on the worker; none was found ({wanted}): install one, or set compile: false",
        _POINTER,
    )


def _use(compiler: str) -> None:
    from torch._inductor import config  # late: it takes a second, and only compiled trainings need it

    config.cpp.cxx = (None, compiler)

"""torch.compile of a network, refused before training where the worker lacks what it needs."""

import importlib.util
import os
import shutil

import torch
from torch import nn

from dbserve.errors import ConfigInvalid

_POINTER = "/training/compile"
_COMPILERS = ("c++", "g++", "clang++")


def compile_network(network: nn.Module, device: torch.device) -> None:
    """Compiles the network in place; its parameters and their names stay. The work is done at its first call.

    Raises ConfigInvalid at /training/compile naming what this worker lacks.
    """
    _use(_compiler())
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigInvalid("compile needs the Python package triton on a CUDA worker; it is not installed", _POINTER)
    network.compile()  # pyright: ignore[reportUnknownMemberType]


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

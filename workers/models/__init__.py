"""The networks: protocol.py and one file per architecture."""

from workers.models.dit import DIT
from workers.models.llama import LLAMA
from workers.models.mdm import MDM
from workers.models.protocol import Answering, Architecture, Classifier, Loss
from workers.models.recurrent import RECURRENT
from workers.models.vit import VIT

__all__ = ["ARCHITECTURES", "Answering", "Architecture", "Classifier", "Loss", "architecture"]

ARCHITECTURES: dict[str, Architecture] = {network.kind: network for network in (VIT, DIT, MDM, LLAMA, RECURRENT)}


def architecture(kind: str) -> Architecture:
    """The architecture of that kind; KeyError when there is none (the planner has refused it long before)."""
    return ARCHITECTURES[kind]

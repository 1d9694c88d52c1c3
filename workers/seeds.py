"""Seeds of torch's generators: a function of what they are for, so that a resumed training draws what it would have."""

import hashlib

import torch


def seed_of(purpose: str, seed: int, task: str, step: int = 0, part: int = 0) -> int:
    """A seed in [0, 2^63). `part` numbers the micro-batches of one step, over all its workers."""
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{task}\0{step}\0{part}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seed_torch(purpose: str, seed: int, task: str, step: int = 0, part: int = 0) -> None:
    """Seeds torch's global generators: of weights at construction, and of dropout.

    Not by torch.manual_seed: where CUDA is not in use, it writes down the call stack for the day that it might be,
    which takes longer than the whole update of a small network.
    """
    number = seed_of(purpose, seed, task, step, part)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)

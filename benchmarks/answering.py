"""What an answer costs: samples of images, and text, of the blocks against the end-to-end network. Weights are random:
the work is the same."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.shapes import Job
from workers.method.masking import unmasked
from workers.method.ode import assigned, noise_levels, sample
from workers.models import architecture
from workers.models.llama import LlamaDecoder, LlamaDenoiser
from workers.models.mdm import MaskedTransformer
from workers.models.protocol import ImageGenerator, ResidualNetwork
from workers.models.recurrent import RecurrentDenoiser, UnrolledNetwork, answer, schedule
from workers.trainer import build_network

Answer = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """Of one answer; seconds and evaluations of the blocks, and of the end-to-end network."""

    shape: str
    what: str
    blocks_seconds: float
    whole_seconds: float
    blocks_layers: int  # runs of a residual layer
    whole_layers: int


def costs_of(job: Job, *, rows: int, steps: int, device: str) -> Iterator[Cost]:
    """One way of answering for each family that makes something; classification answers in one pass."""
    blocks = [_network(job, f"block-{block.index}", device) for block in job.plan.blocks]
    whole = _network(job, "end_to_end", device)
    match job.shape.kind:
        case "dit":
            what = f"{rows} images, {steps} steps"
            answers = [_sampled(job, networks, rows, steps) for networks in (blocks, [whole])]
        case "mdm":
            what = f"{rows} texts, {steps} steps"
            answers = [_unmasked(job, networks, rows, steps) for networks in (blocks, [whole])]
        case "llama":
            what = f"{rows} texts of {steps} tokens, keys and values cached"
            answers = [_averaged(job, blocks, rows, steps), _continued(cast(LlamaDecoder, whole), rows, steps)]
        case "recurrent":
            what = f"the next tokens of {rows} windows, core run {job.shape.options['steps']} times"
            answers = _recurrent(job, blocks[0], whole, rows)
        case _:
            return
    (blocks_seconds, blocks_layers), (whole_seconds, whole_layers) = (
        _measured(answering, networks) for answering, networks in zip(answers, (blocks, [whole]), strict=True)
    )
    yield Cost(job.shape.name, what, blocks_seconds, whole_seconds, blocks_layers, whole_layers)


def _network(job: Job, name: str, device: str) -> nn.Module:
    return build_network(job.spec, job.plan, job.plan.task(name)).to(device).eval()


def _measured(answering: Answer, networks: Sequence[nn.Module]) -> tuple[float, int]:
    """Seconds of the second of two answers, and the runs of layers in it."""
    device = next(networks[0].parameters()).device
    with torch.no_grad():
        answering()
        with _counted(networks) as runs:
            _wait(device)
            began = time.perf_counter()
            answering()
            _wait(device)
    return time.perf_counter() - began, len(runs)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _counted(networks: Sequence[nn.Module]) -> Generator[list[None], None, None]:
    runs: list[None] = []

    def ran(_layer: nn.Module, _inputs: tuple[object, ...]) -> None:
        runs.append(None)

    layers = [layer for network in networks for layer in cast(ResidualNetwork, network).residual_layers()]
    hooks = [layer.register_forward_pre_hook(ran) for layer in layers]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def _edges(job: Job, networks: Sequence[nn.Module]) -> tuple[float, ...]:
    edges = job.plan.contract.edges
    return edges if len(networks) == len(edges) - 1 else (edges[0], edges[-1])


def _device(networks: Sequence[nn.Module]) -> torch.device:
    return next(networks[0].parameters()).device


def _sampled(job: Job, networks: Sequence[nn.Module], rows: int, steps: int) -> Answer:
    """Images by Euler's method, one evaluation a step, without guidance."""
    contract, device = job.plan.contract, _device(networks)
    height, width, channels = contract.image
    generator = cast(ImageGenerator, architecture(job.shape.kind))
    labels = torch.arange(rows, device=device) % len(contract.class_names)
    denoisers = [generator.of_classes(network, labels, 1.0) for network in networks]
    levels = noise_levels(
        "euler", steps, sigma_min=contract.sigma_min, sigma_max=contract.sigma_max, sigma_data=contract.sigma_data
    )
    z = levels[0] * torch.randn(rows, channels, height, width, device=device)
    return lambda: sample("euler", assigned(denoisers, _edges(job, networks)), z, levels)


def _unmasked(job: Job, networks: Sequence[nn.Module], rows: int, steps: int) -> Answer:
    _, length = job.plan.contract.tokens
    device = _device(networks)
    mask = cast(MaskedTransformer, networks[0]).mask
    tokens = torch.full((rows, length), mask, device=device)

    def predict(block: int, text: Tensor, places: Tensor) -> Tensor:
        return cast(MaskedTransformer, networks[block]).logits_at(text, places).float().log_softmax(dim=1)

    def answer_once() -> Tensor:
        generator = torch.Generator(device).manual_seed(0)
        return unmasked(predict, tokens, mask=mask, edges=_edges(job, networks), steps=steps, generator=generator)

    return answer_once


def _continued(network: LlamaDecoder, rows: int, steps: int) -> Answer:
    """The likeliest next token, one after the other."""

    def answer_once() -> None:
        reading = network.read(network.start.expand(rows, 1, -1))
        for _ in range(steps - 1):
            tokens = network.logits(reading.hidden[:, -1:]).argmax(dim=2)
            reading = network.read(network.embedding(tokens), reading.memory)

    return answer_once


def _averaged(job: Job, networks: Sequence[nn.Module], rows: int, steps: int) -> Answer:
    """The likeliest next token by the mean of the blocks' log-probabilities in pure noise, one after the other."""
    contract = job.plan.contract
    blocks = [cast(LlamaDenoiser, network) for network in networks]
    z = torch.zeros(rows, 1, contract.code_dim, device=_device(networks))
    sigma = torch.full((rows,), contract.sigma_max, device=z.device)

    def answer_once() -> None:
        readings = [block.read(block.start.expand(rows, 1, -1)) for block in blocks]
        for _ in range(steps - 1):
            answers = [block.answer(reading, z, sigma) for block, reading in zip(blocks, readings, strict=True)]
            tokens = torch.stack([logits.log_softmax(dim=2) for logits in answers]).mean(dim=0).argmax(dim=2)
            readings = [
                block.read(block.embedding(tokens), reading.memory)
                for block, reading in zip(blocks, readings, strict=True)
            ]

    return answer_once


def _recurrent(job: Job, block: nn.Module, whole: nn.Module, rows: int) -> list[Answer]:
    vocabulary, length = job.plan.contract.tokens
    tokens = torch.randint(vocabulary.size, (rows, length), device=_device([block]))
    levels = schedule(job.plan.contract, cast(int, job.shape.options["steps"]))
    return [
        lambda: answer(cast(RecurrentDenoiser, block), tokens, levels),
        lambda: cast(UnrolledNetwork, whole)(tokens),
    ]

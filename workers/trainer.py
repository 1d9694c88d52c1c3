"""train_block(): the training of one task as a generator. No Ray, no Redis, no HTTP.

Everything random (weights, order, sigma, noise, dropout, augmentation) is a function of (seed, task, step), so that a
training resumed at any step goes on as if it had never stopped: on a CPU, bit for bit.
"""

import hashlib
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan, TaskKind, TaskPlan
from dbserve.contracts.status import MemoryBytes
from workers.checkpoint import TrainingState, TrainingSummary
from workers.data import Batch, Dataset, batches
from workers.memory import counting_saved_bytes, measured_memory
from workers.models import Architecture, Loss, architecture
from workers.optimizer import adamw, flat_state, learning_rate, restore_state
from workers.progress import Progress

CUDA_REPORT_STEPS = 20  # a report reads the loss, which waits for the GPU; a CPU reports every step


@dataclass(frozen=True)
class StepReport:
    """How far a task is. `loss` and seconds are means over the steps since the previous report."""

    step: int  # optimizer steps done, 1-based
    total: int
    loss: float  # nats
    grad_norm: float  # before clipping, of the last step
    learning_rate: float  # of the last step
    samples: int  # since step 0
    step_seconds: float  # one step, the wait for its data included
    data_wait_seconds: float  # of that
    memory: MemoryBytes | None  # when newly measured: on the first report, and on CUDA on every one
    capture: Callable[[], TrainingState]  # copies the state at `step`; call it before the generator goes on


def train_block(
    spec: JobSpec,
    plan: JobPlan,
    task: TaskPlan,
    data: Dataset,
    *,
    state: TrainingState | None = None,
    initial_weights: dict[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Generator[StepReport, None, None]:
    """Trains a trunk, a block, or a baseline from `state`, else from `initial_weights` (a trunk's), else afresh.

    Reports every step on a CPU; on CUDA every CUDA_REPORT_STEPS, at every step a checkpoint is due, and the last one.
    Yields nothing when `state` is already at the last step. Raises NonfiniteLoss naming task and step.
    """
    device = torch.device(device)
    seed = spec.training.seed
    network = build_network(spec, plan, task).to(device).train()
    optimizer = adamw(network, spec.training)
    start, summary = 0, TrainingSummary()
    if state is not None:
        network.load_state_dict(state.weights)
        restore_state(network, optimizer, state.optimizer)
        start, summary = state.step, state.summary
    elif initial_weights is not None:
        network.load_state_dict(initial_weights)

    step_of = _Stepper(spec, network, optimizer, loss_of(plan, task, network))
    progress = Progress(task, summary)
    generator = torch.Generator(device)
    stream = batches(
        data.train,
        batch_size=spec.training.batch_size,
        seed=seed,
        task=task.name,
        start_step=start,
        augment=spec.data.augment,
        device=device,
    )
    with closing(stream):
        for step in range(start, task.steps):
            _seed_torch("dropout", seed, task.name, step)
            generator.manual_seed(_seed_of("noise", seed, task.name, step))
            batch = next(stream)
            rate = learning_rate(spec.training, step, task.steps)
            memory = None
            if step == start:
                loss, grad_norm, memory = step_of.measured(batch, generator, rate)
            else:
                loss, grad_norm = step_of(batch, generator, rate)
            progress.add(loss, samples=len(batch.inputs), waited=batch.waited_seconds)
            if _report_is_due(step, start, task.steps, spec.checkpoint.every_steps, device):
                if memory is None and device.type == "cuda":
                    memory = step_of.allocator_memory(progress.summary.memory)
                mean = progress.close(step + 1, memory)
                yield StepReport(
                    step=step + 1,
                    total=task.steps,
                    loss=mean.loss,
                    grad_norm=float(grad_norm),
                    learning_rate=rate,
                    samples=progress.summary.samples,
                    step_seconds=mean.seconds,
                    data_wait_seconds=mean.waited,
                    memory=memory,
                    capture=partial(_capture, step + 1, network, optimizer, progress.summary),
                )
                progress.restart_clock()


def build_network(spec: JobSpec, plan: JobPlan, task: TaskPlan) -> nn.Module:
    """The task's network on the CPU, its weights a function of (seed, task)."""
    network: Architecture = architecture(plan.contract.architecture)
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        _seed_torch("weights", spec.training.seed, task.name)
        match task.kind:
            case TaskKind.TRUNK | TaskKind.BLOCK:
                start, stop = plan.contract.layers[task.index]
                return network.denoiser(plan.contract, stop - start)
            case TaskKind.END_TO_END | TaskKind.DATA_PARALLEL:
                start, stop = plan.end_to_end.layers
                return network.baseline(plan.contract, stop - start)
            case TaskKind.SHALLOW | TaskKind.SHALLOW_LONG:
                start, stop = plan.shallow.layers
                return network.baseline(plan.contract, stop - start)
            case _:
                raise ValueError(f"{task.name} trains nothing")


def loss_of(plan: JobPlan, task: TaskPlan, network: nn.Module) -> Loss:
    """The task's loss of one batch. A trunk learns every noise level, a block those of its training interval."""
    contract = plan.contract
    kind = architecture(contract.architecture)
    match task.kind:
        case TaskKind.TRUNK:
            return kind.denoising_loss(contract, network, (contract.sigma_min, contract.sigma_max))
        case TaskKind.BLOCK:
            block = plan.blocks[task.index]
            return kind.denoising_loss(contract, network, (block.train_sigma_min, block.train_sigma_max))
        case _:
            return kind.baseline_loss(contract, network)


class _Stepper:
    """One optimizer step: (batch, generator, learning rate) -> loss and gradient norm; never waits for the device."""

    def __init__(self, spec: JobSpec, network: nn.Module, optimizer: torch.optim.AdamW, loss: Loss) -> None:
        self._training = spec.training
        self._network = network
        self._optimizer = optimizer
        self._loss = loss
        self._parameters = list(network.parameters())

    def __call__(self, batch: Batch, generator: torch.Generator, rate: float) -> tuple[Tensor, Tensor]:
        return self._update(self._forward(batch, generator), rate)

    def measured(self, batch: Batch, generator: torch.Generator, rate: float) -> tuple[Tensor, Tensor, MemoryBytes]:
        """The same step, its bytes counted."""
        with counting_saved_bytes(self._network) as saved:
            loss = self._forward(batch, generator)
        loss, grad_norm = self._update(loss, rate)
        return loss, grad_norm, measured_memory(self._network, self._optimizer, saved)

    def allocator_memory(self, counted: MemoryBytes) -> MemoryBytes:
        """The counted bytes with what the CUDA allocator says now."""
        device = self._parameters[0].device
        return counted.model_copy(
            update={
                "allocated": torch.cuda.memory_allocated(device),
                "reserved": torch.cuda.memory_reserved(device),
                "peak": torch.cuda.max_memory_allocated(device),
            }
        )

    def _forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        bf16 = self._training.precision == "bf16"
        with torch.autocast(generator.device.type, dtype=torch.bfloat16, enabled=bf16):
            return self._loss(batch, generator)

    def _update(self, loss: Tensor, rate: float) -> tuple[Tensor, Tensor]:
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        if self._training.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._training.grad_clip, grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        return loss.detach(), grad_norm


def _report_is_due(step: int, start: int, total: int, checkpoint_every: int, device: torch.device) -> bool:
    done = step + 1
    every = CUDA_REPORT_STEPS if device.type == "cuda" else 1
    return done % every == 0 or done % checkpoint_every == 0 or done == total or step == start


def _capture(step: int, network: nn.Module, optimizer: torch.optim.AdamW, summary: TrainingSummary) -> TrainingState:
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
    return TrainingState(step=step, weights=weights, optimizer=flat_state(network, optimizer), summary=summary)


def _seed_torch(purpose: str, seed: int, task: str, step: int = 0) -> None:
    torch.manual_seed(_seed_of(purpose, seed, task, step))  # pyright: ignore[reportUnknownMemberType]


def _seed_of(purpose: str, seed: int, task: str, step: int = 0) -> int:
    digest = hashlib.sha256(f"{purpose}\0{seed}\0{task}\0{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1

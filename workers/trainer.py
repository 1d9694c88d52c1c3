"""train_block(): the training of one task as a generator. No Ray, no Redis, no HTTP.

Everything random (weights, order, sigma, noise, dropout, augmentation) is a function of (seed, task, step, part), so
that a training resumed at any step goes on as if it had never stopped: on a CPU, bit for bit.
"""

import logging
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from dbserve.contracts.job import JobSpec, TrainingSpec
from dbserve.contracts.plan import JobPlan, TaskKind, TaskPlan
from dbserve.contracts.status import MemoryBytes
from dbserve.contracts.work import BandLoss
from workers.checkpoint import RateTrial, TrainingState, TrainingSummary
from workers.compilation import compile_network
from workers.data import Batch, Dataset, Split, batches
from workers.group import Alone, Together
from workers.held_out import HeldOutLoss
from workers.models import Architecture, Loss, architecture
from workers.optimizer import learning_rate
from workers.orders import Orders
from workers.parallel import Crew, leading
from workers.progress import Progress
from workers.rate_scan import RATES, best_rate, outcome, trial_of
from workers.recompute import Recomputed
from workers.seeds import seed_torch
from workers.sharding import Captures, Entrance, is_sharded, shard
from workers.shares import take_over
from workers.step import Shares, Stepper, weights_of
from workers.subprocesses import Subprocesses
from workers.traffic import SentBytes, counting_sent_bytes

log = logging.getLogger("dbserve.worker")

CUDA_REPORT_STEPS = 20  # a report reads the loss, which waits for the GPU; a CPU reports every step


@dataclass(frozen=True)
class StepReport:
    """How far a task is. `loss` (of all its workers) and seconds are means over the steps since the previous report."""

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
    read_bytes: int = 0  # taken out of the decoded shards since the previous report
    sent_bytes: int = 0  # of tensors handed to the task's other workers, by this one, since the previous report
    stray_bytes: int = 0  # the same, to any other process: there is none that they should go to
    eval_loss: tuple[BandLoss, ...] = ()  # on validation rows, where they were looked at; never of a baseline


def train_block(
    spec: JobSpec,
    plan: JobPlan,
    task: TaskPlan,
    data: Dataset,
    *,
    state: TrainingState | None = None,
    initial_weights: dict[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    trial_done: Callable[[], None] | None = None,
    crew: Crew | None = None,
) -> Generator[StepReport, None, None]:
    """Trains a trunk, a block, or a baseline from `state`, else from `initial_weights` (a trunk's), else afresh.

    Reports every step on a CPU; on CUDA every CUDA_REPORT_STEPS, at every step a checkpoint is due, and the last one.
    Yields nothing when `state` is already at the last step. `crew` says how many workers train it and how the others
    are got, who end with it; without one, a task of several workers starts them as processes of this one.
    `trial_done` is called after every learning rate that a scan has tried.

    Raises:
        NonfiniteLoss: naming task and step.
        ConfigInvalid: the worker lacks what the training asks for (a compiler, muon, a GPU for every worker).
        WorkerLost: one of the task's other workers died or did not come, naming its rank.
    """
    if state is not None and state.step >= task.steps:
        return  # nobody is called for nothing
    device = torch.device(device)
    orders = Orders(spec, plan, task, data.train, state, initial_weights, data.validation)
    del state, initial_weights  # here and below: kept, they would be one more copy in memory as long as it trains
    if crew is None and task.workers > 1:
        crew = Subprocesses.of(task.workers, device)
    if crew is None or crew.size == 1:
        steps = training(orders, device, Alone(), trial_done)
        del orders
        yield from steps
        return
    sharded = is_sharded(spec, crew.size)
    with (
        leading(orders, device, crew) as (workers, watch),
        closing(training(orders, device, workers, trial_done)) as steps,
    ):
        del orders
        for report in steps:
            if sharded:
                report = replace(report, capture=partial(watch.in_call, report.capture))
            watch.away.set()  # and left so where the training is ended here
            yield report
            watch.away.clear()


def training(
    orders: Orders, device: torch.device, workers: Alone | Together, trial_done: Callable[[], None] | None = None
) -> Generator[StepReport, None, None]:
    """train_block() as one of the task's workers. All of them report the same losses; rank 0's states count.

    Sharded, the others attend the captures of rank 0 at every report.
    """
    with counting_sent_bytes(None if isinstance(workers, Alone) else workers.processes) as sent:
        steps = _training(orders, device, workers, trial_done, sent)
        del orders
        yield from steps


def _training(
    orders: Orders,
    device: torch.device,
    workers: Alone | Together,
    trial_done: Callable[[], None] | None,
    sent: SentBytes,
) -> Generator[StepReport, None, None]:
    spec, plan, task, state = orders.spec, orders.plan, orders.task, orders.state
    network = build_network(spec, plan, task)
    if state is None and orders.initial_weights is not None:
        network.load_state_dict(orders.initial_weights)
    network = network.to(device).train()
    recomputed = Recomputed(network) if plan.training.activation_checkpointing else None
    if plan.training.compile:
        compile_network(network, device)
    loss = loss_of(plan, task, network)
    entrance = captures = None
    if not isinstance(workers, Alone) and is_sharded(spec, workers.size):
        entrance = shard(network, workers)
        captures = Captures(workers) if workers.rank == 0 else None
        loss = entrance.through(loss)
    parts = plan.training.accumulate * task.workers
    shares = Shares.of(parts, workers, sharded=entrance is not None)
    stream_of = partial(_stream, spec, plan, task, orders.train, shares, device)
    stepper_of = partial(Stepper, network, loss, workers, shares, recomputed, entrance)
    start, summary = (0, TrainingSummary()) if state is None else (state.step, state.summary)
    if state is None:
        summary = _with_rate(plan.training, task, network, stepper_of, stream_of, trial_done)
    assert summary.learning_rate is not None
    stepper = stepper_of(plan.training, task.name)
    if state is not None:
        stepper.restore(state)
    looks = workers.rank == 0 or entrance is not None
    held_out = _held_out(spec, plan, task, network, orders.validation, entrance) if looks else None
    del orders, state
    progress = Progress(task, summary)
    with closing(stream_of(task.name, start)) as stream:
        for step in range(start, task.steps):
            batch = next(stream)
            rate = learning_rate(plan.training, summary.learning_rate, step, task.steps)
            memory = None
            if step == start:
                mean_loss, grad_norm, memory = stepper.measured_step(step, batch, rate)
            else:
                mean_loss, grad_norm = stepper.step(step, batch, rate)
            progress.add(
                mean_loss,
                samples=plan.training.batch_size * task.workers,
                waited=batch.waited_seconds,
                read_bytes=batch.read_bytes,
            )
            if _report_is_due(step, start, task.steps, spec.checkpoint.every_steps, device):
                if memory is None and device.type == "cuda":
                    memory = stepper.allocator_memory(progress.summary.memory)
                mean = progress.close(step + 1, memory)
                sent_bytes, stray_bytes = sent.take()
                capture = partial(stepper.capture, step + 1, progress.summary)
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
                    capture=capture if captures is None else partial(captures.announced, capture),
                    read_bytes=mean.read_bytes,
                    sent_bytes=sent_bytes,
                    stray_bytes=stray_bytes,
                    eval_loss=() if held_out is None else held_out.told(step + 1),
                )
                if captures is not None:
                    captures.proceed()
                progress.restart_clock()


def build_network(spec: JobSpec, plan: JobPlan, task: TaskPlan) -> nn.Module:
    """The task's network on the CPU, its weights a function of (seed, task)."""
    network: Architecture = architecture(plan.contract.architecture)
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        seed_torch("weights", spec.training.seed, task.name)
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


def _held_out(
    spec: JobSpec,
    plan: JobPlan,
    task: TaskPlan,
    network: nn.Module,
    rows: Split | None,
    entrance: Entrance | None,
) -> HeldOutLoss | None:
    """None: the task is a baseline, which knows no noise level, or nothing is held out."""
    if task.kind not in {TaskKind.TRUNK, TaskKind.BLOCK} or not rows:
        return None
    every = spec.checkpoint.every_steps
    kind = architecture(plan.contract.architecture)
    return HeldOutLoss(kind, network, plan, task, rows, every=every, entrance=entrance)


def _report_is_due(step: int, start: int, total: int, checkpoint_every: int, device: torch.device) -> bool:
    done = step + 1
    every = CUDA_REPORT_STEPS if device.type == "cuda" else 1
    return done % every == 0 or done % checkpoint_every == 0 or done == total or step == start


def _stream(
    spec: JobSpec,
    plan: JobPlan,
    task: TaskPlan,
    train: Split,
    shares: Shares,
    device: torch.device,
    name: str,
    start: int,
) -> Generator[Batch, None, None]:
    """This worker's rows of every step from `start` on, of which there are batch_size for each of the task's workers in
    the plan."""
    training = plan.training
    return batches(
        train,
        batch_size=training.batch_size * task.workers,
        seed=training.seed,
        task=name,
        start_step=start,
        augment=spec.data.augment,
        device=device,
        rows=shares.rows(training.batch_size // training.accumulate),
    )


def _with_rate(
    training: TrainingSpec,
    task: TaskPlan,
    network: nn.Module,
    stepper_of: Callable[[TrainingSpec, str], Stepper],
    stream_of: Callable[[str, int], Generator[Batch, None, None]],
    trial_done: Callable[[], None] | None,
) -> TrainingSummary:
    """The beginning of a summary: the learning rate, found by a scan where one is asked for, and what that took.

    Every trial starts from the network's weights, and sees the same rows and noise, which the training will not see.
    """
    if training.lr != "scan":
        return TrainingSummary(learning_rate=training.lr)
    began = time.perf_counter()
    trial, name = trial_of(training, task.steps), f"{task.name}/scan"
    initial = weights_of(network)
    trials: list[RateTrial] = []
    for rate in RATES:
        stepper = stepper_of(trial, name)
        stepper.start_from(initial)
        losses: list[Tensor] = []
        with closing(stream_of(name, 0)) as stream:
            for step in range(trial.steps):
                rate_now = learning_rate(trial, rate, step, trial.steps)
                losses.append(stepper.step(step, next(stream), rate_now)[0])
        trials.append(outcome(rate, cast(list[float], torch.stack(losses).tolist())))  # pyright: ignore[reportUnknownMemberType]
        if trial_done is not None:
            trial_done()
    take_over(network, initial)
    kept = best_rate(trials, task.name)
    log.info("learning rate %g kept of %s", kept, {trial.rate: trial.loss for trial in trials})
    return TrainingSummary(
        learning_rate=kept,
        scan=tuple(trials),
        scan_steps=len(RATES) * trial.steps,
        scan_seconds=time.perf_counter() - began,
    )

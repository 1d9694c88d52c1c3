"""Families of blocks, and of whatever else a job trains.

They carry the labels `job_id` and `block` only; what changes (node, gpu, attempt, ranges) sits in dbserve_block_info.
`block` is a block's index; the other trained tasks of a job appear under their names (trunk, end_to_end, shallow-0), so
that memory and throughput against end-to-end can be plotted from the same series.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from dbserve.contracts.plan import TRAINED, TaskKind, TaskPlan
from dbserve.contracts.snapshot import JobSnapshot
from dbserve.contracts.status import OCCUPYING, MemoryBytes, Task, TaskState
from dbserve.contracts.work import STEP_BOUNDS
from dbserve.metrics.durations import add_durations
from dbserve.progress import peak_bytes, step_of, work_of

BLOCK = ("job_id", "block")

Trained = Sequence[tuple[JobSnapshot, TaskPlan]]
Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)


def block_families(begun: Sequence[JobSnapshot]) -> Iterator[Metric]:
    """Of every task that these jobs train."""
    trained = [(job, task) for job in begun for task in job.plan.tasks if task.kind in TRAINED]
    yield from _described(trained)
    yield from _worked(trained)
    yield from _aimed(trained)
    yield from _measured(trained)


def _key(job: JobSnapshot, task: TaskPlan) -> tuple[str, str]:
    return job.record.id, str(task.index) if task.kind is TaskKind.BLOCK else task.name


def _of_fields(kind: type[Family], *declared: tuple[str, str, str]) -> dict[str, Family]:
    """Families of one sample a block, by the field that each shows: (field, name, meaning)."""
    return {field: kind(f"dbserve_block_{name}", meaning, labels=BLOCK) for field, name, meaning in declared}


def _described(trained: Trained) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "dbserve_block_info",
        "Where a block runs and what it owns.",
        labels=(*BLOCK, "node", "gpu_uuid", "attempt", "layers", "sigma_min", "sigma_max"),
    )
    status = GaugeMetricFamily("dbserve_block_status", "1 for the status it is in.", labels=(*BLOCK, "status"))
    restarts = CounterMetricFamily("dbserve_block_restarts", "Attempts that were lost.", labels=(*BLOCK, "reason"))
    replicas = GaugeMetricFamily(
        "dbserve_block_replicas",
        "Replicas of a task that is to have several: wanted, and granted.",
        labels=(*BLOCK, "kind"),
    )
    for job, plan in trained:
        key, task = _key(job, plan), job.tasks[plan.name]
        for node, gpu in sorted(set(_places(job, task))):
            info.add_metric((*key, node, gpu, str(task.run.attempt), *_ranges(job, plan)), 1)
        if task.replicas > 1:
            replicas.add_metric((*key, "wanted"), task.replicas)
        if task.replicas > 1 and task.state in OCCUPYING:
            replicas.add_metric((*key, "granted"), max(1, len(task.nodes)))
        for state in TaskState:
            status.add_metric((*key, state.value), float(task.state is state))
        for reason, count in task.restarts.items():
            restarts.add_metric((*key, reason.value), count)
    yield from (info, status, restarts, replicas)


def _places(job: JobSnapshot, task: Task) -> Iterator[tuple[str, str]]:
    """(node, GPU) of every GPU of every replica, so that each joins with its own; without GPUs, of every node."""
    progress = job.progress.get(task.run.task)
    others = () if progress is None or progress.run != task.run else progress.replicas
    for node, gpus in ((task.node, task.gpu), *((replica.node, replica.gpu) for replica in others)):
        for gpu in (gpus or "").split(","):
            yield node or "", gpu


def _ranges(job: JobSnapshot, task: TaskPlan) -> tuple[str, str, str]:
    if task.kind is TaskKind.BLOCK:
        block = job.plan.blocks[task.index]
        return _span(block.layers), f"{block.sigma_min:g}", f"{block.sigma_max:g}"
    return _span(job.plan.network_of(task).layers), "", ""


def _span(layers: tuple[int, int]) -> str:
    return f"{layers[0]}-{layers[1]}"


def _worked(trained: Trained) -> Iterator[Metric]:
    """Over all attempts: what was done again after a checkpoint was done, and counts."""
    counters = _of_fields(
        CounterMetricFamily,
        ("steps", "steps", "Optimizer steps, repeated ones included."),
        ("samples", "samples", "Samples trained on."),
        ("data_wait_seconds", "data_wait_seconds", "Time that training waited for data."),
        ("read_bytes", "shard_read_bytes", "Bytes taken out of the decoded shards."),
        ("nonfinite_steps", "nonfinite_steps", "Steps whose loss was not finite."),
    )
    sent = CounterMetricFamily(
        "dbserve_block_gradient_sent_bytes",
        "Bytes of tensors handed to collectives or sent, to its own replicas or to others.",
        labels=(*BLOCK, "to"),
    )
    tokens = CounterMetricFamily("dbserve_block_tokens", "Tokens trained on, where the data are text.", labels=BLOCK)
    lasted = HistogramMetricFamily(
        "dbserve_block_step_duration_seconds", "An optimizer step, the wait for its data included.", labels=BLOCK
    )
    for job, task in trained:
        if job.tasks[task.name].started_at is None:
            continue
        key, work = _key(job, task), work_of(job, task.name)
        for field, family in counters.items():
            family.add_metric(key, getattr(work, field))
        if task.workers > 1 or job.tasks[task.name].replicas > 1:
            sent.add_metric((*key, "replicas"), work.sent_bytes)
        sent.add_metric((*key, "others"), work.stray_bytes)
        if job.plan.data.sequence_length is not None:
            tokens.add_metric(key, work.tokens)
        add_durations(lasted, key, work.step_seconds, STEP_BOUNDS)
    yield from (*counters.values(), sent, tokens, lasted)


def _aimed(trained: Trained) -> Iterator[Metric]:
    stands = GaugeMetricFamily(
        "dbserve_block_step", "The step it stands at; falls where an attempt goes on from a checkpoint.", labels=BLOCK
    )
    target = GaugeMetricFamily("dbserve_block_target_steps", "Steps the job asks for.", labels=BLOCK)
    interval = GaugeMetricFamily(
        "dbserve_block_checkpoint_interval_steps", "Steps from one checkpoint to the next.", labels=BLOCK
    )
    for job, task in trained:
        stands.add_metric(_key(job, task), step_of(job, task.name))
        target.add_metric(_key(job, task), task.steps)
        interval.add_metric(_key(job, task), job.spec.checkpoint.every_steps)
    yield from (stands, target, interval)


def _measured(trained: Trained) -> Iterator[Metric]:
    gauges = _of_fields(
        GaugeMetricFamily,
        ("loss", "loss", "Last training loss; nats for classification."),
        ("grad_norm", "grad_norm", "Last gradient norm, before clipping."),
        ("learning_rate", "learning_rate", "Last learning rate."),
        ("last_step_at", "last_step_timestamp_seconds", "When the last step ended."),
        ("heartbeat_at", "heartbeat_timestamp_seconds", "When the worker last told of itself."),
    )
    held_out = GaugeMetricFamily(
        "dbserve_block_eval_loss",
        "Loss on validation rows by noise level, as last looked at with a checkpoint; not of baselines.",
        labels=(*BLOCK, "sigma_band"),
    )
    saved = GaugeMetricFamily("dbserve_block_last_checkpoint_timestamp_seconds", "Last whole checkpoint.", labels=BLOCK)
    host = GaugeMetricFamily("dbserve_block_host_memory_bytes", "Resident set of the worker.", labels=BLOCK)
    device = GaugeMetricFamily(
        "dbserve_block_device_memory_bytes",
        "Size of the memory it trains in: the GPU's, else the host's.",
        labels=BLOCK,
    )
    memory = GaugeMetricFamily(
        "dbserve_block_memory_bytes", "Bytes in training, by kind; predicted is the plan's.", labels=(*BLOCK, "kind")
    )
    for job, plan in trained:
        key, task, progress = _key(job, plan), job.tasks[plan.name], job.progress.get(plan.name)
        memory.add_metric((*key, "predicted"), job.plan.network_of(plan).memory.total)
        if task.checkpoints:
            saved.add_metric(key, task.checkpoints[-1].at)
        if progress is None:
            continue
        for field, family in gauges.items():
            if (value := getattr(progress, field)) is not None:
                family.add_metric(key, value)
        for band in progress.eval_loss:
            label = f"{band.low:.6g}-{band.high:.6g}"  # no two bands may get the same
            held_out.add_metric((*key, label), math.nan if band.loss is None else band.loss)
        for kind, size in _kinds(progress.memory):
            memory.add_metric((*key, kind), size)
        for family, size in ((host, progress.memory.host), (device, progress.memory.device)):
            if size is not None:
                family.add_metric(key, size)
    yield from (*gauges.values(), held_out, saved, host, device, memory)


def _kinds(memory: MemoryBytes) -> Iterator[tuple[str, int]]:
    for kind in ("parameters", "gradients", "optimizer", "activations", "allocated", "reserved"):
        if (size := getattr(memory, kind)) is not None:
            yield kind, size
    if (peak := peak_bytes(memory)) is not None:
        yield "peak", peak

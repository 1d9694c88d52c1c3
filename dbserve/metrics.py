"""Every metric name. The store's snapshots become metric families at each scrape; nothing is kept per job.

Blocks carry the labels `job_id` and `block` only; what changes (node, gpu, attempt, ranges) sits in dbserve_block_info.
`block` is a block's index; the other trained tasks of a job appear under their names (trunk, end_to_end, shallow-0), so
that memory and throughput against end-to-end can be plotted from the same series. Cardinality is bounded by the blocks
of the jobs that run, or ended some minutes ago: the store chooses which those are.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from dbserve import __version__
from dbserve.contracts.plan import TRAINED, MemoryPlan, TaskKind, TaskPlan
from dbserve.contracts.snapshot import JobOutline, JobSnapshot
from dbserve.contracts.status import JobStatus, MemoryBytes, TaskState
from dbserve.progress import measured_memory_ratio, peak_bytes, step_of

BLOCK = ("job_id", "block")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpMetrics:
    """What this process itself counts: requests, and readers of event streams."""

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        labels = ("method", "route", "code")
        self._requests = Counter(
            "http_requests", "Answered requests; route is a template.", labels, registry=self.registry
        )
        self._durations = Histogram(
            "http_request_duration_seconds",
            "From the request's arrival to the first byte of its answer.",
            labels,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
            registry=self.registry,
        )
        self.sse_clients = Gauge("dbserve_sse_clients", "Open event and log streams.", registry=self.registry)

    def observe(self, method: str, route: str, code: int, seconds: float) -> None:
        labels = (method if method in METHODS else "other", route, str(code))
        self._requests.labels(*labels).inc()
        self._durations.labels(*labels).observe(seconds)


class WorkDone:
    """Keeps counters of work from falling when an attempt resumes from a checkpoint behind its predecessor.

    A counter that falls reads as a restart from zero, and rate() would then show the checkpoint's whole step count as
    work of one scrape. Work done twice is work: the counter stands still at the fall and then goes on.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], tuple[float, float]] = {}  # raw value, what is added to it

    def counted(self, raw: float, *key: str) -> float:
        last, added = self._seen.get(key, (0.0, 0.0))
        added += max(0.0, last - raw)
        self._seen[key] = raw, added
        return raw + added

    def forget_all_but(self, job_ids: Iterable[str]) -> None:
        kept = set(job_ids)
        self._seen = {key: value for key, value in self._seen.items() if key[0] in kept}


def render(accept: str, http: HttpMetrics, work: WorkDone, snapshots: Sequence[JobOutline] | None) -> tuple[bytes, str]:
    """The exposition and its media type. `snapshots` None: Redis does not answer, and dbserve_redis_up says so."""
    encode, media_type = choose_encoder(accept)
    families = [*_of_process(redis_up=snapshots is not None), *http.registry.collect()]
    if snapshots is not None:
        families += job_families(snapshots, work)
    return encode(_Families(families)), media_type


class _Families:
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _of_process(*, redis_up: bool) -> Iterator[Metric]:
    build = GaugeMetricFamily(
        "dbserve_build_info", "Versions installed here.", labels=("version", "ray_version", "torch_version")
    )
    build.add_metric((__version__, _installed("ray"), _installed("torch")), 1)
    yield build
    yield GaugeMetricFamily("dbserve_redis_up", "1 when Redis answered this scrape.", value=float(redis_up))


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def job_families(outlines: Sequence[JobOutline], work: WorkDone) -> Iterator[Metric]:
    """Families of these jobs. Blocks have series of their own once their job has begun, and so comes in full."""
    begun = {job.record.id: job for job in outlines if isinstance(job, JobSnapshot)}
    work.forget_all_but(begun)
    trained = [(snapshot, task) for snapshot in begun.values() for task in snapshot.plan.tasks if task.kind in TRAINED]
    yield _counted("dbserve_jobs", "Jobs that run or ended lately.", JobStatus, [job.status for job in outlines])
    states = [task.state for job in outlines for task in job.tasks.values() if task.kind is TaskKind.BLOCK]
    yield _counted("dbserve_blocks", "Blocks of the jobs that run or ended lately.", TaskState, states)
    yield _memory_ratios(begun.values())
    yield from _described(trained)
    yield from _worked(trained, work)
    yield from _measured(trained)


Trained = Sequence[tuple[JobSnapshot, TaskPlan]]


def _block(task: TaskPlan) -> str:
    return str(task.index) if task.kind is TaskKind.BLOCK else task.name


def _key(snapshot: JobSnapshot, task: TaskPlan) -> tuple[str, str]:
    return snapshot.record.id, _block(task)


def _counted(name: str, meaning: str, statuses: type[JobStatus] | type[TaskState], found: Sequence[str]) -> Metric:
    tally = Tally(found)
    family = GaugeMetricFamily(name, meaning, labels=("status",))
    for status in statuses:
        family.add_metric((status.value,), tally[status])
    return family


def _memory_ratios(jobs: Iterable[JobSnapshot]) -> Metric:
    family = GaugeMetricFamily(
        "dbserve_job_memory_ratio", "Bytes of the largest block / end-to-end, in training.", labels=("job_id", "kind")
    )
    for job in jobs:
        family.add_metric((job.record.id, "predicted"), job.plan.memory_ratio)
        if (measured := measured_memory_ratio(job)) is not None:
            family.add_metric((job.record.id, "measured"), measured)
    return family


def _described(trained: Trained) -> Iterator[Metric]:
    info = GaugeMetricFamily(
        "dbserve_block_info",
        "Where a block runs and what it owns.",
        labels=(*BLOCK, "node", "gpu_uuid", "attempt", "layers", "sigma_min", "sigma_max"),
    )
    status = GaugeMetricFamily("dbserve_block_status", "1 for the status it is in.", labels=(*BLOCK, "status"))
    restarts = CounterMetricFamily("dbserve_block_restarts", "Attempts that were lost.", labels=(*BLOCK, "reason"))
    for snapshot, plan in trained:
        key, task = _key(snapshot, plan), snapshot.tasks[plan.name]
        info.add_metric((*key, task.node or "", task.gpu or "", str(task.run.attempt), *_ranges(snapshot, plan)), 1)
        for state in TaskState:
            status.add_metric((*key, state.value), float(task.state is state))
        for reason, count in task.restarts.items():
            restarts.add_metric((*key, reason.value), count)
    yield from (info, status, restarts)


def _ranges(snapshot: JobSnapshot, task: TaskPlan) -> tuple[str, str, str]:
    if task.kind is TaskKind.BLOCK:
        block = snapshot.plan.blocks[task.index]
        return _span(block.layers), f"{block.sigma_min:g}", f"{block.sigma_max:g}"
    return _span(_network(snapshot, task)[0]), "", ""


def _span(layers: tuple[int, int]) -> str:
    return f"{layers[0]}-{layers[1]}"


def _network(snapshot: JobSnapshot, task: TaskPlan) -> tuple[tuple[int, int], MemoryPlan | None]:
    """Layers and predicted memory (of one worker of several); a trunk is a block's twin, and is predicted nowhere."""
    plan = snapshot.plan
    match task.kind:
        case TaskKind.BLOCK:
            return plan.blocks[task.index].layers, plan.blocks[task.index].memory
        case TaskKind.END_TO_END | TaskKind.DATA_PARALLEL:
            return plan.end_to_end.layers, plan.end_to_end.memory
        case TaskKind.SHALLOW | TaskKind.SHALLOW_LONG:
            return plan.shallow.layers, plan.shallow.memory
        case _:
            return plan.shallow.layers, None


def _worked(trained: Trained, work: WorkDone) -> Iterator[Metric]:
    steps = CounterMetricFamily("dbserve_block_steps", "Optimizer steps, repeated ones included.", labels=BLOCK)
    samples = CounterMetricFamily("dbserve_block_samples", "Samples trained on.", labels=BLOCK)
    target = GaugeMetricFamily("dbserve_block_target_steps", "Steps the job asks for.", labels=BLOCK)
    waited = CounterMetricFamily(
        "dbserve_block_data_wait_seconds", "Time the current attempt waited for data.", labels=BLOCK
    )
    for snapshot, task in trained:
        key, progress = _key(snapshot, task), snapshot.progress.get(task.name)
        steps.add_metric(key, work.counted(step_of(snapshot, task.name), *key, "steps"))
        target.add_metric(key, task.steps)
        if progress is not None:
            samples.add_metric(key, work.counted(progress.samples_total, *key, "samples"))
            waited.add_metric(key, progress.data_wait_seconds_total)
    yield from (steps, samples, target, waited)


def _measured(trained: Trained) -> Iterator[Metric]:
    gauges = {
        field: GaugeMetricFamily(f"dbserve_block_{name}", meaning, labels=BLOCK)
        for field, name, meaning in (
            ("loss", "loss", "Last training loss; nats for classification."),
            ("grad_norm", "grad_norm", "Last gradient norm, before clipping."),
            ("learning_rate", "learning_rate", "Last learning rate."),
            ("last_step_at", "last_step_timestamp_seconds", "When the last step ended."),
            ("heartbeat_at", "heartbeat_timestamp_seconds", "When the worker last told of itself."),
        )
    }
    saved = GaugeMetricFamily("dbserve_block_last_checkpoint_timestamp_seconds", "Last whole checkpoint.", labels=BLOCK)
    host = GaugeMetricFamily("dbserve_block_host_memory_bytes", "Resident set of the worker.", labels=BLOCK)
    memory = GaugeMetricFamily(
        "dbserve_block_memory_bytes", "Bytes in training, by kind; predicted is the plan's.", labels=(*BLOCK, "kind")
    )
    for snapshot, plan in trained:
        key, task, progress = _key(snapshot, plan), snapshot.tasks[plan.name], snapshot.progress.get(plan.name)
        if (predicted := _network(snapshot, plan)[1]) is not None:
            memory.add_metric((*key, "predicted"), predicted.total)
        if task.checkpoints:
            saved.add_metric(key, task.checkpoints[-1].at)
        if progress is None:
            continue
        for field, family in gauges.items():
            if (value := getattr(progress, field)) is not None:
                family.add_metric(key, value)
        for kind, size in _kinds(progress.memory):
            memory.add_metric((*key, kind), size)
        if progress.memory.host is not None:
            host.add_metric(key, progress.memory.host)
    yield from (*gauges.values(), saved, host, memory)


def _kinds(memory: MemoryBytes) -> Iterator[tuple[str, int]]:
    for kind in ("parameters", "gradients", "optimizer", "activations", "allocated", "reserved"):
        if (size := getattr(memory, kind)) is not None:
            yield kind, size
    if (peak := peak_bytes(memory)) is not None:
        yield "peak", peak

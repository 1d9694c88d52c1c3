"""PromQL in the forms that every panel uses.

Each API replica exports the same series, read from the same store. So values of a job or a block are taken by `max by`,
never summed over instances; only what an API process counts itself (its requests, its open streams) is summed.
"""

from dbserve.contracts.status import TaskState

RATE = "[$__rate_interval]"
RANGE = "[$__range]"
BLOCKS = 'block=~"[0-9]+"'  # without the baselines, which have names
KEY = "job_id, block"

# How a status is drawn; a state timeline needs a number a status.
COLOURS = {
    TaskState.PENDING: "super-light-blue",
    TaskState.LAUNCHED: "light-blue",
    TaskState.RUNNING: "green",
    TaskState.PAUSING: "light-yellow",
    TaskState.PAUSED: "yellow",
    TaskState.CANCELLING: "light-orange",
    TaskState.SUCCEEDED: "dark-green",
    TaskState.FAILED: "red",
    TaskState.CANCELLED: "orange",
}


def selected(metric: str, *conditions: str) -> str:
    """The series of the chosen jobs and blocks."""
    matchers = ('job_id=~"$job_id"', 'block=~"$block"', *conditions)
    return f"{metric}{{{', '.join(matchers)}}}"


def per_block(inner: str, *labels: str) -> str:
    """One series a block (and `labels`), of the blocks that run, or ran, on the chosen nodes.

    By `and` and not by a product: while a block moves to another node, two replicas may tell of both.
    """
    by = ", ".join((KEY, *labels))
    return f'(max by ({by}) ({inner}) and on ({KEY}) dbserve_block_info{{job_id=~"$job_id", node=~"$node"}})'


def gauge(metric: str, *conditions: str, labels: tuple[str, ...] = ()) -> str:
    return per_block(selected(metric, *conditions), *labels)


def rate(metric: str, *conditions: str, labels: tuple[str, ...] = ()) -> str:
    return per_block(f"rate({selected(metric, *conditions)}{RATE})", *labels)


def quantile(share: float, metric: str, *conditions: str, labels: tuple[str, ...] = (), window: str = RATE) -> str:
    """A quantile of a histogram of the store's: replicas repeat its buckets, so they are not summed."""
    by = ", ".join(("le", *labels))
    where = f"{{{', '.join(conditions)}}}" if conditions else ""
    return f"histogram_quantile({share:g}, max by ({by}) (rate({metric}_bucket{where}{window})))"


def of_step(share: float) -> str:
    """A quantile of a block's step duration, seconds."""
    return f"histogram_quantile({share:g}, {rate('dbserve_block_step_duration_seconds_bucket', labels=('le',))})"


def age(metric: str) -> str:
    """Seconds since a block's time stamp, while the block runs."""
    return f'(time() - {gauge(metric)} and on ({KEY}) dbserve_block_status{{status="running"}} == 1)'


def status_code() -> str:
    """A block's status as its place among the statuses, from 1."""
    statuses = (selected("dbserve_block_status", f'status="{state.value}"') for state in TaskState)
    terms = (f"{status} * {code}" for code, status in enumerate(statuses, start=1))
    return per_block(" or ".join(terms))


def memory(kind: str, *conditions: str) -> str:
    return gauge("dbserve_block_memory_bytes", f'kind="{kind}"', *conditions)


def against(measured: str, reference: str) -> str:
    """A ratio of two values of the same block."""
    return f"{measured} / on ({KEY}) {reference}"


def against_end_to_end(measured: str, reference: str) -> str:
    """A ratio of blocks to the end-to-end network of their job; `reference` is of the job alone."""
    return f"{measured} / on (job_id) group_left () {reference}"

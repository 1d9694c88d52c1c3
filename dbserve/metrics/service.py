"""What the service counted over all jobs and processes, as the store keeps it."""

from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from dbserve.contracts.status import TERMINAL_JOB, JobStatus
from dbserve.metrics.durations import add_durations
from dbserve.store.connection import Operation
from dbserve.store.counters import REDIS_ERRORS, WEBHOOK_DELIVERIES, Counted, Totals


def service_families(totals: Totals) -> Iterator[Metric]:
    """Queue, results, the reconciler, Redis' refusals, webhook deliveries."""
    waited = HistogramMetricFamily(
        "dbserve_job_queue_wait_seconds", "From a job's submission to the beginning of its first task."
    )
    add_durations(waited, (), totals.durations(Counted.QUEUE_WAIT), Counted.QUEUE_WAIT.bounds)
    lasted = HistogramMetricFamily(
        "dbserve_job_duration_seconds", "From a job's submission to its end.", labels=("result",)
    )
    for result in JobStatus:
        if result in TERMINAL_JOB:
            counted = Counted.of_job(result)
            add_durations(lasted, (result.value,), totals.durations(counted), counted.bounds)
    ticks = HistogramMetricFamily("dbserve_reconcile_duration_seconds", "One look of the reconciler, and its actions.")
    add_durations(ticks, (), totals.durations(Counted.RECONCILE), Counted.RECONCILE.bounds)
    yield from (waited, lasted, ticks)
    ticked = GaugeMetricFamily("dbserve_reconcile_last_timestamp_seconds", "When the reconciler last told of a look.")
    if totals.ticked_at is not None:
        ticked.add_metric((), totals.ticked_at)
    yield ticked
    refused = CounterMetricFamily(
        "dbserve_redis_errors", "Times that Redis refused or did not answer, of all processes.", labels=("operation",)
    )
    refusals = totals.labelled(REDIS_ERRORS)
    for operation in get_args(Operation):
        refused.add_metric((operation,), refusals.get(operation, 0))
    yield refused
    delivered = CounterMetricFamily("dbserve_webhook_deliveries", "Tries at a delivery, by result.", labels=("result",))
    for result, count in sorted(totals.labelled(WEBHOOK_DELIVERIES).items()):
        delivered.add_metric((result,), count)
    yield delivered

"""Durations as Prometheus has them."""

from collections.abc import Sequence

from prometheus_client.core import HistogramMetricFamily

from dbserve.contracts.work import Durations


def add_durations(
    family: HistogramMetricFamily, labels: Sequence[str], durations: Durations, bounds: Sequence[float]
) -> None:
    """A histogram of these labels; buckets are cumulative there."""
    counts = durations.counts or (0,) * (len(bounds) + 1)
    names = [*map(str, bounds), "+Inf"]
    buckets = [(name, float(sum(counts[: place + 1]))) for place, name in enumerate(names)]
    family.add_metric(labels, buckets, durations.seconds)

"""What this process counts itself: requests, and readers of streams; and what it is."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric

from dbserve import __version__

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpMetrics:
    """Requests, and readers of event streams."""

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


def process_families(*, redis_up: bool) -> Iterator[Metric]:
    """Versions, and whether Redis answered this scrape."""
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

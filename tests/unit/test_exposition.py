"""The exposition is written by an encoder of our own, which has to write what the library's would."""

from collections.abc import Iterable

import pytest
from prometheus_client import exposition as library
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics import exposition as open_library

from dbserve.metrics import HttpMetrics, Scrape
from dbserve.metrics.exposition import encoded, render, store_families
from dbserve.store.counters import Totals
from tests.unit.test_metrics import a_running_job


class Collected:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def odd() -> list[Metric]:
    """Every kind of family, with what has to be escaped and what is no plain number."""
    gauge = GaugeMetricFamily("odd", 'Of "quotes",\nlines and \\.', labels=("name", "a"))
    for name, value in (('"', 1e9), ("\\", 0.1), ("\n", float("nan")), ("é", float("-inf")), ("", -1234567.0)):
        gauge.add_metric((name, "b"), value)
    counter = CounterMetricFamily("many", "Counted.", labels=("x",))
    counter.add_metric(("y",), 12_345_678)
    histogram = HistogramMetricFamily("lasted", "Seconds.", labels=("x",))
    histogram.add_metric(("y",), [("0.1", 1.0), ("+Inf", 3.0)], 4.5)
    return [gauge, counter, histogram, GaugeMetricFamily("alone", "No label.", value=3), GaugeMetricFamily("none", "")]


def of_the_service() -> list[Metric]:
    http = HttpMetrics()
    http.observe("GET", "/v1/jobs", 200, 0.01)
    return [*http.registry.collect(), *store_families(Scrape([a_running_job()], Totals({})))]


@pytest.mark.parametrize("families", [odd, of_the_service])
def test_each_format_is_byte_for_byte_the_library_s(families: object) -> None:
    assert callable(families)
    made = list[Metric](families())
    assert encoded(made, openmetrics=False) == library.generate_latest(Collected(made))  # pyright: ignore[reportArgumentType]
    assert encoded(made, openmetrics=True) == open_library.generate_latest(Collected(made))


@pytest.mark.parametrize(
    ("accept", "ends"), [("", False), ("text/plain;version=0.0.4", False), ("application/openmetrics-text", True)]
)
def test_who_asks_for_openmetrics_gets_its_end(accept: str, ends: bool) -> None:
    body, media_type = render(accept, HttpMetrics(), None)
    assert body.endswith(b"# EOF\n") is ends
    assert media_type.startswith("application/openmetrics-text") is ends

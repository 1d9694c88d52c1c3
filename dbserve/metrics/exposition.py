"""What the store shows, and what the process counts, as Prometheus reads it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString  # pyright: ignore[reportUnknownVariableType]

from dbserve.contracts.snapshot import JobOutline, JobSnapshot
from dbserve.metrics.blocks import block_families
from dbserve.metrics.jobs import job_families
from dbserve.metrics.process import HttpMetrics, process_families
from dbserve.metrics.service import service_families
from dbserve.store.counters import Totals


@dataclass(frozen=True)
class Scrape:
    """One look at the store: the jobs that run or ended lately, those that have begun in full; and its counters."""

    jobs: Sequence[JobOutline]
    totals: Totals


def render(accept: str, http: HttpMetrics, scrape: Scrape | None) -> tuple[bytes, str]:
    """The exposition and its media type. `scrape` None: Redis does not answer, and dbserve_redis_up says so."""
    _, media_type = choose_encoder(accept)
    families = [*process_families(redis_up=scrape is not None), *http.registry.collect()]
    if scrape is not None:
        families += store_families(scrape)
    return encoded(families, openmetrics=media_type.startswith("application/openmetrics-text")), media_type


def store_families(scrape: Scrape) -> Iterator[Metric]:
    """Every family that is read off the store."""
    begun = [job for job in scrape.jobs if isinstance(job, JobSnapshot)]
    yield from job_families(scrape.jobs, begun)
    yield from block_families(begun)
    yield from service_families(scrape.totals)


def encoded(families: Iterable[Metric], *, openmetrics: bool) -> bytes:
    """Byte for byte what the library's encoders write of counters, gauges and histograms without units and exemplars.

    Several times as fast: they check every name of every sample anew, and a thousand blocks have 56,000 of these.
    """
    known: dict[tuple[str, str], str] = {}

    def label(pair: tuple[str, str]) -> str:
        if (text := known.get(pair)) is None:
            text = known[pair] = f'{pair[0]}="{_escaped(pair[1], quotes=True)}"'
        return text

    lines: list[str] = []
    for family in families:
        name = family.name if openmetrics or family.type != "counter" else f"{family.name}_total"
        lines.append(f"# HELP {name} {_escaped(family.documentation, quotes=openmetrics)}\n")
        lines.append(f"# TYPE {name} {family.type}\n")
        for sample in family.samples:
            labels = ",".join([label(pair) for pair in sorted(sample.labels.items())])
            braced = f"{{{labels}}}" if labels else ""
            lines.append(f"{sample.name}{braced} {floatToGoString(sample.value)}\n")
    if openmetrics:
        lines.append("# EOF\n")
    return "".join(lines).encode()


def _escaped(text: str, *, quotes: bool) -> str:
    escaped = text.replace("\\", r"\\").replace("\n", r"\n")
    return escaped.replace('"', r"\"") if quotes else escaped

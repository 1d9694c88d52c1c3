"""What the store shows, and what the process counts, as Prometheus reads it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder

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
    encode, media_type = choose_encoder(accept)
    families = [*process_families(redis_up=scrape is not None), *http.registry.collect()]
    if scrape is not None:
        families += store_families(scrape)
    return encode(_Families(families)), media_type


def store_families(scrape: Scrape) -> Iterator[Metric]:
    """Every family that is read off the store."""
    begun = [job for job in scrape.jobs if isinstance(job, JobSnapshot)]
    yield from job_families(scrape.jobs, begun)
    yield from block_families(begun)
    yield from service_families(scrape.totals)


class _Families:
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

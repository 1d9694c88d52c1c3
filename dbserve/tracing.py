"""Traces: spans that name what was done for a job, from its submission to its report.

A trace crosses processes by its W3C `traceparent`, which the store keeps with the job and with each attempt: parents
are handed on as such text, never by what happens to run at the moment. Where no endpoint is set nothing is traced,
nothing is stored, and nothing of OpenTelemetry is imported from here.
"""

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from dbserve.contracts.status import Run
from dbserve.errors import StartupRefused

log = logging.getLogger(__name__)

Attribute = str | int | float | bool

FLUSH_SECONDS = 1.0  # for a process that ends; a collector that does not answer costs no more
EXTRA = "traces need OpenTelemetry: install dbserve[trace], or unset DBSERVE_OTLP_ENDPOINT"


class Span(Protocol):
    """Something that is being done. Ends once: what is said of it later is not heard."""

    @property
    def traceparent(self) -> str:
        """By which others continue the trace; "" where nothing is traced."""
        ...

    def note(self, attributes: Mapping[str, Attribute | None]) -> None:
        """None leaves an attribute out."""
        ...

    def fail(self, reason: str, message: str) -> None:
        """It came to no good end."""
        ...

    def end(self) -> None: ...


class Tracer(Protocol):
    def begin(self, name: str, *, parent: str, attributes: Mapping[str, Attribute | None]) -> Span:
        """A span that the caller ends. `parent`: the traceparent that it continues; "" or nonsense begins a trace."""
        ...

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Sends what has ended, in at most so many seconds. Blocks."""
        ...


class Unspanned:
    """A span where nothing is traced."""

    @property
    def traceparent(self) -> str:
        return ""

    def note(self, attributes: Mapping[str, Attribute | None]) -> None: ...
    def fail(self, reason: str, message: str) -> None: ...
    def end(self) -> None: ...


class Untraced:
    """The tracer where no endpoint is set."""

    def begin(self, name: str, *, parent: str, attributes: Mapping[str, Attribute | None]) -> Span:
        return NO_SPAN

    def flush(self, seconds: float = FLUSH_SECONDS) -> None: ...


NO_SPAN = Unspanned()
UNTRACED = Untraced()


def open_tracer(endpoint: str | None, process: str) -> Tracer:
    """The tracer of one process (api, reconciler, worker), which says so as its service: dbserve-<process>.

    Raises StartupRefused: an endpoint is set, and OpenTelemetry is not installed.
    """
    if endpoint is None:
        return UNTRACED
    try:
        from dbserve.otlp import OtlpTracer
    except ImportError as missing:
        raise StartupRefused(f"{EXTRA} ({missing})") from None
    return OtlpTracer(endpoint, process)


def tracer_if_possible(endpoint: str | None) -> Tracer:
    """For workers: a node without OpenTelemetry trains as well as any other, untraced."""
    try:
        return open_tracer(endpoint, "worker")
    except StartupRefused as missing:
        log.warning("not traced: %s", missing)
        return UNTRACED


@dataclass(frozen=True)
class Trace:
    """A place in a trace, from which it goes on."""

    tracer: Tracer = UNTRACED
    parent: str = ""  # its traceparent

    def begin(self, name: str, attributes: Mapping[str, Attribute | None]) -> Span:
        return self.tracer.begin(name, parent=self.parent, attributes=attributes)

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Attribute | None]) -> Generator[Span]:
        """A span of what is done inside; an exception is its failure."""
        begun = self.begin(name, attributes)
        try:
            yield begun
        except Exception as error:
            begun.fail(str(getattr(error, "code", type(error).__name__)), str(error))
            raise
        finally:
            begun.end()


def of_run(run: Run) -> dict[str, Attribute | None]:
    """What every span of an attempt says."""
    return {"dbserve.job.id": run.job_id, "dbserve.task": run.task, "dbserve.attempt": run.attempt}

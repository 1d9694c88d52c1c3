"""Spans by OpenTelemetry, sent over OTLP/HTTP. Imported only where an endpoint is set."""

import os
import threading
from collections.abc import Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from dbserve import __version__
from dbserve.redaction import Redactor, known_secrets
from dbserve.tracing import FLUSH_SECONDS, Attribute

SEND_SECONDS = 10.0  # for one batch, its repeats included
BATCH_MILLISECONDS = 1000  # between two batches
WAITING_SPANS = 2048  # while the collector is away; later ones are dropped

_W3C = TraceContextTextMapPropagator()


class OtlpSpan:
    """A span under way. Used by one thread at a time."""

    def __init__(self, span: OtelSpan, redact: Redactor) -> None:
        self._span = span
        self._redact = redact

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def note(self, attributes: Mapping[str, Attribute | None]) -> None:
        known = {name: value for name, value in attributes.items() if value is not None}
        self._span.set_attributes(
            {name: str(value) if isinstance(value, str) else value for name, value in known.items()}
        )

    def fail(self, reason: str, message: str) -> None:
        self.note({"error.type": reason})
        self._span.set_status(Status(StatusCode.ERROR, self._redact(message)))

    def end(self) -> None:
        if self._span.is_recording():
            self._span.end()


class OtlpTracer:
    """Sends in the background, and drops what cannot be sent. Failures are told without secrets, as in logs."""

    def __init__(self, endpoint: str, process: str) -> None:
        resource = Resource(
            {"service.name": f"dbserve-{process}", "service.version": __version__, "process.pid": os.getpid()}
        )
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=SEND_SECONDS)
        self._batches = BatchSpanProcessor(
            exporter, max_queue_size=WAITING_SPANS, schedule_delay_millis=BATCH_MILLISECONDS
        )
        # The provider's own farewell would wait for a dead collector: processes here end by flush(), which does not.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(self._batches)
        self._tracer = provider.get_tracer("dbserve", __version__)
        self._redact = Redactor(known_secrets(os.environ))

    def begin(self, name: str, *, parent: str, attributes: Mapping[str, Attribute | None]) -> OtlpSpan:
        context = _W3C.extract({"traceparent": parent})
        begun = OtlpSpan(self._tracer.start_span(name, context=context), self._redact)
        begun.note(attributes)
        return begun

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """OpenTelemetry's own flush takes a time-out and does not keep it: so a thread waits for it, and not we."""
        flushing = threading.Thread(target=self._batches.force_flush, name="flush-spans", daemon=True)
        flushing.start()
        flushing.join(seconds)

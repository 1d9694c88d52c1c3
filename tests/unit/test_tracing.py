"""Spans: free where nothing is traced, sent where something is, and never waited for."""

import socket
import subprocess
import sys
import threading

import pytest

from dbserve.contracts.status import Run
from dbserve.errors import StartupRefused, StoreUnavailable
from dbserve.settings import read_settings
from dbserve.tracing import NO_SPAN, UNTRACED, Trace, of_run, open_tracer, tracer_if_possible
from tests.collector import collecting

REMOTE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_where_nothing_is_traced_nothing_that_would_send_is_imported() -> None:
    script = (
        "import sys, dbserve.api.app, dbserve.reconciler; from dbserve.tracing import Trace, open_tracer\n"
        "with Trace(open_tracer(None, 'api')).span('x', {}) as span: assert span.traceparent == ''\n"
        # FastAPI and the Redis driver look for OpenTelemetry of their own accord; what sends is imported by us alone
        "assert not [name for name in sys.modules if name.startswith(('dbserve.otlp', 'opentelemetry.exporter.otlp'))]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_endpoint_without_the_extra_is_refused_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dbserve.otlp", None)  # as if its imports had failed
    with pytest.raises(StartupRefused, match=r"dbserve\[trace\]"):
        open_tracer("http://127.0.0.1:4318", "api")
    assert tracer_if_possible("http://127.0.0.1:4318") is UNTRACED  # a worker trains all the same


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(StartupRefused, match="OTLP_ENDPOINT"):
        read_settings(otlp_endpoint="collector:4318")
    assert read_settings().otlp_endpoint is None


def test_a_trace_goes_on_from_what_was_handed_in() -> None:
    run = Run(job_id="j1", task="block-0", attempt=2)
    with collecting() as collector:
        tracer = open_tracer(collector.url + "/", "worker")
        with (
            Trace(tracer, REMOTE).span("launch", of_run(run)) as launch,
            Trace(tracer, launch.traceparent).span("train", {"dbserve.node": None}) as train,
        ):
            assert train.traceparent.split("-")[1] == REMOTE.split("-")[1]
        tracer.flush(10.0)
        spans = {span.name: span for span in collector.spans}
        assert collector.paths == {"/v1/traces"}
    assert spans["launch"].parent == REMOTE.split("-")[2]
    assert spans["train"].parent == spans["launch"].id
    assert {span.trace_id for span in spans.values()} == {REMOTE.split("-")[1]}
    assert {span.service for span in spans.values()} == {"dbserve-worker"}
    assert spans["launch"].attributes == {"dbserve.job.id": "j1", "dbserve.task": "block-0", "dbserve.attempt": 2}
    assert spans["train"].attributes == {}


def test_a_trace_that_its_caller_does_not_sample_is_not_sent() -> None:
    with collecting() as collector:
        tracer = open_tracer(collector.url, "api")
        with Trace(tracer, REMOTE[:-2] + "00").span("left out", {}):
            pass
        with Trace(tracer, "nonsense").span("begins a trace", {}):
            pass
        tracer.flush(10.0)
        assert [(span.name, span.parent) for span in collector.spans] == [("begins a trace", "")]


def test_what_is_raised_inside_a_span_is_its_failure() -> None:
    with collecting() as collector:
        tracer = open_tracer(collector.url, "api")
        with pytest.raises(StoreUnavailable), Trace(tracer).span("launch", {}):
            raise StoreUnavailable("redis://:hunter22@host does not answer")
        tracer.flush(10.0)
        [span] = collector.spans
    assert (span.failed, span.message) == (True, "redis://***@host does not answer")
    assert span.attributes["error.type"] == "store_unavailable"


def test_a_collector_that_never_answers_keeps_nobody_waiting() -> None:
    """A send is given up after ten seconds; a farewell does not wait for it, and neither does a span."""
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        tracer = open_tracer(f"http://127.0.0.1:{hangs.getsockname()[1]}", "worker")
        flushed = threading.Event()

        def work() -> None:
            for _ in range(3):
                with Trace(tracer).span("train", {}):
                    pass
            tracer.flush()
            flushed.set()

        threading.Thread(target=work, daemon=True).start()
        assert flushed.wait(8.0), "a dead collector holds up its user"


def test_a_process_ends_though_its_collector_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        script = (
            "import time\n"
            "from dbserve.tracing import Trace, open_tracer\n"
            f"tracer = open_tracer('http://127.0.0.1:{hangs.getsockname()[1]}', 'worker')\n"
            "Trace(tracer).begin('train', {}).end()\n"
            "tracer.flush(0.1)\n"
            "print('ends', flush=True)"
        )
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ends\n"
            assert process.wait(8.0) == 0
        finally:
            process.kill()
            process.wait(10)
            process.stdout.close()


def test_a_span_where_nothing_is_traced_takes_everything_and_does_nothing() -> None:
    span = Trace().begin("train", {"a": 1})
    assert span is NO_SPAN
    span.note({"b": None})
    span.fail("why", "because")
    span.end()
    UNTRACED.flush()

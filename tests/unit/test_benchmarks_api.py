"""The load benchmark on sizes small enough for a test: that it measures what it says, not how fast anything is."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import api
from benchmarks.api import PARTS, Figure, Sizes, markdown
from benchmarks.load import percentiles

TINY = Sizes(
    jobs=120,
    pages=4,
    submissions=8,
    paced_seconds=0.2,
    clients=4,
    stream_seconds=0.4,
    progress_seconds=0.1,
    submissions_per_second=40.0,
    events_per_second=50.0,
)


def test_submissions_are_counted_unpaced_and_timed_paced() -> None:
    rate, p50, p99 = PARTS["submissions"](TINY)
    assert (rate.unit, rate.target, rate.at_least) == ("/s", 300, True)
    assert rate.value > 0
    assert 0 < p50.value <= p99.value


def test_stored_jobs_take_memory_and_come_in_pages() -> None:
    memory, p50, p99 = PARTS["listing"](TINY)
    assert memory.what.startswith("120 jobs")
    assert 0 < memory.value < 20
    assert 0 < p50.value <= p99.value


def test_every_client_of_a_stream_receives_every_event() -> None:
    p50, p99, lost, wrong = PARTS["streams"](TINY)
    assert 0 < p50.value <= p99.value
    assert lost.value == wrong.value == 0


def test_progress_writes_are_counted() -> None:
    (rate,) = PARTS["progress"](TINY)
    assert rate.value > 0


def test_the_command_prints_and_keeps_each_figure_beside_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [Figure("kept", 3.0, "ms", 5), Figure("missed", 3.0, "/s", 5, at_least=True)]
    monkeypatch.setattr(api, "PARTS", {"invented": lambda sizes: figures})
    monkeypatch.setattr(sys, "argv", ["benchmarks.api", "--output", str(tmp_path)])
    api.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["| kept | 3.0 ms | ≤ 5 |", "| missed | 3.0 /s (missed) | ≥ 5 |"]
    document = json.loads((tmp_path / "api.json").read_text())
    assert [figure["holds"] for figure in document["figures"]] == [True, False]
    assert document["redis-server"]
    assert (tmp_path / "api.md").read_text().count("|") == sum(line.count("|") for line in printed) + 8


def test_percentiles_are_in_milliseconds() -> None:
    found = percentiles([n / 1000 for n in range(101)])
    assert (found["p50"], found["p99"]) == (pytest.approx(50), pytest.approx(99))


def test_the_page_says_where_the_figures_come_from() -> None:
    assert "machine a, 2 cores" in markdown([], {"machine": "a, 2 cores"})

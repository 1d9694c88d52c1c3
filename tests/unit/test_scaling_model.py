"""The model of many blocks: that its page says what it says, and that its formulas hold where they can be held."""

import contextlib
import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import efficiency, scale
from benchmarks.efficiency import SpeedUps
from benchmarks.scaling import model, paper
from benchmarks.scaling.model import production
from dbserve.contracts.plan import MemoryPlan, NetworkPlan
from dbserve.store.history import LOG_LINES_KEPT
from tests.training import planned, run, spec_of

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
WHOLE = NetworkPlan(
    layers=(0, 8),
    parameters=1_000,
    memory=MemoryPlan(parameters=4000, gradients=4000, optimizer=8000, activations=1, total=16_001),
)


@pytest.mark.parametrize("table", paper.TABLES, ids=lambda table: table.__name__)
def test_the_page_has_each_table_as_the_model_makes_it(table: Callable[[], str]) -> None:
    assert table() in PAGE.read_text(), "python -m benchmarks.scaling.paper prints what belongs there"


@pytest.mark.parametrize(
    "rate",
    [model.heartbeats, model.checkpoints, model.events, model.log_batches, model.points],
    ids=lambda of: of.__name__,
)
def test_what_workers_do_grows_with_their_number(rate: Callable[[model.Fleet], float]) -> None:
    assert rate(production(800)) == pytest.approx(10 * rate(production(80)))


def test_heartbeats_are_most_of_what_redis_does() -> None:
    fleet = production(1000)
    assert model.HEARTBEAT * model.heartbeats(fleet) / model.commands(fleet) > 0.8


def test_a_job_keeps_no_more_lines_than_the_store_does() -> None:
    fleet = production(80)
    year = 365 * 86_400.0
    assert model.counts_of(fleet, year)["logs"] == (fleet.jobs + fleet.waiting_jobs) * LOG_LINES_KEPT


def test_a_lost_attempt_does_half_an_interval_again() -> None:
    fleet = replace(production(10), losses_per_second=1 / 86_400)
    assert model.repeated_hours(fleet, 60.0) == pytest.approx(10 * (60 + 300) / 3600)


def test_a_node_reads_a_data_set_once_however_many_blocks_it_has() -> None:
    fleet = production(80)
    assert model.shard_bytes(fleet, 5.0, shared=True) == 10 * 5.0
    assert model.shard_bytes(fleet, 5.0, shared=False) == 80 * 5.0


def test_a_ring_of_two_sends_every_gradient_once() -> None:
    assert model.gradient_bytes(WHOLE, 2) == 4000
    assert model.gradient_bytes(WHOLE, 1) == 0, "alone, nothing"


@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_a_checkpoint_has_the_bytes_that_the_model_says(ema: float) -> None:
    spec = spec_of(
        options={"depth": 4, "width": 64},
        training={"steps": 1, "warmup": 0, "ema": ema},
    )
    _, state = run(spec, "block-0")[-1]
    saved = [*state.weights.values(), *state.optimizer.values(), *(state.average or {}).values()]
    said = model.checkpoint_bytes(planned(spec).blocks[0], averaged=ema > 0)
    assert sum(tensor.nbytes for tensor in saved) == pytest.approx(said, rel=0.03)


def test_speed_ups_are_divided_repeat_by_repeat() -> None:
    blocks, most = SpeedUps("blocks", 4, (1.8, 0.9)), SpeedUps("matrices", 4, (2.0, 1.0))
    both = blocks.over(most)
    assert both.mean == pytest.approx(0.9)
    assert both.error == pytest.approx(0.0)
    assert "blocks / matrices" in both.row()
    assert math.isnan(SpeedUps("once", 4, (1.0,)).error)


def test_each_speed_up_is_of_its_own_kind_and_the_efficiency_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks 3.6 times as fast as one, bare loops 3.8 times, matrices 4 times (two of them: twice)."""

    @contextlib.contextmanager
    def nodes(*_arguments: object) -> Iterator[str]:
        yield "address"

    @contextlib.contextmanager
    def service(*_arguments: object, **_named: object) -> Iterator[tuple[None, int]]:
        yield None, 1

    rates = {"loop": {1: 100.0, 4: 380.0}, "compute": {1: 7.0, 2: 14.0, 4: 28.0}}
    monkeypatch.setattr(efficiency, "nodes", nodes)
    monkeypatch.setattr(efficiency, "service", service)
    monkeypatch.setattr(efficiency, "through_the_service", lambda client, blocks, seconds: {1: 50.0, 4: 180.0}[blocks])
    monkeypatch.setattr(efficiency, "at_once", lambda what, count, seconds, directory: rates[what][count])
    found = {(each.what, each.together): each for each in efficiency.measure(2, 1.0)}
    through, loops, most = efficiency.THROUGH, efficiency.LOOP, efficiency.COMPUTE
    means = {key: each.mean for key, each in found.items()}
    assert means == {
        (through, 4): pytest.approx(3.6),
        (loops, 4): pytest.approx(3.8),
        (most, 4): pytest.approx(4.0),
        (most, 2): pytest.approx(2.0),
        (f"{through} / {loops}", 4): pytest.approx(3.6 / 3.8),
        (f"{through} / {most}", 4): pytest.approx(0.9),
    }
    assert found[through, 4].of == pytest.approx((3.6, 3.6))


def test_the_loop_beside_the_service_waits_until_all_are_ready_and_tells_its_rate(tmp_path: Path) -> None:
    assert efficiency.at_once("loop", 1, 0.05, tmp_path) > 0


def test_so_do_the_matrices(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    efficiency.compute(0.05)
    ready, rate = map(json.loads, capsys.readouterr().out.splitlines())
    assert ready == "ready"
    assert rate > 0


def test_a_figure_that_misses_its_target_says_so() -> None:
    row = scale.Row("the longest tick, ms", (999.0, 1001.0), most=1000.0)
    assert row.cells() == ["999", "1,001 (missed)"]
    assert scale.Row("heartbeats /s", (90.0,), (100.0,)).cells() == ["90 (0.90 of 100)"]


def test_the_efficiency_command_prints_and_keeps_each_speed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(efficiency, "measure", lambda repeats, seconds: [SpeedUps("invented", 4, (1.5, 1.7))])
    monkeypatch.setattr(sys, "argv", ["benchmarks.efficiency", "--output", str(tmp_path)])
    efficiency.main()
    assert "| invented | 4 | **1.600 ± 0.100** | 1.500, 1.700 |" in capsys.readouterr().out
    [kept] = json.loads((tmp_path / "efficiency.json").read_text())["speed_ups"]
    assert kept["of"] == [1.5, 1.7]

"""The dashboards in JSON: what Grafana would be given, held against what is exported."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.__main__ import HERE, built, encoded
from tests.promql import exported, metrics_of

BOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(text) for path, text in built().items()}
RULES = yaml.safe_load((HERE.parent / "deploy/prometheus/rules/dbserve.yml").read_text())
RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule}
OTHERS = {"up", "ALERTS", "scrape_duration_seconds", "scrape_samples_scraped"}  # Prometheus makes these itself
FOREIGN = re.compile(r"DCGM_FI_\w+|ray_\w+")  # of exporters that are not ours
OF_GRAFANA = {"__rate_interval", "__range", "__data", "__url_time_range"}


def panels_of(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (panel for panel in board["panels"] if panel["type"] != "row")


def every_panel() -> list[Any]:
    return [
        pytest.param(panel, id=f"{name}: {panel['title']}")
        for name, board in BOARDS.items()
        for panel in panels_of(board)
    ]


@pytest.mark.parametrize("path", built(), ids=lambda path: path.stem)
def test_the_json_beside_the_code_is_what_the_code_builds(path: Any) -> None:
    assert path.read_text() == built()[path], "stale: run make dashboards"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_grafanas_own_model_of_a_dashboard_loses_nothing_of_it(board: dict[str, Any]) -> None:
    assert json.loads(encoded(Dashboard.from_json(board))) == board


def test_there_is_no_json_that_no_code_builds() -> None:
    assert set(HERE.glob("*.json")) == set(built())


@pytest.mark.parametrize("panel", every_panel())
def test_a_panel_says_what_it_shows_in_which_unit_and_names_its_series(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 40
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
    if panel["type"] == "table":
        organized = panel["transformations"][-1]["options"]
        shown = set(organized["indexByName"]) - set(organized["excludeByName"])
        assert shown <= set(organized["renameByName"])
    else:
        assert all(target["legendFormat"] for target in panel["targets"])
    if panel["type"] in {"timeseries", "state-timeline"}:
        assert panel["options"]["legend"]["showLegend"]


@pytest.mark.parametrize("panel", every_panel())
def test_a_panel_asks_for_metrics_that_are_exported(panel: dict[str, Any]) -> None:
    known = exported() | RECORDED | OTHERS
    for target in panel["targets"]:
        unknown = {name for name in metrics_of(target["expr"]) - known if not FOREIGN.fullmatch(name)}
        assert not unknown, target["expr"]


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_every_variable_is_used_and_every_used_one_is_there(board: dict[str, Any]) -> None:
    queries = [target["expr"] for panel in panels_of(board) for target in panel["targets"]]
    variables = board["templating"]["list"]
    used = set(re.findall(r"\$(?:\{)?([a-z_]\w*)", " ".join(queries))) - OF_GRAFANA
    assert used == {variable["name"] for variable in variables} - {"datasource"}
    assert variables[0]["name"] == "datasource"


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_have_ids_of_their_own_and_do_not_overlap(board: dict[str, Any]) -> None:
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_eight_dashboards_have_uids_of_their_own() -> None:
    assert [board["uid"] for board in BOARDS.values()] == [
        f"dbserve-{name}"
        for name in (
            *("overview", "job", "memory", "throughput"),
            *("learning", "reliability", "hardware", "control-plane"),
        )
    ]


def test_links_lead_to_dashboards_that_exist() -> None:
    leading = set(re.findall(r"/d/([\w-]+)", " ".join(built().values())))
    assert leading
    assert leading <= set(BOARDS)


def test_alerts_that_panels_speak_of_exist() -> None:
    alerts = {rule["alert"] for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
    spoken = {
        name for panel in every_panel() for name in re.findall(r"Dbserve[A-Z]\w+", panel.values[0]["description"])
    }
    assert spoken
    assert spoken <= alerts

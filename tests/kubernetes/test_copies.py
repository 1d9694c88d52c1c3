"""What the chart carries of other parts of the repository is theirs, unchanged."""

import gzip
import json
from typing import Any

import yaml

from tests.kubernetes.chart import CHART, ROOT, kinds, render, rendered

RULES = ROOT / "deploy/prometheus/rules/dbserve.yml"
DASHBOARDS = sorted((ROOT / "dashboards").glob("*.json"))


def rules(**monitoring: Any) -> list[dict[str, Any]]:
    objects = render({"monitoring": {"prometheusRule": True, **monitoring}})
    return kinds(objects, "PrometheusRule")[0]["spec"]["groups"]


def test_rules_are_those_of_prometheus_beside_dbserve_up() -> None:
    assert rules() == yaml.safe_load(RULES.read_text())["groups"]


def test_a_runbook_of_yours_changes_where_alerts_lead_and_nothing_else() -> None:
    found = rules(runbookUrl="https://docs.example.com/runbook.md")
    links = [rule["annotations"].pop("runbook_url") for group in found for rule in group["rules"] if "alert" in rule]
    wanted = yaml.safe_load(RULES.read_text())["groups"]
    before = [rule["annotations"].pop("runbook_url") for group in wanted for rule in group["rules"] if "alert" in rule]
    assert found == wanted
    assert links == [f"https://docs.example.com/runbook.md#{link.partition('#')[2]}" for link in before]
    assert len(links) > 10


def test_every_dashboard_is_there_under_the_sidecars_label() -> None:
    boards = [
        each
        for each in kinds(rendered("production"), "ConfigMap")
        if each["metadata"]["labels"].get("grafana_dashboard") == "1"
    ]
    carried = {name: json.loads(text) for each in boards for name, text in each["data"].items()}
    assert carried == {path.name: json.loads(path.read_text()) for path in DASHBOARDS}
    assert all(len(json.dumps(each)) < 900_000 for each in boards)  # of 1 MiB that a ConfigMap may have


def test_the_chart_fits_into_the_secret_that_helm_keeps_a_release_in() -> None:
    files = [path for path in CHART.rglob("*") if path.is_file()]
    assert len(gzip.compress(b"".join(path.read_bytes() for path in files))) < 300_000  # of 1 MiB, in base64 and twice

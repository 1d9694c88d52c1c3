"""The alert rules: tried by promtool, and each with its section in the runbook."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.promql import exported, metrics_of

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
TRIED = [
    case for path in TESTS for test in yaml.safe_load(path.read_text())["tests"] for case in test["promql_expr_test"]
]
RUNBOOK = ROOT / "docs/runbook.md"
GROUPS: list[dict[str, Any]] = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
RECORDED = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule
}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("DBSERVE_REQUIRE_SERVERS"),
    reason="promtool is not installed (apt install prometheus)",
)


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=PROMETHEUS)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_accepts_the_rules_and_both_configurations(tmp_path: Path) -> None:
    promtool("check", "config", "prometheus.yml")
    cluster = (PROMETHEUS / "cluster.yml").read_text()
    for secret in re.findall(r"/run/secrets/(\w+)", cluster):
        (tmp_path / secret).write_text("a-key")
    (tmp_path / "rules").symlink_to(PROMETHEUS / "rules")
    (tmp_path / "cluster.yml").write_text(cluster.replace("/run/secrets", str(tmp_path)))
    promtool("check", "config", tmp_path / "cluster.yml")


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_stay_silent_as_they_should(path: Path) -> None:
    promtool("test", "rules", path)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tried_firing_and_silent(alert: str) -> None:
    tried = [bool(case["exp_samples"]) for case in TRIED if f'alertname="{alert}"' in case["expr"]]
    assert set(tried) == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_is_wrong_how_bad_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{alert.lower()}"


def test_the_runbook_has_a_section_for_every_alert_and_no_other() -> None:
    text = RUNBOOK.read_text()
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    assert list(sections) == list(ALERTS)
    for alert, section in sections.items():
        assert section.startswith(f"*{ALERTS[alert]['labels']['severity']}.*"), alert
        assert "**Look at.**" in section, alert
        assert "**Do.**" in section, alert
    anchors = set(re.findall(r"\(#(\w+)\)", text))
    assert anchors <= {alert.lower() for alert in ALERTS}


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group["name"])
def test_rules_ask_for_metrics_that_are_exported_and_fit_a_kubernetes_rule(group: dict[str, Any]) -> None:
    """A PrometheusRule takes these fields alone, so that its spec can be this very file."""
    assert set(group) <= {"name", "interval", "rules"}
    for rule in group["rules"]:
        assert set(rule) <= {"record", "alert", "expr", "for", "labels", "annotations"}
        assert metrics_of(rule["expr"]) <= exported() | RECORDED | {"up"}

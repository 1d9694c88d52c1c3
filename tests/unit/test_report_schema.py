"""The published schema of a report, tried on a report of every family."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dbserve.contracts.report import Report
from tests.reports import every_family

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "report.schema.json").read_text())


def faults(report: dict[str, Any]) -> list[str]:
    return [error.json_path for error in Draft202012Validator(SCHEMA).iter_errors(report)]


def test_the_published_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("report", every_family(), ids=lambda report: report.quality.family)
def test_a_report_of_every_family_follows_the_published_schema(report: Report) -> None:
    assert faults(json.loads(report.model_dump_json())) == []


@pytest.mark.parametrize("report", every_family(), ids=lambda report: report.quality.family)
def test_a_report_of_every_family_is_read_back_as_it_was_written(report: Report) -> None:
    assert Report.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("report", every_family(), ids=lambda report: report.quality.family)
def test_a_report_of_an_unknown_family_or_without_one_breaks_the_schema(report: Report) -> None:
    told = json.loads(report.model_dump_json())
    assert faults({**told, "quality": {**told["quality"], "family": "astrology"}})
    assert faults({key: value for key, value in told.items() if key != "quality"})

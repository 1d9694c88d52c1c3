"""What the chart tells its processes alike, and what it tells one alone."""

from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from dbserve.api.serve import configured
from dbserve.settings import Settings
from tests.kubernetes.chart import Pod, chart, pods, render

PROXIES = "FORWARDED_ALLOW_IPS"


def variables(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of each process of ours, by component."""
    chart().validate_schema(values)
    return {pod.labels["app.kubernetes.io/component"]: _variables(pod) for pod in pods(render(values))}


def _variables(pod: Pod) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in pod.spec["containers"][0].get("env", ())}


@pytest.mark.parametrize(
    ("values", "allowed"),
    [
        ({}, None),
        ({"settings": {"data_allow": "s3://bucket/sets"}}, "s3://bucket/sets"),
        ({"data": {"existingClaim": "sets", "mountPath": "/sets"}}, "/sets"),
        ({"data": {"existingClaim": "sets"}, "settings": {"data_allow": "/data/public"}}, "/data/public"),
    ],
    ids=str,
)
def test_who_admits_data_and_who_opens_them_allow_the_same(values: dict[str, Any], allowed: str | None) -> None:
    found = variables({**values, "ray": {"workerGroups": {"gpu": {"enabled": True}}}})
    for component in ("api", "reconciler", "ray-worker"):
        assert found[component].get("DBSERVE_DATA_ALLOW") == allowed, component


def test_an_address_that_a_proxy_tells_is_believed_of_the_proxies_in_the_values_alone() -> None:
    found = variables({"api": {"forwardedAllowIps": ["10.42.0.0/16", "fd00::7"]}})
    assert {component for component, given in found.items() if PROXIES in given} == {"api"}
    served = served_with(found["api"])
    assert served.proxy_headers
    assert served.forwarded_allow_ips == "10.42.0.0/16,fd00::7"
    assert not served_with(variables({})["api"]).proxy_headers


def served_with(given: dict[str, Any]) -> uvicorn.Config:
    return configured(FastAPI(), Settings(), {PROXIES: given[PROXIES]} if PROXIES in given else {})

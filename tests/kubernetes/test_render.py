"""The chart through Helm's own engine, and what comes out of it held against Kubernetes' and the operators' schemas."""

import functools
import json
import re
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest

from tests.kubernetes.chart import (
    CHART,
    SWITCHES,
    VALUES_FILES,
    Object,
    copy_of,
    kinds,
    pods,
    render,
    rendered,
    texts,
    values_of,
)
from tests.kubernetes.crds import ABSENT, KUBERNETES, complaints, strict, validators
from tests.kubernetes.references import COMMANDS

# It reads two megabytes of definitions for every object; once is enough.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)

EVERY = [*VALUES_FILES, *SWITCHES]
every_way = pytest.mark.parametrize("name", EVERY)


@every_way
def test_helm_finds_nothing_to_say_against_it(name: str) -> None:
    linted = helm.lint(CHART, values_of(name), strict=True, kube_version="1.33.0")
    assert linted["errors"] == []
    # 1: information, of which there is one: it has no picture.
    assert [message["error"] for message in linted["messages"] if message["severity"] > 1] == []


@every_way
def test_kubernetes_knows_every_field(name: str) -> None:
    for each in rendered(name):
        if not _is_custom(each):
            for version in KUBERNETES:
                _validate(json.dumps(each), version)


@every_way
def test_the_operators_know_every_field_of_theirs(name: str) -> None:
    if not validators():
        pytest.skip(ABSENT)
    for each in rendered(name):
        if _is_custom(each):
            assert _complaints(json.dumps(each)) == []


def test_a_field_that_nobody_knows_is_found() -> None:
    [deployment, *_] = kinds(copy_of("defaults"), "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("RayCluster", {"autoscalerOption": {}}),
        ("RayCluster", {"authOptions": {"mode": "tokens"}}),
        ("RayCluster", {"rayVersion": 2.6}),
        ("PodMonitor", {"podMetricsEndpoints": [{"ports": "metrics"}]}),
        ("ServiceMonitor", {"endpoints": [{"interval": "often"}]}),
        ("PrometheusRule", {"groups": [{"name": "a", "rules": [{"expression": "1"}]}]}),
    ],
)
def test_a_field_that_no_operator_knows_is_found(kind: str, fault: dict[str, Any]) -> None:
    if not validators():
        pytest.skip(ABSENT)
    resource = kinds(copy_of("production"), kind)[0]
    assert complaints(resource) == []
    resource["spec"].update(fault)
    assert complaints(resource)


def test_a_schema_made_strict_keeps_what_is_open_by_intent() -> None:
    made = strict(
        {
            "type": "object",
            "properties": {
                "closed": {"type": "object", "properties": {"a": {"type": "string", "nullable": True}}},
                "open": {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
                "either": {"anyOf": [{"type": "integer"}], "x-kubernetes-int-or-string": True},
            },
        }
    )
    assert made["properties"]["closed"]["additionalProperties"] is False
    assert made["properties"]["closed"]["properties"]["a"]["type"] == ["string", "null"]
    assert "additionalProperties" not in made["properties"]["open"]
    assert made["properties"]["map"]["additionalProperties"] == {"type": "string"}
    assert made["properties"]["either"] == {"type": ["integer", "string"]}


@every_way
def test_no_object_is_rendered_twice(name: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in rendered(name)]
    assert len(set(names)) == len(names)


def test_a_long_release_name_leaves_names_that_kubernetes_takes() -> None:
    objects = render(values_of("production"), release="a-release-with-a-name-as-long-as-helm-lets-it-be-53ch")
    for each in objects:
        assert len(each["metadata"]["name"]) <= 52  # what controllers append to it has room
        assert all(len(value) <= 63 for value in each["metadata"].get("labels", {}).values())
    # KubeRay cuts longer names of clusters.
    assert len(kinds(objects, "RayCluster")[0]["metadata"]["name"]) <= 40
    assert len({(each["kind"], each["metadata"]["name"]) for each in objects}) == len(objects)


@every_way
def test_two_releases_in_one_namespace_share_no_object(name: str) -> None:
    ours = {(each["kind"], each["metadata"]["name"]) for each in rendered(name)}
    theirs = {(each["kind"], each["metadata"]["name"]) for each in render(values_of(name), release="second")}
    assert ours.isdisjoint(theirs)


def test_there_are_values_for_a_laptop_a_machine_with_gpus_a_spot_pool_and_a_shared_cluster() -> None:
    assert set(VALUES_FILES) == {"kind", "gpu-node", "spot-gpu", "production"}


def test_gpus_are_asked_for_where_the_values_say_so() -> None:
    for name, amount in (("gpu-node", "1"), ("spot-gpu", "1")):
        [group] = [pod for pod in pods(rendered(name)) if pod.where.endswith("/gpu")]
        assert group.spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == amount


@every_way
def test_notes_say_how_to_get_in(name: str) -> None:
    notes = texts(values_of(name))["NOTES.txt"]
    assert "get secret" in notes
    assert ("port-forward" in notes) != ("://dbserve.example.com" in notes)
    assert set(re.findall(r"^  dbserve ([a-z-]+)", notes, re.MULTILINE)) <= COMMANDS


def test_no_definition_of_an_operators_is_inside() -> None:
    assert not list(CHART.rglob("crds"))
    assert all(each["kind"] != "CustomResourceDefinition" for name in EVERY for each in rendered(name))


@functools.cache  # most objects are the same in most ways
def _validate(text: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(text), version, strict=True)


@functools.cache
def _complaints(text: str) -> list[str]:
    return complaints(json.loads(text))


def _is_custom(each: Object) -> bool:
    return each["apiVersion"].partition("/")[0] in {"ray.io", "monitoring.coreos.com"}

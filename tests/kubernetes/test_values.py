"""values.yaml and its schema: every key does something, and nothing else is taken."""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import helm_python as helm
import pytest
import yaml

from dbserve.settings import Settings
from tests.kubernetes.chart import (
    CHART,
    EXTERNAL_REDIS,
    SWITCHES,
    VALUES_FILES,
    chart,
    kinds,
    pods,
    render,
    schema,
    texts,
    values_of,
)

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
Path = tuple[str, ...]
# Set by the chart itself: where things are in its pods, and what is secret.
NOT_SETTINGS = {
    *("redis_url", "redis_username", "redis_password", "redis_ca_file", "redis_cert_file", "redis_key_file"),
    *("ray_address", "ray_auth_token_path", "artifacts", "cache_dir", "host", "port", "api_key", "scrape_key"),
    *("alive_file", "autoscaling"),
}

# Values that show what a key does: with everything switched on, and with what excludes some of it.
ALL_ON: dict[str, Any] = {
    "keys": {"existingSecret": ""},
    "api": {"ingress": {"enabled": True, "className": "nginx", "tlsSecret": "cert"}},
    "artifacts": {"pvc": {"storageClassName": "fast"}},
    "data": {"existingClaim": "sets"},
    "redis": {
        "persistence": {"storageClassName": "fast"},
        "tls": {"enabled": True, "existingSecret": "tls"},
        "exporter": {"enabled": True},
    },
    "ray": {"workerGroups": {"gpu": {"enabled": True}}},
    "kueue": {"queueName": "team"},
    "monitoring": {
        "serviceMonitor": True,
        "podMonitor": True,
        "prometheusRule": True,
        "dashboards": {"enabled": True},
    },
    "networkPolicy": {"apiFrom": [{"a": "b"}], "podIdentity": {"cidrs": ["169.254.170.23/32"]}},
}
BASES: list[dict[str, Any]] = [
    ALL_ON,
    {"api": {"autoscaling": {"enabled": True}}, "artifacts": {"kind": "object", "object": {"uri": "s3://a/b"}}},
    {"redis": EXTERNAL_REDIS, "artifacts": {"pvc": {"existingClaim": "there"}}},
]
# Another value than the default, where any other of its type will not do.
OTHERS: dict[str, Any] = {
    "settings.log_level": "debug",
    "settings.log_format": "console",
    "settings.cors_origins": "https://a.example",
    "settings.data_allow": "s3://",
    "settings.otlp_endpoint": "http://collector:4318",
    "settings.webhook_private_hosts": True,
    "image.digest": "sha256:" + "0" * 64,
    "ray.image.digest": "sha256:" + "0" * 64,
    "redis.image.digest": "sha256:" + "0" * 64,
    "redis.exporter.image.digest": "sha256:" + "0" * 64,
    "artifacts.kind": "object",
    "artifacts.object.uri": "s3://other/place",
    "artifacts.pvc.accessModes": ["ReadWriteOnce"],
    "api.service.type": "NodePort",
    "redis.maxmemory": "2gb",
    "redis.external.url": "redis://other:6379/0",
    "redis.external.cidrs": ["198.51.100.0/24"],
    "ray.version": "2.60.1",
    "ray.autoscaling.upscalingMode": "Aggressive",
    "monitoring.interval": "30s",
    "monitoring.runbookUrl": "https://a.example/runbook.md",
    "data.mountPath": "/sets",
    "api.forwardedAllowIps": ["10.0.0.0/8", "::1"],
    "networkPolicy.apiFrom": [{"team": "a"}],
    "networkPolicy.apiFromCidrs": ["198.51.100.0/24"],
    "networkPolicy.dns.namespaces": ["openshift-dns"],
    "networkPolicy.dns.cidrs": ["169.254.20.10/32"],
    "networkPolicy.podIdentity.cidrs": ["169.254.169.254/32"],
    "networkPolicy.internet.cidr": "198.51.100.0/24",
    "networkPolicy.internet.except": [],
    "networkPolicy.kubernetesApi.cidrs": ["192.0.2.1/32"],
    "networkPolicy.extraEgress": [{"ports": [{"port": 4318}]}],
    "ray.workerGroups.cpu.topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "imagePullSecrets": [{"name": "pull"}],
}


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every key that holds something else than keys; an empty mapping is one."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    else:
        yield path


def at(values: Any, path: Path) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def with_(values: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    inner = changed
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = value
    return changed


def other(path: Path, value: Any) -> Any:
    """A value that differs from `value` and that the schema takes."""
    name, kind = ".".join(path), path[-1]
    if name in OTHERS:
        return OTHERS[name]
    if kind == "pullPolicy":
        return "Always"
    if kind == "tolerations":
        return [{"key": "another", "operator": "Exists"}]
    if kind == "affinity":
        return {"nodeAffinity": {}}
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case None:
            return 7
        case {}:
            return {"another": "one"}
        case str() if kind in {"size", "memory", "cpu", "cache", "sharedMemory"} or "/" in kind:
            return "3"
        case str():
            return f"{value}another"
        case list() if value and isinstance(value[0], int):
            return [*value, 8443]
        case _:
            raise AssertionError(f"{name}: what else could it be than {value!r}?")


def outcome(values: dict[str, Any]) -> dict[str, str] | str:
    """What is rendered, but for passwords that are drawn anew; or that Helm refuses."""
    try:
        rendered = texts(values)
    except helm.HelmError as refused:
        return str(refused)
    rendered["secrets.yaml"] = "\n".join(
        line.partition(":")[0] if "password" in line or "-key:" in line or "auth_token" in line else line
        for line in rendered.get("secrets.yaml", "").splitlines()
        if "#" not in line
    )
    return rendered


@pytest.mark.parametrize("path", list(leaves(VALUES)), ids=".".join)
def test_every_value_does_something(path: Path) -> None:
    changed = other(path, at(VALUES, path))
    for base in BASES:
        given = at(base, path)
        value = changed if given is None else other(path, given)
        chart().validate_schema(with_(base, path, value))
        if outcome(base) != outcome(with_(base, path, value)):
            return
    pytest.fail(f"{'.'.join(path)} changes nothing")


def closed(value: Any, rules: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    """Every mapping in values.yaml whose keys the schema knows."""
    if "$ref" in rules:
        rules = schema()["$defs"][rules["$ref"].rpartition("/")[2]]
    if not isinstance(value, dict) or rules.get("type") != "object":
        return
    if rules.get("additionalProperties") is False:
        yield path
    for key, each in value.items():
        inner = rules.get("properties", {}).get(key, rules.get("additionalProperties"))
        if isinstance(inner, dict):
            yield from closed(each, inner, (*path, key))


CLOSED = list(closed(VALUES, schema()))


@pytest.mark.parametrize("path", CLOSED, ids=lambda path: ".".join(path) or "the whole")
def test_a_misspelt_key_is_refused(path: Path) -> None:
    with pytest.raises(helm.HelmValuesError, match="misspelt"):
        chart().validate_schema(with_({}, (*path, "misspelt"), "x"))


def test_all_keys_are_known_to_the_schema_but_those_of_maps_that_are_yours() -> None:
    free = {"annotations", "podAnnotations", "labels", "nodeSelector", "affinity"}
    mappings = {
        path
        for leaf in leaves(VALUES)
        for path in (leaf[:end] for end in range(len(leaf)))
        if path[-1:] != ("workerGroups",)
    }
    assert mappings <= set(CLOSED)
    unknown = [
        leaf for leaf in leaves(VALUES) if at(VALUES, leaf) == {} and leaf not in CLOSED and leaf[-1] not in free
    ]
    assert unknown == []


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"tag": "latest"}},
        {"api": {"replicas": "2"}},
        {"ray": {"workerGroups": {"gpu": {"maxReplica": 3}}}},
        {"ray": {"workerGroups": {"more": {"enabled": True}}}},
        {"ray": {"workerGroups": {"A Group": {"enabled": True}}}},
        {"artifacts": {"object": {"uri": "s3://key:secret@bucket/prefix"}}},
        {"redis": {"external": {"url": "redis://:password@redis:6379/0"}}},
        {"redis": {"resources": {"limits": {"memory": "lots"}}}},
        {"settings": {"log_level": "loud"}},
        {"networkPolicy": {"internet": {"except": ["everywhere"]}}},
        {"networkPolicy": {"internet": {"cidr": "::ffff:10.0.0.0/104"}}},
        {"networkPolicy": {"internet": {"ports": []}}},  # which would be all
        {"networkPolicy": {"dns": {"cidrs": ["169.254.20.10"]}}},
        {"networkPolicy": {"dns": {"namespaces": [""]}}},
        {"api": {"forwardedAllowIps": ["*"]}},
        {"api": {"forwardedAllowIps": ["proxy.example.com"]}},
        {"keys": {"existingSecret": "Not A Name"}},
        {"fullnameOverride": "My App"},
        {"image": {"tag": "a: b"}},
        {"api": {"priorityClassName": "a: b"}},
        {"api": {"ingress": {"host": "https://example.com"}}},
        {"networkPolicy": {"internet": {"cidr": "300.1.1.1/8"}}},
        {"networkPolicy": {"internet": {"cidr": "10.0.0.0/33"}}},
    ],
    ids=str,
)
def test_a_value_that_cannot_be_meant_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmValuesError):
        chart().validate_schema(values)


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({"redis": {"enabled": False, "existingSecret": "a"}}, "redis.external.url"),
        ({"redis": {"enabled": False, "external": EXTERNAL_REDIS["external"]}}, "redis.existingSecret"),
        (
            {"redis": {"enabled": False, "existingSecret": "a", "external": {"url": "redis://a:6379/0"}}},
            "redis.external.cidrs",
        ),
        ({"redis": {"tls": {"enabled": True}}}, "redis.tls.existingSecret"),
        ({"artifacts": {"kind": "object"}}, "artifacts.object.uri"),
        ({"networkPolicy": {"dns": {"namespaces": []}}}, "networkPolicy.dns"),
        ({"api": {"service": {"type": "LoadBalancer"}}}, "networkPolicy.apiFromCidrs"),
        ({"ray": {"drainSeconds": 120}}, "ray.terminationSeconds"),
        ({"ray": {"workerGroups": {"cpu": {"minReplicas": 5}}}}, "ray.workerGroups.cpu: minReplicas"),
        ({"ray": {"workerGroups": {"cpu": {"enabled": False}}}}, "ray.workerGroups needs a group"),
    ],
    ids=str,
)
def test_what_is_needed_and_missing_is_asked_for(values: dict[str, Any], needed: str) -> None:
    with pytest.raises(helm.HelmRenderError, match=re.escape(needed)):
        texts(values)


def test_what_yaml_could_take_for_something_else_is_rendered_as_meant() -> None:
    """Helm's numbers are floats where they come by --reuse-values or a file: a million as 1e+06 is no whole number."""
    values = {
        "settings": {"rate_limit": 20_000_000.0, "max_jobs_per_key": 5},
        "api": {"ingress": {"enabled": True, "host": "*.example.com", "tlsSecret": "cert"}},
        "monitoring": {"dashboards": {"enabled": True, "folder": "Team: ML"}},
    }
    objects = render(values)
    [api] = [pod for pod in pods(objects) if pod.where == "Deployment/dbserve-api"]
    variables = {each["name"]: each.get("value") for each in next(api.containers()).spec["env"]}
    assert (variables["DBSERVE_RATE_LIMIT"], variables["DBSERVE_MAX_JOBS_PER_KEY"]) == ("20000000", "5")
    [ingress] = kinds(objects, "Ingress")
    assert ingress["spec"]["rules"][0]["host"] == ingress["spec"]["tls"][0]["hosts"][0] == "*.example.com"
    folders = {each["metadata"].get("annotations", {}).get("grafana_folder") for each in kinds(objects, "ConfigMap")}
    assert "Team: ML" in folders


def test_redis_restarts_for_what_it_reads_at_its_start_alone() -> None:
    def notes(values: dict[str, Any]) -> dict[str, str]:
        [redis] = kinds(render(values), "StatefulSet")
        return redis["spec"]["template"]["metadata"]["annotations"]

    [redis] = kinds(render({}), "StatefulSet")
    assert redis["spec"]["template"]["metadata"]["labels"] == redis["spec"]["selector"]["matchLabels"], "no version's"
    assert notes({}) == notes({"api": {"replicas": 5}})
    assert notes({}) != notes({"redis": {"maxmemory": "2gb"}})


def test_settings_are_those_of_dbserve_but_for_what_the_chart_sets() -> None:
    assert set(schema()["properties"]["settings"]["properties"]) == set(Settings.model_fields) - NOT_SETTINGS
    assert set(VALUES["settings"]) == set(schema()["properties"]["settings"]["properties"])


@pytest.mark.parametrize("name", [*VALUES_FILES, *SWITCHES])
def test_what_helm_takes_as_values_is_what_the_schema_takes(name: str) -> None:
    chart().validate_schema(values_of(name))
    json.dumps(chart().merge_values(values_of(name)))

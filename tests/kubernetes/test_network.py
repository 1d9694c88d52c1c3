"""Who reaches whom in a cluster that keeps the chart's policies."""

import pytest

from tests.kubernetes.chart import SWITCHES, VALUES_FILES, copy_of, kinds, rendered
from tests.kubernetes.network import End, ends, outside, reaches, stranger, unguarded

GUARDED = [name for name in [*VALUES_FILES, *SWITCHES] if kinds(rendered(name), "NetworkPolicy")]
guarded = pytest.mark.parametrize("name", GUARDED)
with_redis = pytest.mark.parametrize("name", [name for name in GUARDED if "redis" in ends(rendered(name))])
METADATA = ["169.254.169.254", "169.254.170.2", "169.254.1.1"]
API, REDIS, GCS, DASHBOARD, RAYLET, METRICS = 8000, 6379, 6379, 8265, 34567, 8080


def test_only_switched_off_policies_are_missing() -> None:
    assert set(SWITCHES) - set(GUARDED) == {"no network policies"}


@guarded
def test_every_pod_is_closed_in_both_directions(name: str) -> None:
    assert list(unguarded(rendered(name))) == []


@with_redis
def test_redis_is_reached_by_its_peers_alone(name: str) -> None:
    objects = rendered(name)
    found = ends(objects)
    for component, end in found.items():
        allowed = component in {"api", "reconciler", "ray-head", "ray-worker"}
        assert reaches(objects, end, found["redis"], REDIS) is allowed, component
    for namespace in ("elsewhere", "monitoring", "training", "kube-system"):
        assert not reaches(objects, stranger(namespace), found["redis"], REDIS)


@guarded
@pytest.mark.parametrize("component", ["ray-head", "ray-worker", "reconciler"])
def test_ray_is_reached_by_its_peers_alone(name: str, component: str) -> None:
    objects = rendered(name)
    found = ends(objects)
    for port in (GCS, DASHBOARD, RAYLET, 52365, 10001):
        for peer in ("ray-head", "ray-worker", "reconciler"):
            assert reaches(objects, found[peer], found[component], port), (peer, port)
        for other in {"api", "redis"} & found.keys():
            assert not reaches(objects, found[other], found[component], port), (other, port)
        for namespace in ("elsewhere", "monitoring", "training"):
            assert not reaches(objects, stranger(namespace), found[component], port), (namespace, port)


@guarded
def test_prometheus_reaches_exporters_and_nothing_else_of_ray(name: str) -> None:
    objects = rendered(name)
    found = ends(objects)
    prometheus = stranger("monitoring")
    assert reaches(objects, prometheus, found["api"], API)
    for component in ("ray-head", "ray-worker", "reconciler"):
        assert reaches(objects, prometheus, found[component], METRICS)
    assert reaches(objects, prometheus, found["ray-head"], 44217)
    if "redis-metrics" in (found.get("redis", End()).ports or {}):
        assert reaches(objects, prometheus, found["redis"], 9121)


@guarded
def test_nobody_reaches_the_metadata_of_a_cloud(name: str) -> None:
    objects = rendered(name)
    for component, end in ends(objects).items():
        for address in METADATA:
            for port in (80, 443, 6443):
                assert not reaches(objects, end, outside(address), port), (component, address, port)


@guarded
def test_only_who_needs_it_gets_out(name: str) -> None:
    objects = rendered(name)
    found = ends(objects)
    opened = name != "a narrow network"
    for component in ("api", "reconciler", "ray-worker"):
        assert reaches(objects, found[component], outside("198.51.100.7"), 443) is opened
        assert not reaches(objects, found[component], outside("198.51.100.7"), 80)
        assert not reaches(objects, found[component], outside("10.0.0.7"), 443)
    assert "redis" not in found or not reaches(objects, found["redis"], outside("198.51.100.7"), 443)


@guarded
def test_the_autoscaler_alone_reaches_the_api_of_kubernetes(name: str) -> None:
    objects = rendered(name)
    found = ends(objects)
    autoscaled = kinds(objects, "RayCluster")[0]["spec"]["enableInTreeAutoscaling"]
    kubernetes = outside("192.0.2.10")
    assert reaches(objects, found["ray-head"], kubernetes, 6443) is autoscaled
    assert not any(
        reaches(objects, end, kubernetes, 6443) for component, end in found.items() if component != "ray-head"
    )


def test_a_narrow_network_lets_the_ingress_in_and_no_other() -> None:
    objects = rendered("a narrow network")
    api = ends(objects)["api"]
    assert reaches(objects, stranger("ingress-nginx"), api, API)
    assert not reaches(objects, stranger("elsewhere"), api, API)
    assert not reaches(objects, ends(objects)["ray-head"], outside("192.0.2.11"), 6443)


def test_a_redis_elsewhere_is_reached_on_its_own_port() -> None:
    objects = rendered("external Redis")
    worker = ends(objects)["ray-worker"]
    assert reaches(objects, worker, outside("192.0.2.7"), 6380)
    assert not reaches(objects, worker, outside("192.0.2.7"), 6379)
    objects = rendered("external Redis by TLS")
    assert reaches(objects, ends(objects)["api"], outside("192.0.2.1"), 6379)


def test_a_door_left_open_is_noticed() -> None:
    objects = copy_of("defaults")
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in kinds(objects, "NetworkPolicy")}
    found = ends(objects)
    policies["dbserve-redis"]["ingress"][0]["from"].append({"namespaceSelector": {}})
    policies["dbserve-ray"]["ingress"][0].pop("from")
    policies["dbserve-ray-worker"]["egress"][-1]["to"][0]["ipBlock"]["except"].remove("169.254.0.0/16")
    assert reaches(objects, stranger(), found["redis"], REDIS)
    assert reaches(objects, stranger(), found["ray-head"], DASHBOARD)
    assert reaches(objects, found["ray-worker"], outside(METADATA[0]), 443)


@pytest.mark.parametrize("component", ["api", "redis"])
def test_a_pod_that_no_policy_closes_is_noticed(component: str) -> None:
    objects = rendered("defaults")
    left = [
        each
        for each in objects
        if each["metadata"]["name"] != f"dbserve-{component}" or each["kind"] != "NetworkPolicy"
    ]
    assert list(unguarded(left)) == []  # the one that denies everything is there still
    left = [each for each in left if each["metadata"]["name"] != "dbserve-deny"]
    assert len(list(unguarded(left))) == 2


def test_without_policies_everything_is_open() -> None:
    objects = rendered("no network policies")
    assert reaches(objects, stranger(), ends(objects)["redis"], REDIS)
    assert reaches(objects, ends(objects)["api"], outside(METADATA[0]), 80)

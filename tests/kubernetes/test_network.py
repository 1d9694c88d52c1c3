"""Who reaches whom in a cluster that keeps the chart's policies."""

from typing import Any

import helm_python as helm
import pytest

from dbserve.webhooks import addresses
from tests.kubernetes.chart import SWITCHES, VALUES_FILES, Object, chart, copy_of, kinds, render, rendered
from tests.kubernetes.network import End, ends, misshapen, outside, reaches, stranger, unguarded

GUARDED = [name for name in [*VALUES_FILES, *SWITCHES] if kinds(rendered(name), "NetworkPolicy")]
guarded = pytest.mark.parametrize("name", GUARDED)
with_redis = pytest.mark.parametrize("name", [name for name in GUARDED if "redis" in ends(rendered(name))])
LINK_LOCAL = ["169.254.169.254", "169.254.170.2", "169.254.1.1", "fe80::1"]
METADATA = [*LINK_LOCAL, "fd00:ec2::254", "fd00:ec2::23", *(str(network[0]) for network in addresses.METADATA)]
OURS = ("api", "reconciler", "ray-head", "ray-worker")
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


def networked(**values: Any) -> list[Object]:
    """With these values of networkPolicy, which the schema takes."""
    chart().validate_schema({"networkPolicy": values})
    return render({"networkPolicy": values})


def asks(objects: list[Object], component: str, target: End, port: int = 53) -> bool:
    """For names, which is done by UDP, and by TCP where an answer is long."""
    found = {reaches(objects, ends(objects)[component], target, port, protocol) for protocol in ("UDP", "TCP")}
    assert len(found) == 1
    return found.pop()


@guarded
def test_names_are_asked_for_in_the_namespace_of_kubernetes_and_nowhere_else(name: str) -> None:
    objects = rendered(name)
    for component in OURS:
        assert asks(objects, component, stranger("kube-system")), component
        assert not asks(objects, component, stranger("elsewhere")), component
        assert not asks(objects, component, outside("169.254.20.10")), component


def test_names_are_asked_for_where_the_values_say() -> None:
    objects = networked(dns={"namespaces": ["openshift-dns"], "ports": [53, 5353]})
    for component in OURS:
        assert asks(objects, component, stranger("openshift-dns"), 5353), component
        assert not asks(objects, component, stranger("kube-system")), component
    objects = networked(dns={"cidrs": ["169.254.20.10/32", "fd00::a/128"]})
    for component in OURS:
        for cache in (outside("169.254.20.10"), outside("fd00::a"), stranger("kube-system")):
            assert asks(objects, component, cache), component
        assert not asks(objects, component, outside("169.254.20.11")), component
        assert not reaches(objects, ends(objects)[component], outside("169.254.20.10"), 80), component


def test_a_further_rule_is_of_all_that_run_our_code() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"port": 4318, "protocol": "TCP"}]}
    for objects in (networked(extraEgress=[rule]), networked(extraEgress=[rule], internet={"enabled": False})):
        given = {name for name, end in ends(objects).items() if reaches(objects, end, outside("10.1.0.7"), 4318)}
        assert given == set(OURS)


def test_the_pods_own_identity_is_asked_for_where_the_values_say_and_the_machines_is_not() -> None:
    objects = networked(podIdentity={"cidrs": ["169.254.170.23/32", "fd00:ec2::23/128"]})
    for address, askers in {
        "169.254.170.23": {"api", "reconciler", "ray-worker"},
        "fd00:ec2::23": {"api", "reconciler", "ray-worker"},
        "169.254.169.254": set(),
        "fd00:ec2::254": set(),
    }.items():
        assert {name for name, end in ends(objects).items() if reaches(objects, end, outside(address), 80)} == askers


@guarded
def test_no_block_is_one_that_kubernetes_refuses(name: str) -> None:
    assert list(misshapen(rendered(name))) == []


@pytest.mark.parametrize(
    ("cidr", "open_to", "closed_to"),
    [
        ("::/0", ["2001:db8::7"], [*METADATA, "198.51.100.7", "fd12::7"]),
        ("198.51.100.0/24", ["198.51.100.7"], [*METADATA, "2001:db8::7"]),
        ("169.0.0.0/8", ["169.1.1.1"], METADATA),
        ("2001:DB8::/32", ["2001:db8::7"], METADATA),
        ("128.0.0.0/1", ["198.51.100.7"], [*METADATA, "172.20.1.1", "192.168.1.1"]),
        ("1:2:3:4:5:6:7:8/127", ["1:2:3:4:5:6:7:9"], METADATA),
        ("fc00::/6", ["ff00::7"], [*METADATA, "fd12::7"]),
    ],
)
def test_of_a_block_of_yours_is_left_out_what_is_in_it(cidr: str, open_to: list[str], closed_to: list[str]) -> None:
    objects = networked(internet={"cidr": cidr})
    assert list(misshapen(objects)) == []
    worker = ends(objects)["ray-worker"]
    assert [address for address in open_to if not reaches(objects, worker, outside(address), 443)] == []
    assert [address for address in closed_to if reaches(objects, worker, outside(address), 443)] == []


@pytest.mark.parametrize(
    "cidr", ["169.254.169.254/32", "169.254.0.0/16", "10.1.0.0/16", "fe80::/64", "fd00:ec2::254/128"]
)
def test_a_block_of_which_nothing_is_left_is_refused_and_not_opened(cidr: str) -> None:
    with pytest.raises(helm.HelmRenderError, match=f"networkPolicy.internet.cidr is {cidr}"):
        networked(internet={"cidr": cidr})


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "::/0"])
def test_nothing_that_is_said_of_the_internet_opens_where_clouds_give_credentials_away(cidr: str) -> None:
    objects = networked(internet={"cidr": cidr, "except": [], "ports": [80, 443]})
    assert list(misshapen(objects)) == []
    for component in ("api", "reconciler", "ray-worker"):
        end = ends(objects)[component]
        assert [each for each in METADATA for port in (80, 443) if reaches(objects, end, outside(each), port)] == []


def test_who_comes_from_outside_reaches_the_api_alone_and_from_where_the_values_say() -> None:
    assert not reaches(rendered("defaults"), outside("203.0.113.9"), ends(rendered("defaults"))["api"], API)
    objects = rendered("load balancer")
    found = ends(objects)
    assert reaches(objects, outside("203.0.113.9"), found["api"], API)
    assert not reaches(objects, outside("198.51.100.9"), found["api"], API)
    assert not reaches(objects, stranger(), found["api"], API)
    assert not any(reaches(objects, outside("203.0.113.9"), found[end], REDIS) for end in ("redis", "ray-head"))


def test_a_private_block_is_open_once_it_is_no_exception() -> None:
    objects = networked(internet={"cidr": "10.1.0.0/16", "except": ["10.1.2.0/24"]})
    api = ends(objects)["api"]
    assert reaches(objects, api, outside("10.1.1.1"), 443)
    assert not reaches(objects, api, outside("10.1.2.1"), 443)


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
    policies["dbserve-api"]["egress"][-1]["to"][0]["ipBlock"]["except"].append("fe80::/10")
    assert reaches(objects, stranger(), found["redis"], REDIS)
    assert reaches(objects, stranger(), found["ray-head"], DASHBOARD)
    assert reaches(objects, found["ray-worker"], outside(METADATA[0]), 443)
    assert list(misshapen(objects)) == ["dbserve-api: fe80::/10 of 0.0.0.0/0"]


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

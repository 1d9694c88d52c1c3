"""The chart as Helm's engine renders it: objects, and the pods that would come of them."""

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/dbserve"
RELEASE, NAMESPACE = "dbserve", "training"
VALUES_FILES = {path.stem.removeprefix("values-"): path for path in sorted(CHART.glob("values-*.yaml"))}

EXTERNAL_REDIS = {
    "enabled": False,
    "existingSecret": "my-redis",
    "external": {"url": "redis://redis.example.com:6380/3", "cidrs": ["192.0.2.0/24"]},
}
MONITORED = {
    "serviceMonitor": True,
    "podMonitor": True,
    "prometheusRule": True,
    "labels": {"release": "prometheus"},
    "dashboards": {"enabled": True},
}
EXPORTER = {"exporter": {"enabled": True}}
TLS = {"tls": {"enabled": True, "existingSecret": "my-tls"}}
OBJECT_STORAGE = {"kind": "object", "object": {"uri": "s3://bucket/prefix", "existingSecret": "my-storage"}}
SWITCHES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "external Redis": {"redis": EXTERNAL_REDIS},
    "external Redis by TLS": {
        "redis": {
            **EXTERNAL_REDIS,
            **TLS,
            "external": {"url": "rediss://redis.example.com/0", "cidrs": ["192.0.2.1/32"]},
        }
    },
    "TLS to Redis": {"redis": {**TLS, **EXPORTER}, "monitoring": MONITORED},
    "Redis without a disk": {"redis": {"persistence": {"enabled": False}}},
    "monitoring": {"monitoring": MONITORED, "redis": EXPORTER},
    "object storage": {"artifacts": OBJECT_STORAGE},
    "object storage by the pods' identity": {"artifacts": {**OBJECT_STORAGE, "object": {"uri": "gs://bucket/prefix"}}},
    "a claim that is there": {
        "artifacts": {"pvc": {"existingClaim": "my-artifacts"}},
        "data": {"existingClaim": "my-data"},
    },
    "Kueue": {"kueue": {"queueName": "team-a", "priorityClass": "low"}},
    "no autoscaler": {"ray": {"autoscaling": {"enabled": False}}},
    "Kueue without autoscaler": {"ray": {"autoscaling": {"enabled": False}}, "kueue": {"queueName": "team-a"}},
    "no fault tolerance of the GCS": {"ray": {"gcsFaultTolerance": False}, "redis": TLS},
    "ingress": {"api": {"ingress": {"enabled": True, "className": "nginx"}}},
    "ingress with TLS": {
        "api": {"ingress": {"enabled": True, "tlsSecret": "my-cert"}, "autoscaling": {"enabled": True}}
    },
    "load balancer": {
        "api": {"service": {"type": "LoadBalancer"}},
        "networkPolicy": {"apiFromCidrs": ["203.0.113.0/24"]},
    },
    "no network policies": {"networkPolicy": {"enabled": False}},
    "a narrow network": {
        "networkPolicy": {
            "apiFrom": [{"kubernetes.io/metadata.name": "ingress-nginx"}],
            "internet": {"enabled": False},
            "kubernetesApi": {"cidrs": ["192.0.2.10/32"], "ports": [6443]},
        }
    },
    "secrets from elsewhere": {
        "keys": {"existingSecret": "my-keys"},
        "redis": {"existingSecret": "my-redis"},
        "ray": {"token": {"existingSecret": "my-token"}},
    },
    "places": {
        part: {
            "nodeSelector": {"pool": "a"},
            "tolerations": [{"key": "a", "operator": "Exists"}],
            "priorityClassName": "high",
            "affinity": {"nodeAffinity": {}},
        }
        for part in ("api", "reconciler", "redis")
    },
}

ENGINE = helm.helm_sdk_version().removeprefix("v")

Object = dict[str, Any]


@functools.cache
def chart() -> helm.Chart:
    return helm.Chart.load(CHART)


def values_of(name: str) -> dict[str, Any]:
    """Of a values file, or of a set of switches."""
    if name in VALUES_FILES:
        return yaml.safe_load(VALUES_FILES[name].read_text())
    return SWITCHES[name]


def texts(values: Mapping[str, Any], release: str = RELEASE) -> dict[str, str]:
    """Of each template, by its name within the chart."""
    found = chart().render(dict(values), name=release, namespace=NAMESPACE, is_install=True)
    return {name.removeprefix("dbserve/templates/"): text for name, text in found.items()}


def render(values: Mapping[str, Any], release: str = RELEASE) -> list[Object]:
    """Every object, as a new copy."""
    return [
        document
        for name, text in texts(values, release).items()
        if name.endswith(".yaml")
        for document in yaml.load_all(text, yaml.CSafeLoader)
        if document
    ]


_looked_at: dict[str, list[Object]] = {}


def rendered(name: str) -> list[Object]:
    """Of a values file or a set of switches. Shared: whoever changes an object takes copy_of()."""
    if name not in _looked_at:
        _looked_at[name] = render(values_of(name))
    return _looked_at[name]


def copy_of(name: str) -> list[Object]:
    """As rendered(), and may be changed."""
    return copy.deepcopy(rendered(name))


def looked_at() -> list[str]:
    """What has been rendered by name so far."""
    return list(_looked_at)


@dataclass(frozen=True)
class Container:
    """One of a pod's, init containers included."""

    where: str
    spec: Object
    sidecar: bool = False
    of_operator: bool = False  # KubeRay makes the autoscaler's; the chart says some of it

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.spec.get("ports", ())}


@dataclass(frozen=True)
class Pod:
    """A template of pods."""

    where: str
    owner: Object
    labels: dict[str, str]
    spec: Object

    def containers(self) -> Iterator[Container]:
        for spec in self.spec.get("initContainers", ()):
            yield Container(f"{self.where}/{spec['name']}", spec, sidecar=True)
        for spec in self.spec["containers"]:
            yield Container(f"{self.where}/{spec['name']}", spec)
        options = self.owner["spec"].get("autoscalerOptions")
        if options is not None and self.labels["ray.io/node-type"] == "head":
            image = self.spec["containers"][0]["image"]
            yield Container(f"{self.where}/autoscaler", {"image": image, **options}, of_operator=True)

    @property
    def ports(self) -> dict[str, int]:
        return {name: port for container in self.containers() for name, port in container.ports.items()}


def pods(objects: list[Object]) -> list[Pod]:
    """Of every workload; those of a RayCluster with the labels that KubeRay adds."""
    found: list[Pod] = []
    for owner in objects:
        name = f"{owner['kind']}/{owner['metadata']['name']}"
        if owner["kind"] in {"Deployment", "StatefulSet"}:
            template = owner["spec"]["template"]
            found.append(Pod(name, owner, template["metadata"]["labels"], template["spec"]))
        if owner["kind"] == "RayCluster":
            groups = [("head", "headgroup", owner["spec"]["headGroupSpec"])]
            groups += [("worker", group["groupName"], group) for group in owner["spec"]["workerGroupSpecs"]]
            for kind, group_name, group in groups:
                template = group["template"]
                added = {
                    "ray.io/cluster": owner["metadata"]["name"],
                    "ray.io/node-type": kind,
                    "ray.io/group": group_name,
                }
                labels = template["metadata"]["labels"] | added
                found.append(Pod(f"{name}/{group_name}", owner, labels, template["spec"]))
    return found


def kinds(objects: list[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """A LabelSelector, or a Service's plain one. The empty one selects everything."""
    if not selector.keys() <= {"matchLabels", "matchExpressions"}:
        selector = {"matchLabels": selector}
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return True


def schema() -> dict[str, Any]:
    return json.loads((CHART / "values.schema.json").read_text())

"""What refers to what: every name that an object of the chart says is another's, a port's, or documented as yours."""

from collections.abc import Iterator, Mapping
from typing import Any

import typer.main

from dbserve.cli import cli
from tests.kubernetes.chart import Container, Object, Pod, kinds, pods, selects

COMMANDS = set(typer.main.get_command(cli).commands)  # type: ignore[attr-defined]
# A certificate authority that Kubernetes puts into every namespace; the claims of a StatefulSet are made for it.
GIVEN = {("ConfigMap", "kube-root-ca.crt")}


def workloads_own_their_pods(objects: list[Object]) -> Iterator[str]:
    every = pods(objects)
    for pod in every:
        selector = pod.owner["spec"].get("selector")
        if selector is not None:
            found = [other.where for other in every if selects(selector, other.labels)]
            if found != [pod.where]:
                yield f"{pod.where} selects {found}"


def selectors_meet_pods(objects: list[Object]) -> Iterator[str]:
    """Those of Services, budgets, monitors and policies; and only of one component, but for what is said."""
    every = pods(objects)
    for each in objects:
        selector = _selector(each)
        if selector is None:
            continue
        where = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "ServiceMonitor":
            found = [
                service for service in kinds(objects, "Service") if selects(selector, service["metadata"]["labels"])
            ]
            if len(found) != 1:
                yield f"{where} selects {len(found)} Services"
            continue
        met = {pod.labels["app.kubernetes.io/component"] for pod in every if selects(selector, pod.labels)}
        if not met:
            yield f"{where} selects no pod"
        if each["kind"] in {"Service", "PodDisruptionBudget"} and len(met) > 1:
            yield f"{where} selects pods of {sorted(met)}"


def ports_are_there(objects: list[Object]) -> Iterator[str]:
    every = pods(objects)
    for service in kinds(objects, "Service"):
        for pod in (pod for pod in every if selects(service["spec"]["selector"], pod.labels)):
            for port in service["spec"]["ports"]:
                if port["targetPort"] not in pod.ports:
                    yield f"Service/{service['metadata']['name']}: {pod.where} has no port {port['targetPort']}"
    for monitor in kinds(objects, "ServiceMonitor"):
        offered = {
            port["name"]
            for service in kinds(objects, "Service")
            if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
            for port in service["spec"]["ports"]
        }
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["port"] not in offered:
                yield f"ServiceMonitor/{monitor['metadata']['name']}: no port {endpoint['port']}"
    for monitor in kinds(objects, "PodMonitor"):
        met = [pod for pod in every if selects(monitor["spec"]["selector"], pod.labels)]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if not any(endpoint["port"] in pod.ports for pod in met):
                yield f"PodMonitor/{monitor['metadata']['name']}: no pod has a port {endpoint['port']}"
    for policy in kinds(objects, "NetworkPolicy"):
        for pod in (pod for pod in every if selects(policy["spec"]["podSelector"], pod.labels)):
            for rule in policy["spec"].get("ingress", ()):
                for port in rule.get("ports", ()):
                    if isinstance(port["port"], str) and port["port"] not in pod.ports:
                        yield f"NetworkPolicy/{policy['metadata']['name']}: {pod.where} has no port {port['port']}"
    for pod in every:
        for container in pod.containers():
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container.spec.get(probe, {}).get("httpGet", {}).get("port")
                if asked is not None and asked not in container.ports:
                    yield f"{container.where}: {probe} asks a port {asked}"


def backends_are_there(objects: list[Object]) -> Iterator[str]:
    services = {service["metadata"]["name"]: service for service in kinds(objects, "Service")}
    for ingress in kinds(objects, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                service = services.get(backend["name"])
                if service is None or backend["port"]["name"] not in {
                    port["name"] for port in service["spec"]["ports"]
                }:
                    yield f"Ingress/{ingress['metadata']['name']} leads nowhere"
    for scaler in kinds(objects, "HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) not in _names(objects):
            yield f"{target['kind']}/{target['name']} is to be scaled and is not there"
        for deployment in kinds(objects, "Deployment"):
            if deployment["metadata"]["name"] == target["name"] and "replicas" in deployment["spec"]:
                yield f"an upgrade would undo what {scaler['metadata']['name']} scaled"
    for stateful in kinds(objects, "StatefulSet"):
        if stateful["spec"]["serviceName"] not in services:
            yield f"StatefulSet/{stateful['metadata']['name']} has no Service"


def peers_are_there(objects: list[Object]) -> Iterator[str]:
    every = pods(objects)
    for policy in kinds(objects, "NetworkPolicy"):
        for rule in [*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())]:
            for peer in [*rule.get("from", ()), *rule.get("to", ())]:
                own = "podSelector" in peer and "namespaceSelector" not in peer
                if own and not any(selects(peer["podSelector"], pod.labels) for pod in every):
                    yield f"NetworkPolicy/{policy['metadata']['name']}: nobody is {peer['podSelector']}"


def mounts_are_volumes(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        claims = pod.owner["spec"].get("volumeClaimTemplates", ())
        volumes = {volume["name"] for volume in pod.spec.get("volumes", ())}
        volumes |= {claim["metadata"]["name"] for claim in claims}
        mounted: set[str] = set()
        for container in pod.containers():
            names = [mount["name"] for mount in container.spec.get("volumeMounts", ())]
            paths = [mount["mountPath"] for mount in container.spec.get("volumeMounts", ())]
            if len(set(paths)) < len(paths):
                yield f"{container.where} mounts two volumes in one place"
            mounted |= set(names)
            for name in set(names) - volumes:
                yield f"{container.where} mounts {name}, which is no volume"
        for name in volumes - mounted:
            yield f"{pod.where}: nobody mounts {name}"


def accounts_are_there(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        if ("ServiceAccount", pod.spec["serviceAccountName"]) not in _names(objects):
            yield f"{pod.where} runs as {pod.spec['serviceAccountName']}, which is not there"


def commands_are_there(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers():
            match container.spec.get("command"):
                case ["dbserve", command, *_] if command not in COMMANDS:
                    yield f"{container.where}: there is no dbserve {command}"
                case _:
                    pass


def unknown_sources(objects: list[Object], yours: set[tuple[str, str]]) -> Iterator[str]:
    """Secrets, ConfigMaps and claims that pods use, and that are neither the chart's nor `yours` by its values."""
    there = _names(objects) | yours | GIVEN
    for pod in pods(objects):
        for kind, name, where in _sources(pod):
            if (kind, name) not in there:
                yield f"{where} uses the {kind} {name}, which is nobody's"
    for monitor in kinds(objects, "ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            name = endpoint["authorization"]["credentials"]["name"]
            if ("Secret", name) not in there:
                yield f"ServiceMonitor/{monitor['metadata']['name']} uses the Secret {name}, which is nobody's"


def unknown_keys(objects: list[Object]) -> Iterator[str]:
    """Keys that pods read from Secrets of the chart, and that those do not have."""
    data = {each["metadata"]["name"]: each.get("stringData", {}).keys() for each in kinds(objects, "Secret")}
    for pod in pods(objects):
        for container in pod.containers():
            for variable in container.spec.get("env", ()):
                source = variable.get("valueFrom", {}).get("secretKeyRef")
                if source and source["name"] in data and source["key"] not in data[source["name"]]:
                    yield f"{container.where}: {source['name']} has no key {source['key']}"
        for volume in pod.spec.get("volumes", ()):
            secret = volume.get("secret", {})
            for item in secret.get("items", ()):
                if secret["secretName"] in data and item["key"] not in data[secret["secretName"]]:
                    yield f"{pod.where}: {secret['secretName']} has no key {item['key']}"


POLICIES = (
    workloads_own_their_pods,
    selectors_meet_pods,
    ports_are_there,
    backends_are_there,
    peers_are_there,
    mounts_are_volumes,
    accounts_are_there,
    commands_are_there,
    unknown_keys,
)


def yours(values: Mapping[str, Any]) -> set[tuple[str, str]]:
    """What the values name as made by somebody else."""
    found: set[tuple[str, str]] = set()
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= yours(value)
        elif key == "existingSecret" and value:
            found.add(("Secret", value))
        elif key == "existingClaim" and value:
            found.add(("PersistentVolumeClaim", value))
    return found


def _selector(each: Object) -> Mapping[str, Any] | None:
    match each["kind"]:
        case "Service" | "PodDisruptionBudget" | "ServiceMonitor" | "PodMonitor":
            return each["spec"]["selector"]
        case "NetworkPolicy":
            return each["spec"]["podSelector"]
        case _:
            return None


def _names(objects: list[Object]) -> set[tuple[str, str]]:
    return {(each["kind"], each["metadata"]["name"]) for each in objects}


def _sources(pod: Pod) -> Iterator[tuple[str, str, str]]:
    for volume in pod.spec.get("volumes", ()):
        yield from ((kind, name, f"{pod.where}/{volume['name']}") for kind, name in _of_volume(volume))
    for container in pod.containers():
        yield from ((kind, name, container.where) for kind, name in _of_environment(container))
    password = pod.owner["spec"].get("gcsFaultToleranceOptions", {}).get("redisPassword", {}).get("valueFrom", {})
    if "secretKeyRef" in password:
        yield "Secret", password["secretKeyRef"]["name"], pod.where
    if "authOptions" in pod.owner["spec"]:
        yield "Secret", pod.owner["spec"]["authOptions"]["secretName"], pod.where


def _of_volume(volume: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "secret" in volume:
        yield "Secret", volume["secret"]["secretName"]
    if "configMap" in volume:
        yield "ConfigMap", volume["configMap"]["name"]
    if "persistentVolumeClaim" in volume:
        yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for source in volume.get("projected", {}).get("sources", ()):
        if "configMap" in source:
            yield "ConfigMap", source["configMap"]["name"]


def _of_environment(container: Container) -> Iterator[tuple[str, str]]:
    for variable in container.spec.get("env", ()):
        source = variable.get("valueFrom", {}).get("secretKeyRef")
        if source is not None:
            yield "Secret", source["name"]
    for source in container.spec.get("envFrom", ()):
        yield "Secret", source["secretRef"]["name"]

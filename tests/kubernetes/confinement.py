"""What a container may not do: each policy says what breaks it."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from dbserve.settings import PREFIX, Settings
from tests.kubernetes.chart import Object, kinds, pods

UID = 10001
SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET|_KEY$|CREDENTIAL")
PLACE_OF_SECRET = re.compile(r"_(PATH|FILE)$")
CREDENTIALS = re.compile(r"://[^/]*@|dbs_[a-z0-9]+_")


def not_root(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or context.get("runAsUser") != UID:
            yield f"{pod.where} may run as root"
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{pod.where} may call whatever the kernel offers"


def confined(objects: list[Object]) -> Iterator[str]:
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for pod in pods(objects):
        for container in pod.containers():
            if container.spec.get("securityContext") != wanted:
                yield f"{container.where} has the security context {container.spec.get('securityContext')}"


def nothing_of_the_host(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        for name in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(name):
                yield f"{pod.where}: {name}"
        # Ray's driver and the raylet beside it must see each other; nobody else needs to.
        shared = pod.labels["app.kubernetes.io/component"] == "reconciler"
        if pod.spec.get("shareProcessNamespace", False) is not shared:
            yield f"{pod.where}: its containers {'do not ' if shared else ''}see each other's processes"
        for volume in pod.spec.get("volumes", ()):
            if "hostPath" in volume:
                yield f"{pod.where}: {volume['name']} is a directory of the host"
        for container in pod.containers():
            if any("hostPort" in port for port in container.spec.get("ports", ())):
                yield f"{container.where}: a port of the host"


def pinned_images(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers():
            image = str(container.spec["image"])
            name, _, tag = image.rpartition("/")[2].partition(":")
            if "@sha256:" not in image and (not name or tag in {"", "latest"}):
                yield f"{container.where}: {image}"


def limits(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers():
            for kind in ("requests", "limits"):
                missing = {"cpu", "memory"} - container.spec.get("resources", {}).get(kind, {}).keys()
                if missing:
                    yield f"{container.where} has no {kind} of {sorted(missing)}"
        for volume in pod.spec.get("volumes", ()):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{pod.where}: {volume['name']} may grow without end"


def no_tokens(objects: list[Object]) -> Iterator[str]:
    """Of the Kubernetes API: none but the autoscaler's, in its own container."""
    for account in kinds(objects, "ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount {account['metadata']['name']} gives its token away"
    for pod in pods(objects):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.where} mounts a token"
        tokens = {
            volume["name"]
            for volume in pod.spec.get("volumes", ())
            if any("serviceAccountToken" in source for source in volume.get("projected", {}).get("sources", ()))
        }
        for container in pod.containers():
            mounted = tokens & {mount["name"] for mount in container.spec.get("volumeMounts", ())}
            if mounted and not container.of_operator:
                yield f"{container.where} mounts the token {sorted(mounted)}"


def no_service_links(objects: list[Object]) -> Iterator[str]:
    """Kubernetes would set DBSERVE_PORT and others for a Service of that name."""
    for pod in pods(objects):
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.where} gets variables for every Service of its namespace"


def no_secret_in_the_open(objects: list[Object]) -> Iterator[str]:
    for pod in pods(objects):
        for container in pod.containers():
            for variable in container.spec.get("env", ()):
                name, value = variable["name"], str(variable.get("value", ""))
                if SECRET_NAME.search(name) and not PLACE_OF_SECRET.search(name) and "valueFrom" not in variable:
                    yield f"{container.where}: {name} is written out"
                if CREDENTIALS.search(value):
                    yield f"{container.where}: {name} carries credentials"
            for word in [*container.spec.get("command", ()), *container.spec.get("args", ())]:
                if CREDENTIALS.search(word) or re.search(r"--[a-z-]*password", word):
                    yield f"{container.where}: its command carries credentials"


def known_settings(objects: list[Object]) -> Iterator[str]:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for pod in pods(objects):
        for container in pod.containers():
            names = [str(variable["name"]) for variable in container.spec.get("env", ())]
            for name in names:
                if name.startswith(PREFIX) and name not in known:
                    yield f"{container.where}: {name} is no setting"
            for name in {name for name in names if names.count(name) > 1}:
                yield f"{container.where}: {name} is set twice"


def watched(objects: list[Object]) -> Iterator[str]:
    """A sidecar has nothing to be ready for; KubeRay restarts the autoscaler."""
    for pod in pods(objects):
        for container in pod.containers():
            wanted = {"livenessProbe"} | ({"startupProbe"} if container.sidecar else {"readinessProbe"})
            missing = wanted - container.spec.keys()
            if missing and not container.of_operator:
                yield f"{container.where} has no {sorted(missing)}"


POLICIES = (
    not_root,
    confined,
    nothing_of_the_host,
    pinned_images,
    limits,
    no_tokens,
    no_service_links,
    no_secret_in_the_open,
    known_settings,
    watched,
)


def _pod(objects: list[Object], kind: str) -> Any:
    return kinds(objects, kind)[0]["spec"]["template"]["spec"]


def _head(objects: list[Object]) -> Any:
    return kinds(objects, "RayCluster")[0]["spec"]["headGroupSpec"]["template"]["spec"]


def _reconciler(objects: list[Object]) -> Any:
    [found] = [each for each in kinds(objects, "Deployment") if each["metadata"]["name"].endswith("-reconciler")]
    return found["spec"]["template"]["spec"]


def _add(container: Any, **variable: str) -> None:
    container["env"].append(variable)


# What breaks a policy: its name, and a change of the default rendering that it must complain about.
FAULTS: list[tuple[str, str, Callable[[list[Object]], Any]]] = [
    ("not_root", "root", lambda all_: _pod(all_, "Deployment")["securityContext"].update(runAsUser=0)),
    ("not_root", "no seccomp", lambda all_: _head(all_)["securityContext"].pop("seccompProfile")),
    (
        "confined",
        "privileged",
        lambda all_: _pod(all_, "Deployment")["containers"][0]["securityContext"].update(privileged=True),
    ),
    (
        "confined",
        "a writable root of the autoscaler",
        lambda all_: kinds(all_, "RayCluster")[0]["spec"]["autoscalerOptions"]["securityContext"].pop(
            "readOnlyRootFilesystem"
        ),
    ),
    ("nothing_of_the_host", "its network", lambda all_: _head(all_).update(hostNetwork=True)),
    ("nothing_of_the_host", "each other's processes", lambda all_: _head(all_).update(shareProcessNamespace=True)),
    ("nothing_of_the_host", "a driver on its own", lambda all_: _reconciler(all_).pop("shareProcessNamespace")),
    (
        "nothing_of_the_host",
        "a directory",
        lambda all_: _head(all_)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    ),
    (
        "pinned_images",
        "latest",
        lambda all_: _head(all_)["containers"][0].update(image="a.example:5000/dbserve:latest"),
    ),
    ("pinned_images", "no tag", lambda all_: _head(all_)["containers"][0].update(image="a.example:5000/dbserve")),
    (
        "limits",
        "none of memory",
        lambda all_: _pod(all_, "StatefulSet")["containers"][0]["resources"]["limits"].pop("memory"),
    ),
    ("limits", "an endless directory", lambda all_: _head(all_)["volumes"][0].update(emptyDir={})),
    ("no_tokens", "by account", lambda all_: kinds(all_, "ServiceAccount")[0].pop("automountServiceAccountToken")),
    (
        "no_tokens",
        "in the head",
        lambda all_: _head(all_)["containers"][0]["volumeMounts"].append(
            {"name": "kubernetes-token", "mountPath": "/token"}
        ),
    ),
    ("no_service_links", "left out", lambda all_: _head(all_).pop("enableServiceLinks")),
    (
        "no_secret_in_the_open",
        "a password",
        lambda all_: _add(_head(all_)["containers"][0], name="REDIS_PASSWORD", value="x"),
    ),
    (
        "no_secret_in_the_open",
        "in a URL",
        lambda all_: _add(_head(all_)["containers"][0], name="WHERE", value="redis://:x@redis"),
    ),
    (
        "known_settings",
        "a misspelt one",
        lambda all_: _add(_head(all_)["containers"][0], name="DBSERVE_REDIS_UR", value="x"),
    ),
    (
        "known_settings",
        "twice",
        lambda all_: _add(_pod(all_, "Deployment")["containers"][0], name="DBSERVE_PORT", value="1"),
    ),
    ("watched", "not at all", lambda all_: _pod(all_, "StatefulSet")["containers"][0].pop("livenessProbe")),
]

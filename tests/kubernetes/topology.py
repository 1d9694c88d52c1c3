"""What makes Ray's nodes one cluster, closed to strangers, where only workers work: each policy says what breaks it."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.kubernetes.chart import Container, Object, kinds, pods

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/run/secrets/ray/auth_token"}
NOTHING_TO_GIVE = {"num-cpus": "0", "num-gpus": "0"}


def joined_by_token(objects: list[Object]) -> Iterator[str]:
    """KubeRay gives the token to the pods of its cluster; the chart gives it to the driver and the node beside it."""
    for cluster in kinds(objects, "RayCluster"):
        asked = cluster["spec"].get("authOptions", {})
        if asked.get("mode") != "token" or not asked.get("secretName"):
            yield f"RayCluster/{cluster['metadata']['name']} lets anybody in"
    node, driver = _beside_the_driver(objects)
    if TOKEN.items() - _variables(node).items():
        yield f"{node.where} has no token to join with"
    if _variables(driver).get("DBSERVE_RAY_AUTH_TOKEN_PATH") != TOKEN["RAY_AUTH_TOKEN_PATH"]:
        yield f"{driver.where} has no token to join with"
    for container in (node, driver):
        if not any(TOKEN["RAY_AUTH_TOKEN_PATH"].startswith(place) for place in _places(container)):
            yield f"{container.where} does not mount the token"


def work_is_for_workers(objects: list[Object]) -> Iterator[str]:
    for cluster in kinds(objects, "RayCluster"):
        offered = cluster["spec"]["headGroupSpec"]["rayStartParams"]
        if NOTHING_TO_GIVE.items() - offered.items():
            yield "blocks would train on Ray's head"
    node, _ = _beside_the_driver(objects)
    if not {f"--{name}={value}" for name, value in NOTHING_TO_GIVE.items()} <= set(node.spec["command"]):
        yield f"blocks would train on {node.where}"


def driver_beside_a_node(objects: list[Object]) -> Iterator[str]:
    """The node starts before the driver, stays, and is of the cluster that the driver is told of."""
    node, driver = _beside_the_driver(objects)
    if node.spec.get("restartPolicy") != "Always" or "--block" not in node.spec["command"]:
        yield f"{node.where} does not stay beside the driver"
    address = _variables(driver).get("DBSERVE_RAY_ADDRESS")
    if f"--address={address}" not in node.spec["command"]:
        yield f"{node.where} joins another cluster than {driver.where}"
    for place in ("/tmp", "/dev/shm"):
        shared = [{mount["name"] for mount in _mounts(each) if mount["mountPath"] == place} for each in (node, driver)]
        if not shared[0] & shared[1]:
            yield f"{node.where} and {driver.where} do not share {place}"


def scaled_by_ray(objects: list[Object]) -> Iterator[str]:
    """The reconciler asks the autoscaler for nodes where there is one, and only there."""
    _, driver = _beside_the_driver(objects)
    for cluster in kinds(objects, "RayCluster"):
        scaled = bool(cluster["spec"].get("enableInTreeAutoscaling"))
        if scaled and cluster["spec"].get("autoscalerOptions", {}).get("version") != "v2":
            yield "the autoscaler is not v2"
        if _variables(driver).get("DBSERVE_AUTOSCALING") != str(scaled).lower():
            yield f"{driver.where} is told otherwise of the autoscaler"
        for group in cluster["spec"]["workerGroupSpecs"]:
            if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
                yield f"group {group['groupName']}: {group['replicas']} replicas are not between its bounds"


def kept_in_redis(objects: list[Object]) -> Iterator[str]:
    """Ray takes an address of Redis without a port for none."""
    for cluster in kinds(objects, "RayCluster"):
        kept = cluster["spec"].get("gcsFaultToleranceOptions")
        if kept is not None and not re.fullmatch(r"(rediss://)?[a-z0-9.-]+:\d+", kept["redisAddress"]):
            yield f"Ray cannot read {kept['redisAddress']} as the address of Redis"


def left_in_time(objects: list[Object]) -> Iterator[str]:
    """A worker's pod waits for last checkpoints, and for no longer than it is let live."""
    for pod in pods(objects):
        if pod.labels["app.kubernetes.io/component"] == "ray-worker":
            [container] = pod.spec["containers"]
            command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            if command[:4] != ["python", "-m", "workers.leaving", "--seconds"]:
                yield f"{pod.where} does not tell Ray that it goes"
            elif not 0 < int(command[4]) < pod.spec["terminationGracePeriodSeconds"]:
                yield f"{pod.where} is killed while it waits"


POLICIES = (joined_by_token, work_is_for_workers, driver_beside_a_node, scaled_by_ray, kept_in_redis, left_in_time)


def _beside_the_driver(objects: list[Object]) -> tuple[Container, Container]:
    """Ray's node in the reconciler's pod, and the reconciler."""
    [pod] = [pod for pod in pods(objects) if pod.labels["app.kubernetes.io/component"] == "reconciler"]
    by_name = {container.spec["name"]: container for container in pod.containers()}
    return by_name["ray-node"], by_name["reconciler"]


def _variables(container: Container) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container.spec.get("env", ())}


def _mounts(container: Container) -> list[dict[str, Any]]:
    return container.spec.get("volumeMounts", [])


def _places(container: Container) -> list[str]:
    return [mount["mountPath"] for mount in _mounts(container)]


def _cluster(objects: list[Object]) -> Any:
    return kinds(objects, "RayCluster")[0]["spec"]


def _worker(objects: list[Object]) -> Any:
    return _cluster(objects)["workerGroupSpecs"][0]["template"]["spec"]


def _node(objects: list[Object]) -> Any:
    return _beside_the_driver(objects)[0].spec


def _without(container: Any, key: str, name: str) -> None:
    """A variable, or a mount, by its name or place."""
    container[key] = [each for each in container[key] if name not in (each["name"], each.get("mountPath"))]


# What breaks a policy: its name, and a change of the default rendering that it must complain about.
FAULTS: list[tuple[str, str, Callable[[list[Object]], Any]]] = [
    ("joined_by_token", "no token asked for", lambda all_: _cluster(all_).pop("authOptions")),
    ("joined_by_token", "no mode", lambda all_: _without(_node(all_), "env", "RAY_AUTH_MODE")),
    ("joined_by_token", "no place", lambda all_: _without(_node(all_), "env", "RAY_AUTH_TOKEN_PATH")),
    ("joined_by_token", "no file", lambda all_: _without(_node(all_), "volumeMounts", "ray-token")),
    (
        "joined_by_token",
        "none for the driver",
        lambda all_: _without(_beside_the_driver(all_)[1].spec, "env", "DBSERVE_RAY_AUTH_TOKEN_PATH"),
    ),
    ("work_is_for_workers", "CPUs", lambda all_: _cluster(all_)["headGroupSpec"]["rayStartParams"].pop("num-cpus")),
    ("work_is_for_workers", "beside the driver", lambda all_: _node(all_)["command"].remove("--num-cpus=0")),
    ("driver_beside_a_node", "an init container", lambda all_: _node(all_).pop("restartPolicy")),
    ("driver_beside_a_node", "one that goes", lambda all_: _node(all_)["command"].remove("--block")),
    ("driver_beside_a_node", "no common /tmp", lambda all_: _without(_node(all_), "volumeMounts", "/tmp")),
    (
        "driver_beside_a_node",
        "elsewhere",
        lambda all_: _without(_beside_the_driver(all_)[1].spec, "env", "DBSERVE_RAY_ADDRESS"),
    ),
    ("scaled_by_ray", "v1", lambda all_: _cluster(all_)["autoscalerOptions"].pop("version")),
    ("scaled_by_ray", "untold", lambda all_: _cluster(all_).update(enableInTreeAutoscaling=False)),
    ("scaled_by_ray", "bounds", lambda all_: _cluster(all_)["workerGroupSpecs"][0].update(maxReplicas=0)),
    (
        "kept_in_redis",
        "no port",
        lambda all_: _cluster(all_)["gcsFaultToleranceOptions"].update(redisAddress="rediss://redis.example.com"),
    ),
    ("left_in_time", "no hook", lambda all_: _worker(all_)["containers"][0].pop("lifecycle")),
    ("left_in_time", "too late", lambda all_: _worker(all_).update(terminationGracePeriodSeconds=90)),
]

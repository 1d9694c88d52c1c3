"""The chart's pod of the API, as Helm renders it, run by `podman kube play` against the chart's Redis."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.images.engine import TAG, Engine
from tests.kubernetes.chart import NAMESPACE, RELEASE, kinds, render, values_of
from tests.ports import free_port
from tests.waiting import wait_for

pytestmark = [pytest.mark.image, pytest.mark.timeout(2400)]

Object = dict[str, Any]


def chart() -> list[Object]:
    """For a laptop, with the image that was built here."""
    values = values_of("kind")
    return render({**values, "image": {**values["image"], "repository": "localhost/dbserve", "tag": TAG}})


def named(objects: list[Object], kind: str, end: str) -> Object:
    [found] = [each for each in kinds(objects, kind) if each["metadata"]["name"].endswith(end)]
    return found


@contextmanager
def playing(engine: Engine, objects: list[Object], file: Path, network: str) -> Iterator[None]:
    """The pods of a file, and the chart's Secrets as podman keeps them for a pod's variables."""
    made = {each["metadata"]["name"]: each["stringData"] for each in kinds(objects, "Secret")}
    try:
        for name, data in made.items():
            encoded = {key: base64.b64encode(str(value).encode()).decode() for key, value in data.items()}
            secret = file.with_name(f"{name}.json")
            secret.write_text(json.dumps(encoded))
            engine.podman("secret", "create", name, str(secret))
        engine.podman("kube", "play", f"--network={network}", str(file))
        yield
    finally:
        engine.succeeds("kube", "down", str(file))
        for claim in kinds(objects, "PersistentVolumeClaim"):
            engine.succeeds("volume", "rm", claim["metadata"]["name"])
        for name in made:
            engine.succeeds("secret", "rm", name)


def redis_of_the_chart(engine: Engine, objects: list[Object], network: str, directory: Path) -> str:
    """Its address; with the users and the configuration that the chart renders."""
    (directory / "redis.conf").write_text(named(objects, "ConfigMap", "-redis")["data"]["redis.conf"])
    (directory / "users.acl").write_text(named(objects, "Secret", "-redis")["stringData"]["users.acl"])
    for path in (directory, *directory.iterdir()):
        path.chmod(0o755)
    [container, *_] = named(objects, "StatefulSet", "-redis")["spec"]["template"]["spec"]["containers"]
    mounted = [
        f"--volume={directory}:{mount['mountPath']}:ro" for mount in container["volumeMounts"] if mount.get("readOnly")
    ]
    confined = ["--user=10001:10001", "--read-only", "--cap-drop=all", "--tmpfs=/data:mode=1777"]
    name = f"{network}-redis"
    options = ["run", "--detach", f"--name={name}", f"--network={network}", *confined, *mounted]
    engine.podman(*options, engine.redis(), *container["command"])
    return engine.podman("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)


def test_the_rendered_pod_of_the_api_is_ready_and_answers_who_has_the_key(
    engine: Engine, control: str, network: str, tmp_path: Path
) -> None:
    objects = chart()
    deployment = named(objects, "Deployment", "-api")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == control
    # What a cluster has and a lone machine has not: its DNS, and a way in.
    redis_name = f"{RELEASE}-redis.{NAMESPACE}.svc"
    pod["hostAliases"] = [{"ip": redis_of_the_chart(engine, objects, network, tmp_path), "hostnames": [redis_name]}]
    [port] = container["ports"]
    port |= {"hostIP": "127.0.0.1", "hostPort": free_port()}
    claims = kinds(objects, "PersistentVolumeClaim")
    for claim in claims:  # else podman makes it root's; a cluster goes by fsGroup
        claim["metadata"]["annotations"] = {"volume.podman.io/uid": "10001", "volume.podman.io/gid": "10001"}
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump_all([*claims, deployment]))

    address = f"http://127.0.0.1:{port['hostPort']}"
    with playing(engine, objects, file, network), httpx.Client(base_url=address) as client:
        pods = f"name={deployment['metadata']['name']}-pod"
        names = engine.podman("ps", "--all", "--format", "{{.Names}}", "--filter", pods).split()
        [running] = [name for name in names if name.endswith(f"-{container['name']}")]
        wait_for(lambda: ready(client, engine, running), seconds=120, what=f"{running} is ready")
        keys = named(objects, "Secret", "-keys")["stringData"]
        assert client.get("/v1/jobs").status_code == 401
        jobs = client.get("/v1/jobs", headers={"Authorization": f"Bearer {keys['api-key']}"})
        assert jobs.json()["data"] == []
        assert client.get("/metrics", headers={"Authorization": f"Bearer {keys['scrape-key']}"}).status_code == 200

        engine.podman("exec", running, "touch", "/tmp/x", "/var/lib/dbserve/cache/x", "/var/lib/dbserve/artifacts/x")
        look = "id -u; grep -c '^overlay / overlay ro,' /proc/mounts; cat /proc/1/status"
        user, read_only, *status = engine.podman("exec", running, "sh", "-c", look).splitlines()
        assert (user, read_only) == ("10001", "1")
        assert {"CapBnd:\t" + "0" * 16, "NoNewPrivs:\t1"} <= set(status)


def ready(client: httpx.Client, engine: Engine, container: str) -> bool:
    state = engine.podman("inspect", "--format", "{{.State.Status}}", container)
    assert state in {"created", "running"}, engine.logs(container)
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False

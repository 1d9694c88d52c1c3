"""A service of deploy/compose.yml as podman runs it: the file itself is tried, key by key, and nothing passed over."""

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

import yaml

from tests.images.engine import ROOT, Engine

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "deploy/compose.yml").read_text())["services"]
# How images are made and in which order services start is not a container's business.
ELSEWHERE = {"image", "build", "depends_on", "command"}


START_SECONDS = 240.0  # of one service, on a machine that has others to serve


def passwords() -> dict[str, str]:
    """A value for each name that deploy/env.example asks for."""
    names = re.findall(r"^(\w+)=$", (ROOT / "deploy/env.example").read_text(), flags=re.MULTILINE)
    return {name: secrets.token_hex(32) for name in names}


def start(engine: Engine, network: str, images: Mapping[str, str], variables: Mapping[str, str]) -> None:
    """Services by their images, each when those that it depends on are as it wants them."""
    for service, image in images.items():
        for needed, how in SERVICES[service].get("depends_on", {}).items():
            container = f"{network}-{needed}"
            if how["condition"] == "service_healthy":
                engine.wait_until_healthy(container, seconds=START_SECONDS)
            else:
                assert engine.podman("wait", container) == "0", engine.logs(container)
        engine.podman("run", "--detach", *arguments(service, image, network, variables))
    for service in images:
        if not SERVICES[service]["healthcheck"].get("disable"):
            engine.wait_until_healthy(f"{network}-{service}", seconds=START_SECONDS)


def expanded(value: str, variables: Mapping[str, str]) -> str:
    """KeyError for a variable that must be given and is not."""
    value = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], value)
    return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: variables[found[1]], value).replace("$$", "$")


def arguments(name: str, image: str, network: str, variables: Mapping[str, str]) -> list[str]:
    """Of `podman run --detach`. KeyError for what this does not know of."""
    service = SERVICES[name]
    options = [f"--name={network}-{name}", f"--hostname={name}"]
    for key in service.keys() - ELSEWHERE:
        options += _OPTIONS[key](service[key], network, variables)
    if "network_mode" not in service:
        options += [f"--network={network}", f"--network-alias={name}"]
    return [*options, image, *(expanded(word, variables) for word in service["command"])]


def _environment(given: Mapping[str, str], _: str, variables: Mapping[str, str]) -> list[str]:
    return [f"--env={key}={expanded(value, variables)}" for key, value in given.items()]


def _volumes(given: list[str], network: str, variables: Mapping[str, str]) -> list[str]:
    volumes = [expanded(volume, variables) for volume in given]
    return [f"--volume={network}-{volume}" if ":" in volume else f"--volume={volume}" for volume in volumes]


def _health(given: Mapping[str, Any], _: str, variables: Mapping[str, str]) -> list[str]:
    if given.get("disable"):
        return ["--no-healthcheck"]
    command = [expanded(word, variables) for word in given["test"][1:]]
    # No timer of systemd's: the test asks.
    return [f"--health-cmd={json.dumps(command)}", "--health-interval=disable", f"--health-timeout={given['timeout']}"]


def _limits(given: Mapping[str, Any], *_: object) -> list[str]:
    limits = given["resources"]["limits"]
    return [f"--cpus={limits['cpus']}", f"--memory={limits['memory']}"]


_OPTIONS: dict[str, Any] = {
    "environment": _environment,
    "volumes": _volumes,
    "healthcheck": _health,
    "deploy": _limits,
    "restart": lambda given, *_: [f"--restart={given}"],
    "user": lambda given, *_: [f"--user={given}"],
    "init": lambda given, *_: [f"--init={json.dumps(given)}"],
    "read_only": lambda given, *_: [f"--read-only={json.dumps(given)}", "--read-only-tmpfs=false"],
    "tmpfs": lambda given, *_: [f"--tmpfs={each}" for each in given],
    "cap_drop": lambda given, *_: [f"--cap-drop={each}" for each in given],
    "security_opt": lambda given, *_: [f"--security-opt={each.split(':')[0]}" for each in given],
    "shm_size": lambda given, *_: [f"--shm-size={given}"],
    "stop_grace_period": lambda given, *_: [f"--stop-timeout={given.removesuffix('s')}"],
    "network_mode": lambda given, *_: [f"--network={given}"],
    # Any port of this machine: the one in the file may be taken.
    "ports": lambda given, *_: [f"--publish=127.0.0.1::{each.rpartition(':')[2]}" for each in given],
}

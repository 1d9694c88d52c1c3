"""deploy/: what can be held against the code where no container runs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from dbserve.cli import cli
from dbserve.settings import PREFIX, Settings
from workers.allocation import KEEPING_FREED_MEMORY

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXT = (DEPLOY / "compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
GPU: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.gpu.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
COMMANDS = set(typer.main.get_command(cli).commands)  # type: ignore[attr-defined]

every_service = pytest.mark.parametrize("name", SERVICES)


def words(service: dict[str, Any]) -> str:
    return " ".join(service.get("command", ()))


@every_service
def test_a_service_is_watched_bounded_and_of_a_pinned_image(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["restart"] == "unless-stopped"
    assert "no-new-privileges:true" in service["security_opt"]
    assert "build" in service or re.search(r":v?\d+\.\d+\.\d+", service["image"])


@every_service
def test_what_a_service_refers_to_is_there(name: str) -> None:
    service = SERVICES[name]
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
    assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
    for needed, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert needed in SERVICES
    assert set(re.findall(r"\bdbserve ([a-z]+)\b", words(service))) <= COMMANDS


@every_service
def test_nothing_is_published_beyond_this_machine(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))
    assert SERVICES[name].get("network_mode") is None


@every_service
def test_a_service_is_given_settings_that_there_are(name: str) -> None:
    given = {key for key in SERVICES[name].get("environment", {}) if key.startswith(PREFIX)}
    assert given <= {PREFIX + field.upper() for field in Settings.model_fields}


def test_the_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in SERVICES["api"]["environment"].items():
        monkeypatch.setenv(key, re.sub(r"\$\{\w+:[^}]*\}", "0123456789abcdef", value))
    settings = Settings()
    assert len(settings.api_keys) == 2
    assert settings.redis_url == "redis://:0123456789abcdef@redis:6379/0"


def test_every_value_that_is_asked_for_is_in_the_example_and_has_none_there() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", TEXT)) | {each["environment"] for each in COMPOSE["secrets"].values()}
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(), flags=re.MULTILINE))
    assert set(example) == asked
    assert not any(example.values())
    assert ".env" in (DEPLOY / ".gitignore").read_text().split()


def test_redis_keeps_what_was_accepted() -> None:
    command = words(SERVICES["redis"])
    for option in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction", "--requirepass"):
        assert option in command
    assert "redis-data:/data" in SERVICES["redis"]["volumes"]


def test_all_of_ray_asks_for_the_token_and_workers_keep_freed_memory() -> None:
    for name in ("ray-head", "ray-worker", "reconciler"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert "ray_token" in SERVICES[name]["secrets"]
        assert KEEPING_FREED_MEMORY.items() <= environment.items()


def test_all_that_train_save_and_answer_see_the_same_artefacts() -> None:
    for name in ("ray-worker", "api", "reconciler"):
        where = SERVICES[name]["environment"]["DBSERVE_ARTIFACTS"]
        assert f"artifacts:{where}" in SERVICES[name]["volumes"]


def test_prometheus_finds_the_services_by_their_names() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/cluster.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    for job in ("dbserve", "dcgm"):
        assert set(jobs[job]["dns_sd_configs"][0]["names"]) <= set(SERVICES) | set(GPU["services"])
    assert str(jobs["dbserve"]["dns_sd_configs"][0]["port"]) == SERVICES["api"]["environment"]["DBSERVE_PORT"]
    discovery = jobs["ray"]["http_sd_configs"][0]
    assert discovery["url"].startswith("http://ray-head:8265/")
    for holder in (jobs["dbserve"], discovery):
        secret = holder["authorization"]["credentials_file"].removeprefix("/run/secrets/")
        assert holder["authorization"]["type"] == "Bearer"
        assert secret in SERVICES["prometheus"]["secrets"]


def test_grafana_finds_the_dashboards_and_prometheus() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards/dbserve.yml").read_text())["providers"]
    mounted = {target: DEPLOY / source for source, target, *_ in (v.split(":") for v in SERVICES["grafana"]["volumes"])}
    assert len(list(mounted[provider["options"]["path"]].glob("dbserve-*.json"))) == 8
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"].removeprefix("http://").split(":")[0] in SERVICES
    home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (mounted[str(home.parent)] / home.name).exists()


def test_the_gpu_file_adds_to_services_and_changes_no_others() -> None:
    assert set(GPU["services"]) == {"ray-worker", "dcgm-exporter"}


def test_the_container_file_is_free_of_known_faults_and_copies_what_is_there() -> None:
    file = DEPLOY / "Containerfile"
    linted = subprocess.run([Path(sys.executable).parent / "hadolint", file], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    text = file.read_text()
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.MULTILINE) for source in line.split()
    }
    allowed = {line[1:] for line in (DEPLOY / "Containerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    assert copied == allowed
    assert all((DEPLOY.parent / source).exists() for source in copied)
    assert re.search(r"^USER \d+:\d+$", text, flags=re.MULTILINE)

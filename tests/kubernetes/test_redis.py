"""The Redis of the chart, for real: a server with the rendered configuration and users, asked by the rendered probe."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis

from tests.kubernetes.chart import rendered
from tests.kubernetes.servers import USERS, ChartRedis, redis_of

if shutil.which("redis-server") is None and not os.environ.get("DBSERVE_REQUIRE_SERVERS"):
    pytest.skip("redis-server and redis-cli are not installed (apt install redis-server)", allow_module_level=True)


@pytest.fixture(scope="module", params=["defaults", "TLS to Redis"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChartRedis]:
    with redis_of(rendered(request.param), tmp_path_factory.mktemp("redis")) as server:
        yield server


def test_its_probes_succeed_with_the_password_and_fail_without(running: ChartRedis) -> None:
    for probe in running.probes:
        assert running.probe(probe, running.passwords["exporter"]) == 0
        assert running.probe(probe, "a-wrong-password") != 0


def test_its_probes_fail_where_nothing_listens(running: ChartRedis) -> None:
    nobody = ChartRedis(1, running.passwords, running.ca_file, running.probes, running.directory)
    assert all(nobody.probe(probe, running.passwords["exporter"]) != 0 for probe in running.probes)


def test_every_user_gets_in_with_its_own_password_alone(running: ChartRedis) -> None:
    for user in USERS:
        assert running.connect(user).ping()
        with pytest.raises(redis.AuthenticationError):
            running.connect(user, running.passwords["api" if user != "api" else "worker"]).ping()
    with pytest.raises(redis.RedisError):
        running.connect("default", "nopass").ping()


def test_what_is_accepted_is_on_disk_before_it_is_answered(running: ChartRedis) -> None:
    with running.connect("api") as api:
        api.hset("dbserve:job:a", "record", "kept")
    kept = b"".join(path.read_bytes() for path in running.directory.rglob("*.aof"))
    assert b"kept" in kept
    assert "\nappendfsync always\n" in (running.directory / "redis.conf").read_text()


def test_ray_keeps_its_books_beside_dbserves_and_sees_none_of_them(running: ChartRedis) -> None:
    with running.connect("ray") as ray:
        ray.hset("RAYcluster@KV", "a", "b")
        with pytest.raises(redis.exceptions.NoPermissionError):
            ray.hgetall("dbserve:job:a")
        with pytest.raises(redis.exceptions.NoPermissionError):
            ray.flushall()
    with running.connect("worker") as worker, pytest.raises(redis.exceptions.NoPermissionError):
        worker.hgetall("RAYcluster@KV")


def test_nothing_is_evicted_and_memory_is_bounded(running: ChartRedis) -> None:
    config = (running.directory / "redis.conf").read_text()
    assert "maxmemory-policy noeviction" in config
    with running.connect("exporter") as exporter:
        assert exporter.info("memory")["maxmemory"] == 1024**3


def test_without_tls_nobody_gets_in_where_tls_is_on(running: ChartRedis) -> None:
    if running.ca_file is None:
        assert "tls-port" not in (running.directory / "redis.conf").read_text()
        return
    with pytest.raises(redis.RedisError):
        replace(running, ca_file=None).connect("api").ping()

"""As whom Redis is reached, and what of it workers are told."""

from pathlib import Path

import pytest

from dbserve.contracts.access import RedisAccess
from dbserve.errors import ConfigInvalid
from dbserve.settings import read_settings
from dbserve.store.connection import open_redis

PASSWORD = "the-password-of-a-user"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://redis:6379/0", "redis://redis:6379/0"),
        ("redis://api:old-secret@redis:6379/0", "redis://redis:6379/0"),
        ("rediss://:old-secret@[::1]:6379/2?health_check_interval=5", "rediss://[::1]:6379/2?health_check_interval=5"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix://api@/run/redis.sock?password=old-secret&db=1", "unix:///run/redis.sock?db=1"),
    ],
)
def test_workers_are_told_no_credentials_where_those_are_set_beside_the_url(url: str, told: str) -> None:
    assert RedisAccess(url, "api", PASSWORD).told() == told


def test_a_url_that_says_everything_is_told_as_it_is() -> None:
    url = "redis://:secret-word@redis:6379/0"
    assert RedisAccess(url).told() == url


def test_a_workers_own_environment_knows_better_than_what_it_is_told() -> None:
    environment = {
        "DBSERVE_REDIS_USERNAME": "worker",
        "DBSERVE_REDIS_PASSWORD": PASSWORD,
        "DBSERVE_REDIS_CA_FILE": "/c",
    }
    told = "redis://redis:6379/0"
    assert RedisAccess.here(told, environment) == RedisAccess(told, "worker", PASSWORD, "/c")
    nearer = "unix:///run/redis.sock"
    assert RedisAccess.here(told, environment | {"DBSERVE_REDIS_URL": nearer}).url == nearer
    assert RedisAccess.here(told, {"DBSERVE_REDIS_URL": ""}) == RedisAccess(told)


def test_settings_say_how_redis_is_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {
        "URL": "rediss://redis:6380/0",
        "USERNAME": "api",
        "PASSWORD": PASSWORD,
        "CA_FILE": str(tmp_path / "ca.pem"),
    }
    for name, value in given.items():
        monkeypatch.setenv(f"DBSERVE_REDIS_{name}", value)
    settings = read_settings()
    assert settings.redis == RedisAccess(given["URL"], "api", PASSWORD, given["CA_FILE"])
    assert PASSWORD not in repr(settings)
    assert PASSWORD not in repr(settings.redis)
    assert settings.environment()["DBSERVE_REDIS_PASSWORD"] == PASSWORD  # of the children of `dbserve up`


def test_what_is_set_beside_the_url_wins_over_what_is_in_it() -> None:
    redis = open_redis(RedisAccess("redis://old:old-secret@redis:6379/0", "api", PASSWORD))
    options = redis.connection_pool.connection_kwargs
    assert (options["username"], options["password"]) == ("api", PASSWORD)


@pytest.mark.parametrize("url", ["redis://redis:6379/0", "unix:///run/redis.sock"])
def test_certificates_without_tls_are_refused(url: str) -> None:
    with pytest.raises(ConfigInvalid, match="rediss://"):
        open_redis(RedisAccess(url, ca_file="/ca.pem"))

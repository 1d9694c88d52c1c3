"""Settings come from the environment once, and complain by the variable's name."""

import contextlib
from pathlib import Path

import pytest

from dbserve.errors import StartupRefused
from dbserve.settings import read_settings, refuse_open_cluster, refuse_open_door

KEY = "k" * 16


def test_what_is_given_wins_over_the_environment_which_wins_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBSERVE_PORT", "9000")
    monkeypatch.setenv("DBSERVE_HOST", "")
    assert read_settings().port == 9000
    assert read_settings(port=9001).port == 9001
    assert read_settings(port=None).port == 9000
    assert read_settings().host == "127.0.0.1", "an empty variable is none"


def test_a_wrong_variable_is_named_and_its_value_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBSERVE_API_KEY", "secret")
    with pytest.raises(StartupRefused, match="DBSERVE_API_KEY") as refused:
        read_settings()
    assert "secret" not in str(refused.value)


def test_a_clients_key_does_not_become_one_that_may_do_all() -> None:
    for name in ("api_key", "scrape_key"):
        with pytest.raises(StartupRefused, match=f"DBSERVE_{name.upper()}.*clients"):
            read_settings(**{name: "dbs_0123456789ab_" + 64 * "0"})


def test_a_child_process_reads_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    parent = read_settings(api_key=KEY, artifacts=Path("here"), redis_url="unix:///r.sock")
    for name, value in parent.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    assert read_settings() == parent


def test_the_key_is_not_shown_when_settings_are_printed() -> None:
    assert KEY not in repr(read_settings(api_key=KEY))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
def test_an_open_door_needs_a_key(host: str) -> None:
    with pytest.raises(StartupRefused, match="DBSERVE_API_KEY"):
        refuse_open_door(read_settings(host=host))
    refuse_open_door(read_settings(host=host, api_key=KEY))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_alone_needs_none(host: str) -> None:
    refuse_open_door(read_settings(host=host))


@pytest.mark.parametrize(
    ("address", "environment", "refused"),
    [
        *((address, {}, False) for address in ("auto", "local", "127.0.0.1:6379", "localhost:6379", "[::1]:6379")),
        *((address, {}, True) for address in ("10.0.0.5:6379", "ray-head:6379", "ray://head:10001", "[fd00::1]:6379")),
        ("10.0.0.5:6379", {"RAY_AUTH_MODE": "token"}, False),
        ("10.0.0.5:6379", {"RAY_AUTH_TOKEN": "t"}, False),
        ("10.0.0.5:6379", {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}, True),
    ],
)
def test_a_cluster_on_other_machines_is_joined_by_a_token_alone(
    address: str, environment: dict[str, str], refused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dbserve.settings._RAY_TOKEN", tmp_path / "none")
    expected = pytest.raises(StartupRefused, match="RAY_AUTH_MODE=token") if refused else contextlib.nullcontext()
    with expected:
        refuse_open_cluster(read_settings(ray_address=address), environment)
    refuse_open_cluster(read_settings(ray_address=address, ray_auth_token_path=tmp_path / "token"), environment)


@pytest.mark.parametrize("rules", ["data", "ftp://host", "s3://bucket,~/sets", "http://user:word@host/"])
def test_a_data_rule_that_is_none_stops_the_start_and_is_named(rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBSERVE_DATA_ALLOW", rules)
    with pytest.raises(StartupRefused, match="DBSERVE_DATA_ALLOW"):
        read_settings()


def test_data_rules_are_read_once_and_told_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBSERVE_DATA_ALLOW", "s3://bucket/sets, /srv/data")
    settings = read_settings()
    assert str(settings.data_rules) == "builtin:,s3://bucket/sets,/srv/data"
    assert settings.environment()["DBSERVE_DATA_ALLOW"] == "s3://bucket/sets, /srv/data"

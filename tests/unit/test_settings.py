"""Settings come from the environment once, and complain by the variable's name."""

from pathlib import Path

import pytest

from dbserve.errors import StartupRefused
from dbserve.settings import read_settings, refuse_open_door

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

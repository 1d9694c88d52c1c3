"""Redis' users as they are printed. What they may do is tried in tests/integration/test_redis_users.py."""

import inspect
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from dbserve.errors import ConfigInvalid
from dbserve.store import keys
from dbserve.store.acl import USERS, acl_file, password_hashes

CHART = Path(__file__).parents[2] / "helm/dbserve/files/users.acl"


def every_key() -> list[str]:
    """One of each kind that keys.py knows."""
    fixed = [value for name, value in vars(keys).items() if name.isupper() and str(value).startswith("dbserve:")]
    made = [
        function(*("x" for _ in inspect.signature(function).parameters))
        for _, function in inspect.getmembers(keys, inspect.isfunction)
        if 'return f"dbserve:' in inspect.getsource(function)
    ]
    return fixed + made


def test_every_key_is_the_api_s_or_the_reconcilers() -> None:
    found = every_key()
    assert len(found) > 30
    theirs = [pattern for user in USERS if user.name in ("api", "reconciler") for pattern in user.keys]
    assert [
        key for key in found if not any(fnmatchcase(f"{key}:x" if key == keys.LIMITS else key, one) for one in theirs)
    ] == []


def test_the_charts_users_are_those_of_the_code() -> None:
    command = [sys.executable, "-m", "dbserve", "redis-acl", "--template"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert CHART.read_text() == printed, "python -m dbserve redis-acl --template > helm/dbserve/files/users.acl"


def test_passwords_come_from_the_environment_and_only_their_hashes_go_out() -> None:
    long = {name: f"{name}-has-a-long-password" for name in ("api", "reconciler", "worker")}
    environment = {f"DBSERVE_ACL_{name.upper()}_PASSWORD": word for name, word in long.items()}
    environment["DBSERVE_ACL_EXPORTER_PASSWORD_SHA256"] = "ab" * 32
    printed = acl_file(password_hashes(environment))
    assert [line.split()[1] for line in printed.splitlines()] == ["default", *long, "exporter"]
    assert f"#{'ab' * 32}" in printed
    assert not any(word in printed for word in long.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"DBSERVE_ACL_API_PASSWORD": ""}, "DBSERVE_ACL_API_PASSWORD is not set"),
        ({"DBSERVE_ACL_API_PASSWORD": "short"}, "at least 16"),
        ({"DBSERVE_ACL_WORKER_PASSWORD_SHA256": "no hash"}, "DBSERVE_ACL_WORKER_PASSWORD_SHA256 is no SHA-256"),
        ({"DBSERVE_ACL_WORKER_PASSWORD": "the-password-of-api"}, "the same password"),
    ],
)
def test_a_password_that_is_missing_short_or_shared_is_refused(changes: dict[str, str], said: str) -> None:
    environment = {
        "DBSERVE_ACL_API_PASSWORD": "the-password-of-api",
        "DBSERVE_ACL_RECONCILER_PASSWORD": "the-password-of-reconciler",
        "DBSERVE_ACL_WORKER_PASSWORD": "the-password-of-worker",
        **changes,
    }
    with pytest.raises(ConfigInvalid, match=said):
        password_hashes(environment)

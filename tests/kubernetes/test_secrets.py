"""Secrets that the chart makes: drawn once, kept at upgrades, and users of Redis that fit them."""

import base64
import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

from tests.kubernetes.chart import CHART, NAMESPACE, RELEASE, copy_of, kinds, render, rendered

LOOKUP = 'lookup "v1" "Secret" .root.Release.Namespace .secret'


def secrets(objects: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    return {each["metadata"]["name"]: each["stringData"] for each in kinds(objects, "Secret")}


def upgraded(directory: Path, there: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """What an upgrade renders where the cluster has these Secrets.

    Helm's engine asks no cluster here, so the one place that asks is answered from the values.
    """
    chart = directory / "dbserve"
    shutil.copytree(CHART, chart)
    names = chart / "templates/_names.tpl"
    text = names.read_text()
    assert text.count(LOOKUP) == 1
    names.write_text(text.replace(LOOKUP, "index .root.Values.there .secret"))
    (chart / "values.schema.json").unlink()
    found = {name: {"data": {key: _encoded(value) for key, value in data.items()}} for name, data in there.items()}
    manifests = helm.Chart.load(chart).render({"there": found}, name=RELEASE, namespace=NAMESPACE, is_upgrade=True)
    documents = yaml.safe_load_all(manifests["dbserve/templates/secrets.yaml"])
    return secrets([document for document in documents if document])


def _encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def test_each_install_draws_its_own_and_no_two_are_alike() -> None:
    first, second = secrets(render({})), secrets(render({}))
    drawn = [value for data in (*first.values(), *second.values()) for key, value in data.items() if key != "users.acl"]
    assert len(set(drawn)) == len(drawn) == 16
    assert all(len(value) == 48 for value in drawn)


def test_an_upgrade_keeps_what_is_there(tmp_path: Path) -> None:
    before = secrets(rendered("defaults"))
    assert upgraded(tmp_path, before) == before


def test_an_upgrade_draws_what_an_older_version_did_not_have(tmp_path: Path) -> None:
    before = secrets(copy_of("defaults"))
    del before["dbserve-redis"]["ray-password"]
    after = upgraded(tmp_path, before)
    new = after["dbserve-redis"].pop("ray-password")
    assert len(new) == 48
    assert hashlib.sha256(new.encode()).hexdigest() in after["dbserve-redis"].pop("users.acl")
    del before["dbserve-redis"]["users.acl"]
    assert after == before


def test_users_of_redis_have_the_hashes_of_their_passwords_and_nobodys_password() -> None:
    data = secrets(rendered("defaults"))["dbserve-redis"]
    hashes = dict(re.findall(r"^user (\S+) on #([0-9a-f]{64}) ", data["users.acl"], re.MULTILINE))
    wanted = {
        key.removesuffix("-password"): hashlib.sha256(value.encode()).hexdigest()
        for key, value in data.items()
        if key.endswith("-password")
    }
    assert hashes == wanted
    assert not any(value in data["users.acl"] for key, value in data.items() if key.endswith("-password"))
    assert "user default off" in data["users.acl"]


def test_nothing_is_drawn_where_secrets_are_named() -> None:
    assert secrets(rendered("secrets from elsewhere")) == {}

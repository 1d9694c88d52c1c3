"""The running service against its own OpenAPI document: whatever is sent, the answer is one that the document has."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fuzz.conftest import KEY
from tests.tenants import bearer

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]

CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = int(os.environ.get("DBSERVE_FUZZ_EXAMPLES", "15"))  # of each operation and phase; a soak takes thousands
NEVER_DONE = {"create_webhook", "delete_webhook"}  # a receiver would have to be outside this machine
STATE_DECIDES = {"delete_job", "retry_job", "retry_block", "report"}  # 409 to most jobs, and yet a job was there
SEED = int(os.environ.get("DBSERVE_FUZZ_SEED", "1"))


@pytest.fixture(scope="module")
def answered(server: str, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The fuzzer, when it has asked for everything."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{server}/openapi.json"),
        *("--header", f"Authorization: Bearer {KEY}"),
        *("--max-examples", str(EXAMPLES), "--seed", str(SEED), "--no-color"),
    ]
    webhooks = httpx.get(f"{server}/v1/webhooks", headers=bearer(KEY)).json()
    environment = {**os.environ, "DBSERVE_FUZZ_WEBHOOK": webhooks["data"][0]["id"]}
    directory = tmp_path_factory.mktemp("schemathesis")
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


def test_every_answer_is_one_that_the_document_has(answered: subprocess.CompletedProcess[str]) -> None:
    print(answered.stdout[-20000:], answered.stderr[-5000:])
    assert answered.returncode == 0, "what is above breaks the document's promise"


def test_the_requests_that_are_drawn_are_not_all_refused(
    server: str, answered: subprocess.CompletedProcess[str]
) -> None:
    """Or the test above would hold little: of each operation one at least was done."""
    assert "Seed:" in answered.stdout, "it came to its end"
    met: dict[tuple[str, str], set[str]] = {}
    shown = httpx.get(f"{server}/metrics", headers=bearer(KEY)).text
    for family in text_string_to_metric_families(shown):
        for sample in family.samples:
            if sample.name == "http_requests_total":
                labels = sample.labels
                met.setdefault((labels["method"], labels["route"]), set()).add(labels["code"])
    document = httpx.get(f"{server}/openapi.json").json()
    not_asked = {
        one["include-operation-id"] for one in tomllib.loads(CONFIG.read_text())["operations"] if "enabled" in one
    }
    for route, path in document["paths"].items():
        for method, operation in path.items():
            name, codes = operation["operationId"], met.get((method.upper(), route), set())
            if name not in not_asked | NEVER_DONE:
                done = {code for code in codes if code[0] == "2" or (code == "409" and name in STATE_DECIDES)}
                assert done, f"{name}: {sorted(codes)}"


def test_every_link_of_the_document_leads_to_an_operation_that_takes_its_parameter(server: str) -> None:
    document = httpx.get(f"{server}/openapi.json").json()
    operations: dict[str, Any] = {
        operation["operationId"]: operation for path in document["paths"].values() for operation in path.values()
    }
    links = [
        (link["operationId"], name)
        for operation in operations.values()
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
        for name in link["parameters"]
    ]
    assert len(links) > 10
    for target, name in links:
        assert name in {parameter["name"] for parameter in operations[target]["parameters"]}, target

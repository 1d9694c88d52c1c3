"""The running service against its own OpenAPI document: whatever is sent, the answer is one that the document has."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fuzz.conftest import KEY

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(3600)]

CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = int(os.environ.get("DBSERVE_FUZZ_EXAMPLES", "15"))  # of each operation and phase; a soak takes thousands
SEED = int(os.environ.get("DBSERVE_FUZZ_SEED", "1"))


def test_every_answer_is_one_that_the_document_has(server: str, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{server}/openapi.json"),
        *("--header", f"Authorization: Bearer {KEY}"),
        *("--max-examples", str(EXAMPLES), "--seed", str(SEED), "--no-color"),
    ]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    print(found.stdout[-20000:], found.stderr[-5000:])
    assert found.returncode == 0, "what is above breaks the document's promise"


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

"""The running service against its own OpenAPI document: whatever is sent, the answer is one that the document has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.conftest import KEY

pytestmark = pytest.mark.fuzz

CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = int(os.environ.get("DBSERVE_FUZZ_EXAMPLES", "15"))  # of each operation and phase; a soak takes thousands
SEED = int(os.environ.get("DBSERVE_FUZZ_SEED", "1"))


def test_every_answer_is_one_that_the_document_has(server: str, tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{server}/openapi.json"),
        *("--header", f"Authorization: Bearer {KEY}"),
        *("--max-examples", str(EXAMPLES), "--seed", str(SEED)),
    ]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    print(found.stdout[-20000:], found.stderr[-5000:])
    assert found.returncode == 0, "what is above breaks the document's promise"

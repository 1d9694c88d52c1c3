"""The panels of GPUs, whose exporter is not here: their queries are put to series as DCGM writes them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dashboards.hardware import of_gpu

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("DBSERVE_REQUIRE_SERVERS"),
    reason="promtool is not installed (apt install prometheus)",
)


def block(name: str, gpu: str, status: str, node: str = "n1") -> list[dict[str, str]]:
    labels = f'job_id="j", block="{name}"'
    return [
        {"series": f'dbserve_block_info{{{labels}, node="{node}", gpu_uuid="{gpu}"}}', "values": "1 1"},
        {"series": f'dbserve_block_status{{{labels}, status="{status}"}}', "values": "1 1"},
    ]


def test_a_gpus_numbers_appear_under_every_block_that_holds_it_and_no_other(tmp_path: Path) -> None:
    variables = {"job_id": ".+", "block": ".+", "node": "n1"}
    query = re.sub(r"\$([a-z_]\w*)", lambda found: variables[found[1]], of_gpu("DCGM_FI_DEV_GPU_UTIL", 0.01))
    gpus = [
        {
            "series": f'DCGM_FI_DEV_GPU_UTIL{{gpu="{place}", UUID="{uuid}", Hostname="h", pod="{pod}"}}',
            "values": "50 50",
        }
        for place, uuid, pod in ((0, "GPU-a", "x"), (1, "GPU-b", "x"), (1, "GPU-b", "y"), (2, "GPU-idle", "x"))
    ]
    series = [
        *gpus,
        *block("0", "GPU-a", "running"),
        *block("1", "GPU-b", "running"),  # half of GPU-b
        *block("2", "GPU-b", "running"),  # the other half
        *block("3", "GPU-a", "succeeded"),  # held it before block 0
        *block("4", "", "running"),  # trains on the CPU
        *block("5", "GPU-idle", "running", node="n2"),  # not a chosen node
    ]
    expected = [
        {"labels": f'{{job_id="j", block="{name}", gpu_uuid="{gpu}"}}', "value": 0.5}
        for name, gpu in (("0", "GPU-a"), ("1", "GPU-b"), ("2", "GPU-b"))
    ]
    asked = {"expr": query, "eval_time": "1m", "exp_samples": expected}
    tried = tmp_path / "gpu.yml"
    tried.write_text(
        yaml.safe_dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": [asked]}]})
    )
    done = subprocess.run(["promtool", "test", "rules", tried], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

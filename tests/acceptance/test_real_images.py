"""CIFAR-10 as JPEG shards through the whole service: a narrow network, trained briefly; it is about the road."""

import os
from pathlib import Path

import pytest

from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import JobStatus

pytestmark = pytest.mark.timeout(600)  # a shared machine can be three times slower than itself

SHARDS = Path(os.environ.get("DBSERVE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "cifar10"


@pytest.mark.skipif(not SHARDS.exists(), reason=f"the CIFAR-10 shards are not at {SHARDS}")
def test_cifar10_in_three_blocks_of_four_layers_runs_to_a_report(client: Client) -> None:
    spec = JobSpec.model_validate(
        {
            "name": "cifar10-road",
            "architecture": {
                "kind": "vit",
                "options": {"depth": 12, "width": 32, "heads": 2, "patch": 8, "mlp": 64},
            },
            "data": {"uri": f"{SHARDS}/train-*.parquet", "test_uri": f"{SHARDS}/test-*.parquet"},
            "blocks": {"count": 3},
            "training": {"steps": 40, "batch_size": 64},
            "evaluation": {"baselines": ["end_to_end"]},
        }
    )
    job = client.submit(spec)
    ended = client.wait(job.id, timeout=500)
    assert ended.status is JobStatus.SUCCEEDED, ended
    report = client.report(job.id)
    assert (report.train_rows, report.validation_rows, report.test_rows) == (45_000, 5_000, 10_000)
    assert (report.depth, report.blocks, report.classes) == (12, 3, 10)
    assert report.quality.end_to_end is not None

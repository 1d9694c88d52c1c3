"""One small job of every architecture through the whole service: submitted over REST, trained, examined, reported."""

import base64
import re
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dbserve.client import Client
from dbserve.contracts.job import JobSpec
from dbserve.contracts.report import Comparison, Report
from dbserve.contracts.status import JobStatus
from workers.held_out import BANDS

pytestmark = pytest.mark.timeout(900)  # a shared machine can be three times slower than itself

RHYME = (
    "one for the master, one for the dame, and one for the little boy who lives down the lane. "
    "baa, baa, black sheep, have you any wool? yes sir, yes sir, three bags full. "
)


@pytest.fixture
def rhymes(tmp_path: Path) -> str:
    """A shard of text that repeats itself, so that a small network learns something of it in seconds."""
    path = tmp_path / "rhymes.parquet"
    pq.write_table(pa.table({"text": [RHYME] * 200}), path)
    return str(path)


def report_of(client: Client, **job: Any) -> Report:
    submitted = client.submit(JobSpec.model_validate(job))
    ended = client.wait(submitted.id, timeout=800)
    assert ended.status is JobStatus.SUCCEEDED, (ended, client.events(submitted.id))
    looked_at = rf'dbserve_block_eval_loss{{block="\d",job_id="{submitted.id}",sigma_band='
    exposed = httpx.get(f"{client.base_url}/metrics").text
    assert len(re.findall(looked_at, exposed)) == BANDS * len(ended.blocks), "every block, by noise level"
    return client.report(submitted.id)


def text_job(kind: str, uri: str, **options: Any) -> dict[str, Any]:
    return {
        "name": f"{kind}-road",
        "architecture": {"kind": kind, "options": {"width": 32, "heads": 2, **options}},
        "data": {"uri": uri, "sequence_length": 32, "test_fraction": 0.1},
        "training": {"steps": 60, "batch_size": 16, "lr": 3e-3},
        "resources": {"cpus_per_block": 0.5},
    }


def values(report: Report, key: str) -> dict[str, float]:
    """A metric of every contestant that has it."""
    assert isinstance(report.quality, Comparison)
    return {one.key: one.values[key].value for one in report.quality.contestants if key in one.values}


def test_images_are_generated_and_compared(client: Client) -> None:
    report = report_of(
        client,
        name="dit-road",
        architecture={"kind": "dit", "options": {"depth": 4, "width": 32, "heads": 2, "patch": 2}},
        data={"uri": "builtin:digits"},
        blocks={"count": 2},
        training={"steps": 60, "batch_size": 32},
        resources={"cpus_per_block": 0.5},
        evaluation={
            "baselines": ["end_to_end", "shallow_ensemble", "shallow_long", "data_parallel"],
            "samples": 100,
            "sampling_steps": 8,
        },
    )
    quality = report.quality
    assert isinstance(quality, Comparison)
    assert quality.family == "generation"
    assert {"blocks", "end_to_end", "shallow_long", "data_parallel", "floor"} <= set(values(report, quality.primary))
    pictures = [base64.b64decode(sample.png) for sample in quality.samples if sample.png]
    assert pictures
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


def test_masked_text_is_bounded_in_bits_and_written(client: Client, rhymes: str) -> None:
    job = text_job("mdm", rhymes, depth=2)
    report = report_of(client, **job, blocks={"count": 2}, evaluation={"rows": 40, "samples": 4})
    assert isinstance(report.quality, Comparison)
    assert report.quality.family == "masked_text"
    assert 0 < values(report, report.quality.primary)["blocks"] < 5
    texts = [sample.text for sample in report.quality.samples if sample.text]
    assert texts
    assert all(re.fullmatch(r"[a-z ,.?⟦⟧]+", text) for text in texts), texts  # the shard's own letters, and no mask


@pytest.mark.parametrize(
    ("kind", "options", "blocks"), [("llama", {"depth": 2}, 2), ("recurrent", {"depth": 3, "core": 1}, 1)]
)
def test_the_next_token_is_predicted_and_compared(
    client: Client, rhymes: str, kind: str, options: dict[str, int], blocks: int
) -> None:
    job = text_job(kind, rhymes, **options)
    report = report_of(client, **job, blocks={"count": blocks}, evaluation={"rows": 40, "samples": 2})
    assert isinstance(report.quality, Comparison)
    assert report.quality.family == "next_token"
    assert report.experimental
    assert {"blocks", "end_to_end"} <= set(values(report, report.quality.primary))

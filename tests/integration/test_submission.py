"""A job's way in: what the API accepts, refuses and repeats, on a real Redis."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from dbserve.contracts.plan import JobPlan
from dbserve.contracts.views import JobView
from dbserve.jobfile import parse_job
from tests.shards import cycle, encoded, pixels, write_shard

JSON = {"Content-Type": "application/json"}
YAML = {"Content-Type": "application/yaml; charset=utf-8"}
DIGITS = """\
name: digits
labels: {team: a}
architecture: {kind: vit, options: {depth: 2, width: 16, heads: 2, patch: 4}}
data: {uri: "builtin:digits"}
blocks: {count: 2}
training: {steps: 20, batch_size: 32}
"""


async def listed(http: httpx.AsyncClient) -> list[str]:
    return [job["id"] for job in (await http.get("/v1/jobs")).json()["data"]]


async def test_a_job_is_accepted_with_its_place_and_reads_back(http: httpx.AsyncClient) -> None:
    accepted = await http.post("/v1/jobs", content=DIGITS, headers=YAML)
    assert accepted.status_code == 202
    job = JobView.model_validate_json(accepted.content)
    assert accepted.headers["location"] == f"/v1/jobs/{job.id}"
    assert job.status == "queued"
    assert [block.index for block in job.blocks] == [0, 1]
    assert (job.progress.step, job.progress.total) == (0, 20 * 5), "2 blocks, end-to-end, 2 shallow networks"
    assert (await http.get(accepted.headers["location"])).json() == accepted.json()


async def test_a_plan_is_answered_and_nothing_is_stored(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/plans", content=DIGITS, headers=YAML)
    plan = JobPlan.model_validate_json(response.content)
    assert [block.layers for block in plan.blocks] == [(0, 1), (1, 2)]
    assert plan.blocks[0].sigma_max == plan.contract.sigma_max
    assert await listed(http) == []


async def test_a_key_that_comes_again_makes_no_second_job_in_either_language(http: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k1"}
    as_json = parse_job(DIGITS.encode(), "yaml").model_dump_json()
    first = await http.post("/v1/jobs", content=DIGITS, headers={**YAML, **key})
    again = await http.post("/v1/jobs", content=as_json, headers={**JSON, **key})
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"


async def test_a_repeat_is_answered_when_its_shards_are_gone(http: httpx.AsyncClient, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "train.parquet", pixels(60, (8, 8, 1)), cycle(60))
    text = DIGITS.replace("builtin:digits", str(tmp_path))
    headers = {**YAML, "Idempotency-Key": "k1"}
    first = await http.post("/v1/jobs", content=text, headers=headers)
    shard.unlink()
    again = await http.post("/v1/jobs", content=text, headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]


async def test_the_same_post_fifty_times_at_once_makes_one_job(http: httpx.AsyncClient) -> None:
    headers = {**YAML, "Idempotency-Key": "k1"}
    answers = await asyncio.gather(*(http.post("/v1/jobs", content=DIGITS, headers=headers) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await listed(http)) == 1


async def test_a_key_with_another_body_is_refused(http: httpx.AsyncClient) -> None:
    headers = {**YAML, "Idempotency-Key": "k1"}
    await http.post("/v1/jobs", content=DIGITS, headers=headers)
    other = await http.post("/v1/jobs", content=DIGITS.replace("steps: 20", "steps: 21"), headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    assert len(await listed(http)) == 1


@pytest.mark.parametrize(
    ("old", "new", "pointer"),
    [
        ("kind: vit", "kind: perceptron", "/architecture/kind"),
        ("steps: 20", "stepz: 20", "/training/stepz"),
        ("width: 16", "widht: 16", "/architecture/options/widht"),
        ("steps: 20", "steps: .nan", "/training/steps"),
        ("steps: 20", "steps: 20, lr: 1e999", "/training/lr"),
        ("steps: 20", "steps: -20", "/training/steps"),
        ("depth: 2", "depth: 1000000000", "/architecture/options/depth"),
        ("count: 2", "count: 1000000000", "/blocks/count"),
        ("count: 2", "layers: [1, 1000000000]", "/blocks/layers"),
        ("depth: 2", "depth: 3", "/blocks/count"),
        ("heads: 2", "heads: 3", "/architecture/options/heads"),
        ("count: 2", "count: 2, train: [2]", "/blocks/train"),
        ("batch_size: 32", "batch_size: 100000", "/training/batch_size"),
        ('builtin:digits"', 'builtin:digits", sequence_length: 64', "/data/sequence_length"),
        ("builtin:digits", "/nowhere/*.parquet", "/data/uri"),
        ("builtin:digits", "builtin:letters", "/data/uri"),
        ("patch: 4", "patch: 3", "/architecture/options/patch"),
    ],
)
async def test_bad_input_is_pointed_at_and_leaves_nothing_behind(
    http: httpx.AsyncClient, old: str, new: str, pointer: str
) -> None:
    assert old in DIGITS
    for path in ("/v1/plans", "/v1/jobs"):
        began = time.monotonic()
        response = await http.post(path, content=DIGITS.replace(old, new), headers=YAML)
        assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
        assert any(error["pointer"].startswith(pointer) for error in response.json()["errors"]), response.text
        assert time.monotonic() - began < 5.0, "refused by arithmetic"
    assert await listed(http) == []


@pytest.mark.parametrize("content", [b"", b"PAR1 this is no parquet file PAR1", b"PAR1"])
async def test_an_empty_or_corrupt_shard_is_refused(http: httpx.AsyncClient, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "shard.parquet").write_bytes(content)
    job = DIGITS.replace("builtin:digits", f"{tmp_path}/*.parquet")
    response = await http.post("/v1/jobs", content=job, headers=YAML)
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["pointer"] == "/data/uri"
    assert await listed(http) == []


SMALL = pixels(40, (8, 8, 1))


@pytest.mark.parametrize(
    ("shards", "complaint"),
    [
        ([(SMALL, [*cycle(39), 3])], "label"),
        ([(SMALL, [*cycle(39), -1])], "label"),
        ([(SMALL, cycle(40)), (pixels(40, (8, 6, 1)), cycle(40))], "image_shape"),
        ([(SMALL, cycle(40)), (encoded(SMALL), cycle(40))], ""),
        ([(SMALL[:0], [])], "no row"),
    ],
    ids=["label too large", "label negative", "another shape", "another encoding", "no rows"],
)
async def test_shards_that_do_not_fit_are_refused_before_a_job_exists(
    http: httpx.AsyncClient, tmp_path: Path, shards: list[tuple[Any, list[int]]], complaint: str
) -> None:
    for index, (images, labels) in enumerate(shards):
        write_shard(tmp_path / f"shard-{index}.parquet", images, labels)
    response = await http.post("/v1/jobs", content=DIGITS.replace("builtin:digits", str(tmp_path)), headers=YAML)
    assert response.status_code == 422, response.text
    (error,) = response.json()["errors"]
    assert error["pointer"] == "/data/uri"
    assert complaint in error["message"]
    assert await listed(http) == []

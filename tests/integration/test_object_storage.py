"""Artefacts in object storage: on a real server that speaks S3, damaged, stopped, and gone."""

import logging
import tarfile
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest

from dbserve.api.app import create_app
from dbserve.artefacts import Artefacts, open_artefacts
from dbserve.artefacts import objects as objects_module
from dbserve.contracts.snapshot import ModelRecord
from dbserve.contracts.status import CheckpointRef
from dbserve.errors import CheckpointInvalid, StorageError
from dbserve.settings import read_settings
from dbserve.store import JobStore
from tests.artefacts import save
from tests.attempts import STEPS, TASK, OneTask, Orders, attempt, final_state, save_before_going_on, training_spec
from tests.integration.serving import start, submitted
from tests.jobs import small_plan
from tests.object_storage import BUCKET, ObjectStorage, object_storage
from tests.training import planned, run, same
from workers.assemble import MODEL, assemble, load_model
from workers.checkpoint import MANIFEST, OPTIMIZER, SUMMARY, WEIGHTS, TrainingState, load, verify
from workers.pulse import Order

SPEC = training_spec()
PLACE = "jobs/job/block-0/attempt-1/step-00000010-aa"
CONTENT = {WEIGHTS, OPTIMIZER, SUMMARY}


@pytest.fixture(autouse=True)
def fast_store(monkeypatch: pytest.MonkeyPatch) -> None:
    save_before_going_on(monkeypatch)


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStorage]:
    with object_storage() as running:
        yield running


@pytest.fixture
def prefix() -> str:
    return f"roots/{uuid.uuid4().hex}"


@pytest.fixture
def artefacts(server: ObjectStorage, prefix: str) -> Artefacts:
    return open_artefacts(server.location(prefix))


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does, no local copy is left behind."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    yield
    assert not [left for home in (tmp_path / "tmp").glob("dbserve-scratch-*") for left in home.iterdir()]


@pytest.fixture(scope="module")
def trained() -> TrainingState:
    return run(SPEC, TASK)[-1][1]


@pytest.fixture
def saved(artefacts: Artefacts, trained: TrainingState) -> CheckpointRef:
    return save(artefacts, PLACE, trained, planned(SPEC), run="job/block-0/1")


def loaded(artefacts: Artefacts, ref: CheckpointRef) -> TrainingState:
    with artefacts.fetch(ref.path) as directory:
        return load(directory, contract=planned(SPEC).contract, expect_sha256=ref.sha256)


# --- one checkpoint


def test_what_is_loaded_is_bit_for_bit_what_was_saved(
    artefacts: Artefacts, saved: CheckpointRef, trained: TrainingState
) -> None:
    found = loaded(artefacts, saved)
    assert same(found, trained)
    assert found.summary == trained.summary


def test_the_manifest_is_written_when_all_else_is_there(
    server: ObjectStorage, prefix: str, artefacts: Artefacts, trained: TrainingState, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying: list[set[str]] = []
    here = f"{prefix}/{PLACE}"
    monkeypatch.setattr(objects_module, "failpoint", lambda _: lying.append(server.keys(here)))
    save(artefacts, PLACE, trained, planned(SPEC), run="job/block-0/1")
    assert lying == [{f"{here}/{name}" for name in CONTENT}]
    assert server.keys(here) == {f"{here}/{name}" for name in CONTENT | {MANIFEST}}


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, SUMMARY, MANIFEST])
def test_damage_to_any_object_is_refused_naming_it(
    server: ObjectStorage, prefix: str, artefacts: Artefacts, saved: CheckpointRef, name: str
) -> None:
    key = f"{prefix}/{saved.path}/{name}"
    whole = server.read(key)
    for damaged in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1]):
        server.write(key, damaged)
        with pytest.raises(CheckpointInvalid, match=name):
            loaded(artefacts, saved)
    server.files.delete_file(f"{BUCKET}/{key}")
    with pytest.raises(CheckpointInvalid, match=name):
        loaded(artefacts, saved)
    server.write(key, whole)
    with artefacts.fetch(saved.path) as directory:
        verify(directory, contract=planned(SPEC).contract, expect_sha256=saved.sha256)


# --- the store itself


def test_directories_are_listed_read_and_removed(artefacts: Artefacts, saved: CheckpointRef, prefix: str) -> None:
    assert artefacts.names("jobs/job/block-0") == ("attempt-1",)
    assert {file.name for file in artefacts.files("jobs/job")} == {
        f"block-0/attempt-1/step-00000010-aa/{name}" for name in CONTENT | {MANIFEST}
    }
    assert b"".join(artefacts.read(f"{saved.path}/{MANIFEST}")).startswith(b"{")
    for _ in range(2):
        artefacts.remove("jobs/job")
    assert artefacts.names("jobs") == ()
    assert artefacts.names("jobs/job/block-0") == ()


def test_a_bucket_or_a_job_that_is_not_there_is_no_damaged_checkpoint(
    server: ObjectStorage, saved: CheckpointRef
) -> None:
    for location, why in (
        (server.location("another/root"), "nothing of jobs/job is in"),
        (server.location("x").replace(f"@{BUCKET}/", "@nowhere/"), "no bucket 'nowhere'"),
    ):
        with pytest.raises(StorageError, match=why), open_artefacts(location).fetch(saved.path):
            pass


def test_credentials_are_in_no_message(server: ObjectStorage) -> None:
    away = open_artefacts(f"s3://keyword:hush@{BUCKET}/x?scheme=http&endpoint_override=127.0.0.1:9&region=us-east-1")
    with pytest.raises(StorageError) as refused:
        away.check()
    assert "hush" not in f"{refused.value} {refused.value.__cause__}"
    assert "keyword" not in f"{refused.value} {refused.value.__cause__}"


# --- attempts


async def test_a_training_leaves_its_last_checkpoints_and_removes_what_was_cut_short(
    server: ObjectStorage, prefix: str, artefacts: Artefacts, trained: TrainingState
) -> None:
    home = f"{prefix}/jobs/job/block-0"
    server.write(f"{home}/attempt-1/step-00000007-bb/{WEIGHTS}", b"cut short")
    server.write(f"{home}/attempt-2/step-00000007-cc/{WEIGHTS}", b"a later attempt's")
    store = OneTask(SPEC)
    await attempt(store, artefacts, SPEC)
    kept = {f"{prefix}/{ref.path}/{name}" for ref in store.task.checkpoints for name in CONTENT | {MANIFEST}}
    assert server.keys(home) == kept | {f"{home}/attempt-2/step-00000007-cc/{WEIGHTS}"}
    assert [ref.step for ref in store.task.checkpoints] == [8, 10]
    assert same(final_state(artefacts, store.task, SPEC), trained)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-1], lambda whole: whole[:-1] + bytes([whole[-1] ^ 1])])
async def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(
    server: ObjectStorage, prefix: str, artefacts: Artefacts, trained: TrainingState, damage: object
) -> None:
    store = OneTask(SPEC)
    await attempt(store, artefacts, SPEC)
    store.lose()
    tenth = store.task.checkpoints[-1]
    key = f"{prefix}/{tenth.path}/{WEIGHTS}"
    server.write(key, damage(server.read(key)))  # pyright: ignore[reportCallIssue]
    await attempt(store, artefacts, SPEC)
    (restored,) = store.restored
    assert (restored.step, [lost.path for lost in restored.lost]) == (8, [tenth.path])
    assert same(final_state(artefacts, store.task, SPEC), trained)


async def test_a_server_that_is_stopped_costs_checkpoints_and_no_training(caplog: pytest.LogCaptureFixture) -> None:
    """It has forgotten all when it comes back; what is committed afterwards is whole."""
    caplog.set_level(logging.WARNING)
    spec, store = training_spec(checkpoint={"every_steps": 4, "keep_last": 1}), OneTask(SPEC)
    with object_storage() as server:

        def stop_and_start(step: int) -> Order:
            if step == 6:
                server.stop()
            if step == 9:
                server.start()
            return Order.GO

        artefacts = open_artefacts(server.location("root"))
        pulse = Orders(stop_and_start)
        await attempt(store, artefacts, spec, pulse)
        assert pulse.steps == list(range(1, STEPS + 1))
        assert (store.saved_steps, store.failed_steps) == ([4, 10], [8])
        assert final_state(artefacts, store.task, spec).step == STEPS
    assert "the checkpoint of step 8 could not be saved" in caplog.text
    assert "secret" not in caplog.text


async def test_a_server_that_is_away_is_not_taken_for_lost_checkpoints(artefacts: Artefacts) -> None:
    store = OneTask(SPEC)
    await attempt(store, artefacts, SPEC)
    store.lose()
    away = open_artefacts(f"s3://key:secret@{BUCKET}/x?scheme=http&endpoint_override=127.0.0.1:9&region=us-east-1")
    with pytest.raises(StorageError):
        await attempt(store, away, SPEC)
    assert not store.events


# --- models


@pytest.fixture
def finals(artefacts: Artefacts) -> dict[int, CheckpointRef]:
    plan = planned(SPEC)
    return {
        block.index: save(
            artefacts, f"jobs/job/block-{block.index}/attempt-1/step-00000010-aa",
            run(SPEC, f"block-{block.index}")[-1][1], plan, run=f"job/block-{block.index}/1",
        )
        for block in plan.blocks
    }  # fmt: skip


def test_a_model_is_assembled_once_and_replaced_where_it_is_damaged(
    server: ObjectStorage, prefix: str, artefacts: Artefacts, finals: dict[int, CheckpointRef]
) -> None:
    plan, file = planned(SPEC), f"{prefix}/models/job/block-1.safetensors"
    made = assemble(plan, artefacts, finals, "models/job", job_id="job")
    whole = server.read(file)
    first = server.files.get_file_info(f"{BUCKET}/{file}").mtime
    assert assemble(plan, artefacts, finals, "models/job", job_id="job") == made
    assert server.files.get_file_info(f"{BUCKET}/{file}").mtime == first, "what is whole is not written again"
    server.write(file, whole[:-1])
    assemble(plan, artefacts, finals, "models/job", job_id="job")
    assert server.read(file) == whole
    with artefacts.fetch("models/job") as directory:
        manifest, blocks = load_model(directory, contract=plan.contract)
    assert [entry.checkpoint for entry in manifest.blocks] == list(finals.values())
    assert len(blocks) == len(finals)


@pytest.fixture
async def http(
    redis_url: str, server: ObjectStorage, prefix: str, store: JobStore, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    chosen = read_settings(redis_url=redis_url, artifacts=server.location(prefix), cache_dir=tmp_path / "cache")
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(chosen, store)), base_url="http://localhost"
    ) as api:
        yield api


async def test_a_model_is_downloaded_from_object_storage(
    http: httpx.AsyncClient, store: JobStore, artefacts: Artefacts
) -> None:
    job_id = await submitted(store)
    worker = await start(store, job_id, "block-0")
    content = {"block-0.safetensors": bytes(3_000_000), MODEL: b"{}"}
    with artefacts.whole(f"models/{job_id}", last=MODEL) as staged:
        for name, data in content.items():
            (staged / name).write_bytes(data)
    model = ModelRecord(
        id=job_id, job_id=job_id, name="digits", version=1, created_at=1.0,
        contract_hash=small_plan().contract_hash, path=f"models/{job_id}", manifest={},
    )  # fmt: skip
    await store.results.save_model(worker, model)
    answer = await http.get(f"/v1/models/{job_id}/download")
    assert (answer.status_code, len(answer.content)) == (200, int(answer.headers["content-length"]))
    with tarfile.open(fileobj=BytesIO(answer.content)) as tar:
        found = {name: tar.extractfile(f"{job_id}/{name}") for name in content}
        assert {name: file.read() for name, file in found.items() if file is not None} == content


async def test_the_service_is_ready_when_the_bucket_is_there(http: httpx.AsyncClient) -> None:
    assert (await http.get("/readyz")).json() == {"status": "ready", "missing": {}}

"""A user's way from a job file to a report, over REST."""

import json
import re
from pathlib import Path

import httpx
import psutil
import pytest

from dbserve.client import Client, NotFound
from dbserve.contracts.job import JobSpec
from dbserve.contracts.status import JobStatus, TaskState
from tests.acceptance.conftest import Service
from tests.acceptance.jobs import digits_job, long_job
from tests.waiting import wait_for

pytestmark = pytest.mark.timeout(600)  # a shared machine can be three times slower than itself

JOB_SECONDS = 400.0


@pytest.fixture(scope="module")
def finished(service: Service) -> str:
    """A job with both baselines and a trunk, run to its end."""
    spec = digits_job(
        name="journey",
        labels={"suite": "acceptance"},
        blocks={"count": 2, "branch": {"steps": 20}},
        evaluation={"baselines": ["end_to_end", "shallow_ensemble"]},
    )
    with service.client() as client:
        job = client.submit(spec)
        assert client.wait(job.id, timeout=JOB_SECONDS).status is JobStatus.SUCCEEDED, client.job(job.id)
    return job.id


def test_a_job_leaves_a_report_with_every_baseline(client: Client, finished: str) -> None:
    report = client.report(finished)
    assert report.quality.end_to_end is not None
    assert report.quality.shallow_ensemble is not None
    assert 0.0 < report.memory.ratio < 1.0
    assert report.memory.ratio_kind == "measured"
    assert {row.task for row in report.cost} == {"trunk", "block-0", "block-1", "end_to_end", "shallow-0", "shallow-1"}
    assert [block.index for block in report.diagnosis] == [0, 1]
    assert report.quality.chain.accuracy > 0.2, "far better than the tenth that guessing gives"


def test_the_report_is_also_a_page_that_needs_nothing_else(client: Client, finished: str) -> None:
    page = client.report_html(finished)
    assert page.startswith("<!doctype html>")
    assert not re.search(r"""(?:src|href)=["']?https?:""", page)


def test_every_task_tells_its_whole_story_in_the_events(client: Client, finished: str) -> None:
    events = list(client.events(finished))
    assert events[0].kind == "job_created"
    assert (events[-1].kind, events[-1].job_status) == ("job_finished", JobStatus.SUCCEEDED)
    for task in ("trunk", "block-0", "end_to_end"):
        kinds = [event.kind for event in events if event.task == task]
        assert kinds[:2] == ["launched", "started"]
        assert kinds[-1] == "finished"
        assert "checkpointed" in kinds
    middle = len(events) // 2
    assert [event.id for event in client.events(finished, after=events[middle].id)] == [
        event.id for event in events[middle + 1 :]
    ]


def test_blocks_start_only_when_their_trunk_is_done(client: Client, finished: str) -> None:
    events = list(client.events(finished))
    trunk_done = next(i for i, event in enumerate(events) if (event.task, event.kind) == ("trunk", "finished"))
    starts = [i for i, event in enumerate(events) if event.kind == "launched" and str(event.task).startswith("block-")]
    assert min(starts) > trunk_done


def test_the_model_can_be_fetched_and_loaded(client: Client, finished: str, tmp_path: Path) -> None:
    from workers.assemble import load_model

    directory = client.download_model(client.report(finished).model_id, tmp_path)
    manifest, blocks = load_model(directory)
    assert len(blocks) == 2
    assert manifest.contract_hash == client.job(finished).contract_hash


def test_what_workers_said_can_be_read_when_they_are_gone(client: Client, finished: str) -> None:
    lines = [line.message for line in client.logs(finished, task="block-0")]
    assert any("begins" in line for line in lines)
    assert any("has finished" in line for line in lines)


def test_what_the_service_writes_about_a_job_names_it_and_holds_nothing_that_was_sent(
    service: Service, finished: str
) -> None:
    logs = {name: (service.data_dir / "logs" / f"{name}.log").read_text() for name in ("api", "reconciler")}
    lines = {name: [json.loads(line) for line in log.splitlines() if line[0] == "{"] for name, log in logs.items()}
    assert all({"timestamp", "level", "event", "logger"} <= line.keys() for log in lines.values() for line in log)
    about = [line for line in lines["reconciler"] if line.get("job_id") == finished]
    launched = {(line["task"], line["block"], line["attempt"]) for line in about if line["event"].startswith("launch")}
    assert {("trunk", "trunk", 1), ("block-0", "0", 1), ("end_to_end", "end_to_end", 1)} <= launched
    requests = [line for line in lines["api"] if line["logger"] == "dbserve.access"]
    asked = {(line["method"], line["route"], line["status"]) for line in requests if line.get("job_id") == finished}
    assert ("GET", "/v1/jobs/{job_id}", 200) in asked
    assert ("POST", "/v1/jobs", 202) in {(line["method"], line["route"], line["status"]) for line in requests}
    assert all(line["duration_seconds"] >= 0 and line["request_id"] for line in requests if line["event"] == "request")
    assert "journey" not in logs["api"], "the job's name was in a body"


def test_the_course_of_every_training_can_be_read_when_it_is_over(client: Client, finished: str) -> None:
    courses = {task.name: task for task in client.metrics(finished, points=10).tasks}
    assert {"trunk", "block-0", "block-1", "end_to_end"} <= courses.keys()
    for course in courses.values():
        assert (course.points[0].step, course.points[-1].step) == (1, course.total)
        assert len(course.points) == 10
        assert all(point.loss and point.memory_bytes and point.host_memory_bytes for point in course.points)
        assert course.points[-1].samples_per_second


def test_prometheus_sees_memory_and_throughput_of_every_block(service: Service, finished: str) -> None:
    text = httpx.get(f"{service.url}/metrics").text
    for block in ("0", "1"):
        labels = rf'{{block="{block}",job_id="{finished}"}}'
        assert re.search(rf"^dbserve_block_samples_total{labels} 3840\.0$", text, re.M), "60 steps x 64 samples"
        assert re.search(
            rf'^dbserve_block_memory_bytes{{block="{block}",job_id="{finished}",kind="peak"}} \d', text, re.M
        )


def test_a_repeated_submit_with_its_key_makes_no_second_job(client: Client) -> None:
    spec = long_job(name="once")
    first, second = client.submit(spec, "the-same-key"), client.submit(spec, "the-same-key")
    client.cancel(first.id)
    assert first.id == second.id


def test_a_cancelled_job_leaves_no_process(client: Client, service: Service) -> None:
    job = client.submit(long_job(name="to-cancel"))
    wait_for(
        lambda: all(block.status is TaskState.RUNNING and block.step > 0 for block in client.blocks(job.id)),
        seconds=120,
        what="both blocks train",
    )
    pids = [block.pid for block in client.blocks(job.id)]
    client.cancel(job.id)
    assert client.wait(job.id, timeout=60).status is JobStatus.CANCELLED
    assert not [pid for pid in pids if pid is not None and _is_training(pid)], "cancelled means gone"
    client.delete(job.id)
    with pytest.raises(NotFound):
        client.job(job.id)
    directory = service.data_dir / "artifacts" / "jobs" / job.id
    wait_for(lambda: not directory.exists(), seconds=10, what="its checkpoints are removed")


def _is_training(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and "BlockActor" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_two_blocks_are_two_processes_that_never_talk_to_each_other(client: Client) -> None:
    job = client.submit(long_job(name="isolated"))
    wait_for(
        lambda: all(block.status is TaskState.RUNNING and block.step > 100 for block in client.blocks(job.id)),
        seconds=120,
        what="both blocks train",
    )
    first, second = (psutil.Process(block.pid) for block in client.blocks(job.id))
    ours = {c.laddr.port for c in first.net_connections("tcp") if c.laddr}
    theirs = {c.laddr.port for c in second.net_connections("tcp") if c.laddr}
    crossing = [c for c in first.net_connections("tcp") if c.raddr and c.raddr.port in theirs]
    crossing += [c for c in second.net_connections("tcp") if c.raddr and c.raddr.port in ours]
    writable = [
        {
            m.path
            for m in process.memory_maps(grouped=False)
            if "w" in m.perms and "s" in m.perms and m.path.startswith("/")
        }
        for process in (first, second)
    ]
    client.cancel(job.id)
    client.wait(job.id, timeout=60)
    assert first.pid != second.pid
    assert crossing == [], "no gradient can travel where there is no connection"
    trained = {path for path in writable[0] & writable[1] if "plasma" not in path and "/dev/shm" not in path}
    assert trained == set(), "no file is mapped writable by both: no parameter is shared"


def test_a_job_for_gpus_that_are_not_there_says_so(client: Client) -> None:
    job = client.submit(digits_job(name="no-gpu", resources={"gpus_per_block": 8.0}))
    wait_for(lambda: client.job(job.id).message is not None, seconds=20, what="a reason")
    said = client.job(job.id)
    client.cancel(job.id)
    assert said.reason == "unschedulable"
    assert "8 GPUs" in str(said.message)


def test_a_block_that_diverges_fails_with_its_reason(client: Client) -> None:
    spec = JobSpec.model_validate(
        {
            **digits_job(name="diverges").model_dump(mode="json"),
            "training": {"steps": 400, "batch_size": 64, "lr": 10.0, "grad_clip": None, "weight_decay": 10.0},
        }
    )
    job = client.submit(spec)
    ended = client.wait(job.id, timeout=JOB_SECONDS)
    assert (ended.status, ended.reason) == (JobStatus.FAILED, "nonfinite_loss")
    assert {task.attempt for task in ended.blocks} == {1}, "another attempt could not mend it"

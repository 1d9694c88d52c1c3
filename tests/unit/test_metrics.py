"""The exposition: read back by Prometheus' own parser."""

from collections.abc import Iterable

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from dbserve.contracts.snapshot import JobOutline, JobSnapshot
from dbserve.contracts.status import MemoryBytes, Reason, TaskState
from dbserve.metrics import HttpMetrics, WorkDone, render
from tests.jobs import small_plan
from tests.snapshots import NOW, baselines_spec, checkpoint, memory, running, snapshot

Labels = frozenset[tuple[str, str]]


def exposed(jobs: Iterable[JobOutline] | None, work: WorkDone | None = None, http: HttpMetrics | None = None) -> str:
    jobs = None if jobs is None else list(jobs)
    return render("", http or HttpMetrics(), work or WorkDone(), jobs)[0].decode()


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(text: str, sample_name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == sample_name and sample.labels == labels:
                return sample.value
    return None


def a_running_job() -> JobSnapshot:
    told = {
        "samples_total": 320, "loss": 1.25, "grad_norm": 0.5, "learning_rate": 1e-3,
        "last_step_at": NOW + 1, "data_wait_seconds_total": 0.25,
        "memory": MemoryBytes(parameters=10, gradients=11, optimizer=22, activations=57, host=1000),
    }  # fmt: skip
    block = {**running(10, 64.0, **told), "checkpoints": (checkpoint(5),), "restarts": {Reason.WORKER_LOST: 2}}
    return snapshot(
        block__0=block, end_to_end=running(3, 32.0, memory=memory(250)), block__1=running(1, memory=memory(50))
    )


def test_a_running_block_is_told_in_full() -> None:
    text = exposed([a_running_job()])
    block = {"job_id": "j1", "block": "0"}
    plan = small_plan(baselines_spec())
    assert value(text, "dbserve_block_steps_total", **block) == 10
    assert value(text, "dbserve_block_target_steps", **block) == 20
    assert value(text, "dbserve_block_samples_total", **block) == 320
    assert value(text, "dbserve_block_loss", **block) == 1.25
    assert value(text, "dbserve_block_grad_norm", **block) == 0.5
    assert value(text, "dbserve_block_learning_rate", **block) == 1e-3
    assert value(text, "dbserve_block_heartbeat_timestamp_seconds", **block) == NOW
    assert value(text, "dbserve_block_last_step_timestamp_seconds", **block) == NOW + 1
    assert value(text, "dbserve_block_last_checkpoint_timestamp_seconds", **block) == NOW
    assert value(text, "dbserve_block_data_wait_seconds_total", **block) == 0.25
    assert value(text, "dbserve_block_host_memory_bytes", **block) == 1000
    assert value(text, "dbserve_block_restarts_total", **block, reason="worker_lost") == 2
    kinds = {"parameters": 10, "gradients": 11, "optimizer": 22, "activations": 57, "peak": 100}
    for kind, size in {**kinds, "predicted": plan.blocks[0].memory.total}.items():
        assert value(text, "dbserve_block_memory_bytes", **block, kind=kind) == size, kind


def test_a_status_is_one_for_the_state_a_block_is_in_and_zero_for_the_others() -> None:
    text = exposed([a_running_job()])
    shown = {
        state: value(text, "dbserve_block_status", job_id="j1", block="0", status=state.value) for state in TaskState
    }
    assert shown == {state: float(state is TaskState.RUNNING) for state in TaskState}


def test_what_changes_sits_in_the_info_series_alone() -> None:
    found = families(exposed([a_running_job()]))
    (info,) = [s for s in found["dbserve_block_info"].samples if s.labels["block"] == "0"]
    assert info.labels["node"] == "n1"
    assert info.labels["layers"] == "0-1"
    allowed = {"job_id", "block", "status", "reason", "kind"}
    for name, family in found.items():
        if name.startswith("dbserve_block_") and name != "dbserve_block_info":
            assert {label for sample in family.samples for label in sample.labels} <= allowed, name


def test_the_baseline_can_be_plotted_beside_the_blocks_and_the_ratio_is_measured() -> None:
    text = exposed([a_running_job()])
    assert value(text, "dbserve_block_memory_bytes", job_id="j1", block="end_to_end", kind="peak") == 250
    assert value(text, "dbserve_job_memory_ratio", job_id="j1", kind="measured") == pytest.approx(0.4)
    assert value(text, "dbserve_job_memory_ratio", job_id="j1", kind="predicted") == small_plan().memory_ratio


def test_jobs_and_blocks_are_counted_by_status_with_zeros() -> None:
    text = exposed([a_running_job()])
    assert value(text, "dbserve_jobs", status="running") == 1
    assert value(text, "dbserve_jobs", status="failed") == 0
    assert value(text, "dbserve_blocks", status="running") == 2, "the baseline is no block"


def test_a_job_that_has_not_begun_is_counted_and_has_no_series() -> None:
    queued = snapshot()
    outline = JobOutline(**{name: getattr(queued, name) for name in JobOutline.model_fields})
    text = exposed([outline, a_running_job()])
    assert value(text, "dbserve_jobs", status="queued") == 1
    assert value(text, "dbserve_blocks", status="pending") == 2
    assert text.count("dbserve_block_loss{") == 1


def test_a_counter_of_work_does_not_fall_when_an_attempt_resumes_from_a_checkpoint() -> None:
    work = WorkDone()
    shown: list[float | None] = []
    for step, attempt in ((10, 1), (5, 2), (8, 2), (20, 2)):
        block = {**running(step), "attempt": attempt}
        shown.append(
            value(exposed([snapshot(block__0=block)], work), "dbserve_block_steps_total", job_id="j1", block="0")
        )
    assert shown == [10, 10, 13, 25]


def test_the_series_of_a_job_that_is_gone_are_gone() -> None:
    work = WorkDone()
    assert 'job_id="j1"' in exposed([a_running_job()], work)
    assert 'job_id="j1"' not in exposed([], work)


def test_without_redis_the_process_still_tells_of_itself() -> None:
    http = HttpMetrics()
    http.observe("GET", "/v1/jobs", 503, 0.01)
    text = exposed(None, http=http)
    assert value(text, "dbserve_redis_up") == 0
    assert value(text, "http_requests_total", method="GET", route="/v1/jobs", code="503") == 1
    assert value(exposed([]), "dbserve_redis_up") == 1


def test_an_invented_method_makes_no_new_series() -> None:
    http = HttpMetrics()
    for method in ("FOO", "BAR"):
        http.observe(method, "unmatched", 404, 0.01)
    assert value(exposed([], http=http), "http_requests_total", method="other", route="unmatched", code="404") == 2


def test_every_family_has_a_known_name_a_meaning_and_a_type() -> None:
    found = families(exposed([a_running_job()]))
    for name, family in found.items():
        assert name.startswith(("dbserve_", "http_")), name
        assert family.documentation, name
        assert family.type in {"gauge", "counter", "histogram"}, name

"""The exposition: read back by Prometheus' own parser."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from dbserve.contracts.snapshot import JobOutline, JobSnapshot
from dbserve.contracts.status import MemoryBytes, Reason, Replica, TaskState
from dbserve.contracts.work import SAVE_BOUNDS, STEP_BOUNDS, BandLoss, CheckpointStage, Durations, Work
from dbserve.metrics import HttpMetrics, Scrape, render
from dbserve.store.counters import Totals
from tests.jobs import small_plan
from tests.snapshots import NOW, baselines_spec, checkpoint, memory, running, snapshot

DOCS = Path(__file__).parents[2] / "docs"
TRAINED_TASKS = ("block__0", "block__1", "end_to_end", "shallow__0", "shallow__1")

Labels = frozenset[tuple[str, str]]


def exposed(
    jobs: Iterable[JobOutline] | None, http: HttpMetrics | None = None, totals: Mapping[str, str] | None = None
) -> str:
    scrape = None if jobs is None else Scrape(list(jobs), Totals(totals or {}))
    return render("", http or HttpMetrics(), scrape)[0].decode()


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
        "last_step_at": NOW + 1, "eval_loss": (BandLoss(low=0.002, high=0.05, loss=0.5),),
        "work": Work(
            steps=10, samples=320, step_seconds=Durations().observed(0.03, STEP_BOUNDS, 9).observed(0.3, STEP_BOUNDS),
            data_wait_seconds=0.25, read_bytes=7000, save_seconds=Durations().observed(2.0, SAVE_BOUNDS),
            failed_checkpoints={CheckpointStage.OVERRUN: 1},
        ),
        "memory": MemoryBytes(parameters=10, gradients=11, optimizer=22, activations=57, host=1000, device=8000),
    }  # fmt: skip
    block = {**running(10, 64.0, **told), "checkpoints": (checkpoint(5),), "restarts": {Reason.WORKER_LOST: 2}}
    return snapshot(
        block__0=block, end_to_end=running(3, 32.0, memory=memory(250)), block__1=running(1, memory=memory(50))
    ).model_copy(update={"past": {"block-0": Work(steps=4, samples=128, nonfinite_steps=1)}})


def test_a_running_block_is_told_in_full() -> None:
    text = exposed([a_running_job()])
    block = {"job_id": "j1", "block": "0"}
    plan = small_plan(baselines_spec())
    assert value(text, "dbserve_block_steps_total", **block) == 14, "of both attempts"
    assert value(text, "dbserve_block_step", **block) == 10, "where it stands"
    assert value(text, "dbserve_block_target_steps", **block) == 20
    assert value(text, "dbserve_block_samples_total", **block) == 448
    assert value(text, "dbserve_block_shard_read_bytes_total", **block) == 7000
    assert value(text, "dbserve_block_gradient_sent_bytes_total", **block, to="others") == 0
    assert value(text, "dbserve_block_nonfinite_steps_total", **block) == 1
    assert value(text, "dbserve_block_eval_loss", **block, sigma_band="0.002-0.05") == 0.5
    assert value(text, "dbserve_block_device_memory_bytes", **block) == 8000
    assert value(text, "dbserve_block_checkpoint_interval_steps", **block) == 5
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
    allowed = {"job_id", "block", "status", "reason", "kind", "sigma_band", "le", "to"}
    for name, family in found.items():
        if name.startswith("dbserve_block_") and name != "dbserve_block_info":
            assert {label for sample in family.samples for label in sample.labels} <= allowed, name


def test_a_block_of_several_replicas_shows_each_gpu_and_what_they_exchange() -> None:
    run = running(10, replicas=(Replica(node="n2", gpu="GPU-c"),), work=Work(sent_bytes=500, stray_bytes=3))
    held = {"gpu": "GPU-a,GPU-b", "replicas": 3, "nodes": ("id-1", "id-2")}
    text = exposed([snapshot(block__0={**run, **held})])
    info = [sample.labels for sample in families(text)["dbserve_block_info"].samples if sample.labels["block"] == "0"]
    places = [(labels["node"], labels["gpu_uuid"]) for labels in info]
    assert places == [("n1", "GPU-a"), ("n1", "GPU-b"), ("n2", "GPU-c")]
    block = {"job_id": "j1", "block": "0"}
    assert value(text, "dbserve_block_gradient_sent_bytes_total", **block, to="replicas") == 500
    assert value(text, "dbserve_block_gradient_sent_bytes_total", **block, to="others") == 3
    assert value(text, "dbserve_block_replicas", **block, kind="wanted") == 3
    assert value(text, "dbserve_block_replicas", **block, kind="granted") == 2


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


def test_durations_are_told_as_cumulative_buckets() -> None:
    text, block = exposed([a_running_job()]), {"job_id": "j1", "block": "0"}

    def under(bound: str) -> float | None:
        return value(text, "dbserve_block_step_duration_seconds_bucket", **block, le=bound)

    assert [under(bound) for bound in ("0.02", "0.05", "0.2", "0.5", "+Inf")] == [0, 9, 9, 10, 10]
    assert value(text, "dbserve_block_step_duration_seconds_sum", **block) == pytest.approx(0.57)
    assert value(text, "dbserve_block_step_duration_seconds_count", **block) == 10


def test_checkpoints_are_told_for_the_job() -> None:
    text = exposed([a_running_job()])
    assert value(text, "dbserve_checkpoint_save_duration_seconds_count", job_id="j1") == 1
    assert value(text, "dbserve_checkpoint_save_duration_seconds_bucket", job_id="j1", le="2.5") == 1
    told = {
        stage: value(text, "dbserve_checkpoint_failures_total", job_id="j1", stage=stage) for stage in CheckpointStage
    }
    assert told == {"save": 0, "overrun": 1, "restore": 0}


def test_a_job_tells_what_it_is_and_when_it_will_be_done() -> None:
    text = exposed([a_running_job()])
    assert value(text, "dbserve_job_info", job_id="j1", name="small", architecture="vit") == 1
    assert (value(text, "dbserve_job_eta_seconds", job_id="j1") or 0) > 0


def test_tokens_are_counted_of_text_alone() -> None:
    assert "dbserve_block_tokens_total{" not in exposed([a_running_job()])


def test_what_the_service_counted_over_all_jobs_is_told() -> None:
    totals = {
        "queue_wait/1": "3", "queue_wait/sum": "9.5", "job/failed/0": "1", "job/failed/sum": "12.0",
        "reconcile/2": "40", "reconcile/sum": "0.8", "reconcile/at": str(NOW),
        "redis_errors/write": "2", "webhook_deliveries/delivered": "5",
    }  # fmt: skip
    text = exposed([], totals=totals)
    assert value(text, "dbserve_job_queue_wait_seconds_bucket", le="5.0") == 3
    assert value(text, "dbserve_job_queue_wait_seconds_sum") == 9.5
    assert value(text, "dbserve_job_duration_seconds_count", result="failed") == 1
    assert value(text, "dbserve_job_duration_seconds_count", result="succeeded") == 0
    assert value(text, "dbserve_reconcile_duration_seconds_count") == 40
    assert value(text, "dbserve_reconcile_last_timestamp_seconds") == NOW
    assert value(text, "dbserve_redis_errors_total", operation="write") == 2
    assert value(text, "dbserve_redis_errors_total", operation="read") == 0
    assert value(text, "dbserve_webhook_deliveries_total", result="delivered") == 5


def test_fifty_active_blocks_keep_within_five_thousand_series() -> None:
    """Ten jobs of four blocks, a baseline and the members of an ensemble each, with everything told that can be."""
    told = {
        "loss": 1.0, "grad_norm": 1.0, "learning_rate": 1.0, "last_step_at": NOW,
        "eval_loss": [BandLoss(low=low, high=low + 1, loss=1.0) for low in (0.0, 1.0, 2.0)],
        "memory": MemoryBytes(
            parameters=1, gradients=1, optimizer=1, activations=1, allocated=1, reserved=1, peak=1, host=1, device=1
        ),
    }  # fmt: skip
    spec = baselines_spec()
    block = {**running(10, 64.0, **told), "checkpoints": (checkpoint(5),), "restarts": dict.fromkeys(Reason, 1)}
    jobs = [snapshot(spec, **{name: dict(block) for name in TRAINED_TASKS}) for _ in range(10)]
    renamed = [
        job.model_copy(update={"record": job.record.model_copy(update={"id": f"j{place}"})})
        for place, job in enumerate(jobs)
    ]
    http = HttpMetrics()
    for route in range(40):
        for code in (200, 404):
            http.observe("GET", f"/v1/{route}", code, 0.1)
    text = exposed(renamed, http)
    assert len(re.findall(r"^dbserve_block_steps_total", text, re.M)) == 50
    assert len([line for line in text.splitlines() if not line.startswith("#")]) < 5000


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


def test_the_documentation_names_every_metric_and_no_other() -> None:
    http = HttpMetrics()
    http.observe("GET", "/v1/jobs", 200, 0.01)
    found = families(exposed([a_running_job()], http))
    names = {name + "_total" * (family.type == "counter") for name, family in found.items()}
    told = set(re.findall(r"^\| `(\w+)`", (DOCS / "metrics.md").read_text(), re.MULTILINE))
    assert told == names

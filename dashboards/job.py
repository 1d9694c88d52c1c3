"""2 Job: one job, block by block."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards.board import Section, board
from dashboards.panels import (
    BYTES,
    COUNT,
    HALF,
    ORANGE,
    RED,
    SAMPLES_PER_SECOND,
    SECONDS,
    SHARE,
    UNITLESS,
    Query,
    lines,
    number,
    rows,
    timeline,
)
from dashboards.queries import BLOCKS, COLOURS, KEY, against, age, gauge, memory, of_step, per_block, rate, selected
from dashboards.queries import status_code as code
from dbserve.contracts.status import TaskState

STATES = {place: (state.value, COLOURS[state]) for place, state in enumerate(TaskState, start=1)}
PROGRESS = against(gauge("dbserve_block_step"), gauge("dbserve_block_target_steps"))


def build() -> Dashboard:
    return board(
        "job",
        "Job",
        "One job: what each of its blocks does, where, how fast, and when it will be done.",
        [Section("Job", _job()), Section("Blocks", _blocks()), Section("Training", _training())],
        one_job=True,
    )


def _job() -> list[Builder[Panel]]:
    steps, target = (
        f"sum(max by ({KEY}) ({selected(metric, BLOCKS)}))"
        for metric in ("dbserve_block_step", "dbserve_block_target_steps")
    )
    of_blocks = against(gauge("dbserve_block_step", BLOCKS), gauge("dbserve_block_target_steps"))
    return [
        number(
            "Progress",
            "Where the chosen blocks stand, of the steps the job asks for. It falls where one goes on from a "
            "checkpoint.",
            SHARE,
            Query(f"{steps} / {target}", "done"),
        ),
        number(
            "Remaining",
            "Until the slowest task has its steps, at the present speed.",
            SECONDS,
            Query('max by (job_id) (dbserve_job_eta_seconds{job_id=~"$job_id"})', "{{job_id}}"),
        ),
        number(
            "Slowest block",
            "The running block with the lowest progress: it decides when the model can be assembled. "
            "Compare its step time and data wait with the others' on Throughput.",
            SHARE,
            Query(
                f'bottomk(1, {of_blocks} and on ({KEY}) dbserve_block_status{{status="running"}} == 1)',
                "block {{block}}",
            ),
        ),
        number(
            "Memory against end-to-end",
            "The largest block's bytes in training, of the end-to-end network's: as planned and, with an end_to_end "
            "baseline, as measured. The two should agree within a few percent.",
            SHARE,
            Query('max by (kind) (dbserve_job_memory_ratio{job_id=~"$job_id"})', "{{kind}}"),
            limits=[(0.8, ORANGE), (1, RED)],
        ),
    ]


def _blocks() -> list[Builder[Panel]]:
    info = selected("dbserve_block_info", 'node=~"$node"')
    return [
        timeline(
            "Status",
            "What each block and baseline was doing. Green is training. A row that keeps turning from green to pale "
            "blue loses its workers: see restarts on Reliability.",
            Query(code(), "{{block}}"),
            STATES,
        ),
        rows(
            "Blocks",
            "One row a block: what it owns (layers, noise levels), where it runs, how it does. A heartbeat older "
            "than 60 s, or a peak near the device's memory, is what to look at first.",
            UNITLESS,
            Query(f"max by ({KEY}, node, gpu_uuid, attempt, layers, sigma_min, sigma_max) ({info})", ""),
            Query(code(), "Status"),
            Query(PROGRESS, "Progress", SHARE),
            Query(rate("dbserve_block_samples_total"), "Speed", SAMPLES_PER_SECOND),
            Query(of_step(0.95), "Step p95", SECONDS),
            Query(gauge("dbserve_block_loss"), "Loss"),
            Query(memory("peak"), "Peak memory", BYTES),
            Query(age("dbserve_block_heartbeat_timestamp_seconds"), "Heartbeat", SECONDS),
            keys={
                "block": "Block",
                "layers": "Layers",
                "sigma_min": "From sigma",
                "sigma_max": "To sigma",
                "node": "Node",
                "gpu_uuid": "GPU",
                "attempt": "Attempt",
            },
            states={"Status": STATES},
            hidden=("job_id",),
        ),
    ]


def _training() -> list[Builder[Panel]]:
    restarts = per_block(selected("dbserve_block_restarts_total"), "reason")
    return [
        lines(
            "Progress",
            "Steps taken of the steps asked for. Lines should rise together; a flat one has stalled.",
            SHARE,
            Query(PROGRESS, "{{block}}"),
            most=1,
        ),
        lines(
            "Loss",
            "Training loss, unweighted. Blocks own different noise levels, so their losses differ by nature: compare "
            "a block with itself. Rising for long is alarming; a block that owns high noise may stay flat.",
            UNITLESS,
            Query(gauge("dbserve_block_loss"), "{{block}}"),
            least=None,
        ),
        lines(
            "Speed",
            "Samples a second. Blocks of like layers on like GPUs should be alike.",
            SAMPLES_PER_SECOND,
            Query(rate("dbserve_block_samples_total"), "{{block}}"),
        ),
        lines(
            "Restarts",
            "Attempts that were lost, by reason, since the job began. Preempted is a spot instance's life; "
            "anything else that climbs is not.",
            COUNT,
            Query(restarts, "{{block}} {{reason}}"),
            span=HALF,
        ),
    ]

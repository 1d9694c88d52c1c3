"""1 Overview: what the service does as a whole, and where to look next."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards.board import Section, board
from dashboards.panels import (
    COUNT,
    GREEN,
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
)
from dashboards.queries import BLOCKS, RANGE, RATE, quantile

OPEN_JOB = "/d/dbserve-job?${datasource:queryparam}&var-job_id=${__data.fields.Job}&${__url_time_range}"


def build() -> Dashboard:
    return board(
        "overview",
        "Overview",
        "All jobs and blocks of the service. A job's name leads to its own dashboard.",
        [Section("Now", _now()), Section("Jobs", _jobs()), Section("Over time", _over_time())],
        variables=("job_id",),
    )


def _now() -> list[Builder[Panel]]:
    return [
        number(
            "Jobs",
            "Jobs by what they do now. Recovering: a worker was lost, and another attempt is due. "
            "Jobs that ended are counted for some minutes.",
            COUNT,
            Query('max by (status) (dbserve_jobs{status=~"queued|running|recovering|paused|failed"})', "{{status}}"),
            span=HALF,
        ),
        number(
            "Firing alerts",
            "Alerts of docs/runbook.md that fire now. Anything but 0 deserves a look at Reliability.",
            COUNT,
            Query('count(ALERTS{alertname=~"Dbserve.*", alertstate="firing"}) or vector(0)', "firing"),
            limits=[(1, RED)],
        ),
        number(
            "Samples a second",
            "What all blocks together train on. Falls to 0 when nothing trains.",
            SAMPLES_PER_SECOND,
            Query(
                f'sum(max by (job_id, block) (rate(dbserve_block_samples_total{{job_id=~"$job_id", {BLOCKS}}}{RATE})))',
                "samples/s",
            ),
        ),
    ]


def _jobs() -> list[Builder[Panel]]:
    steps, target = (
        f'sum by (job_id) (max by (job_id, block) ({metric}{{job_id=~"$job_id", {BLOCKS}}}))'
        for metric in ("dbserve_block_step", "dbserve_block_target_steps")
    )
    return [
        rows(
            "Jobs",
            "One row a job that runs or ended some minutes ago. Progress is that of its blocks; the remaining time "
            "is that of its slowest task. Memory: the largest block against end-to-end training, as planned; "
            "1/B is what B equal blocks could reach at best.",
            UNITLESS,
            Query('max by (job_id, name, architecture) (dbserve_job_info{job_id=~"$job_id"})', ""),
            Query(f"{steps} / on (job_id) {target}", "Progress", SHARE),
            Query('max by (job_id) (dbserve_job_eta_seconds{job_id=~"$job_id"})', "Remaining", SECONDS),
            Query(
                'max by (job_id) (dbserve_job_memory_ratio{job_id=~"$job_id", kind="predicted"})',
                "Memory against end-to-end",
                SHARE,
            ),
            keys={"name": "Name", "job_id": "Job", "architecture": "Architecture"},
            links={"Job": OPEN_JOB},
        )
    ]


def _over_time() -> list[Builder[Panel]]:
    return [
        lines(
            "Jobs by status",
            "Jobs that are not over, and those that ended some minutes ago. A growing share of queued: "
            "the cluster is too small, or nothing is scheduled; see Control plane.",
            COUNT,
            Query("max by (status) (dbserve_jobs)", "{{status}}"),
            stacked=True,
        ),
        lines(
            "Blocks by status",
            "Blocks of those jobs. Launched for long: Ray has not found them a place.",
            COUNT,
            Query("max by (status) (dbserve_blocks)", "{{status}}"),
            stacked=True,
        ),
        lines(
            "Wait in the queue",
            "From a job's submission to its first worker, of the jobs that began in the chosen time. "
            "Above half an hour, users notice (alert DbserveQueueWaitLong).",
            SECONDS,
            Query(quantile(0.5, "dbserve_job_queue_wait_seconds", window=RANGE), "p50"),
            Query(quantile(0.95, "dbserve_job_queue_wait_seconds", window=RANGE), "p95"),
            limits=[(600, ORANGE), (1800, RED)],
        ),
        lines(
            "Jobs that ended",
            "Jobs that ended in the chosen time, by how. Failed jobs say why in `dbserve show`.",
            COUNT,
            Query(f"max by (result) (increase(dbserve_job_duration_seconds_count{RANGE}))", "{{result}}"),
        ),
        lines(
            "How long jobs take",
            "Median from submission to the end, by how they ended, of those that ended in the chosen time.",
            SECONDS,
            Query(quantile(0.5, "dbserve_job_duration_seconds", labels=("result",), window=RANGE), "{{result}}"),
        ),
        rows(
            "Versions",
            "What each API process runs. Two versions for longer than a roll-out takes is a mistake.",
            UNITLESS,
            Query("max by (instance, version, ray_version, torch_version) (dbserve_build_info)", ""),
            keys={"instance": "API", "version": "dbserve", "ray_version": "Ray", "torch_version": "torch"},
            span=HALF,
        ),
        number(
            "Redis",
            "Whether Redis answered each API process. Without it the API answers 503 and workers train to the "
            "end of their lease.",
            UNITLESS,
            Query("dbserve_redis_up", "{{instance}}"),
            limits=[(1, GREEN)],
            from_colour=RED,
        ),
    ]

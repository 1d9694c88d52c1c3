"""6 Reliability: who is heard of, who saves, who is lost, and why."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards.board import Section, board
from dashboards.panels import (
    BLOCK_LEGEND,
    COUNT,
    HALF,
    ORANGE,
    RED,
    SECONDS,
    UNITLESS,
    Query,
    lines,
    number,
    rows,
)
from dashboards.queries import KEY, RANGE, age, gauge, per_block, quantile, selected

JOB = 'job_id=~"$job_id"'


def build() -> Dashboard:
    return board(
        "reliability",
        "Reliability",
        "Ages of the last step, heartbeat and checkpoint, restarts by reason, checkpoints that were saved and that "
        "were not.",
        [
            Section("Alerts", _alerts()),
            Section("Ages", _ages()),
            Section("Restarts", _restarts()),
            Section("Saves", _saves()),
        ],
    )


def _alerts() -> list[Builder[Panel]]:
    return [
        rows(
            "Alerts",
            "What fires or is about to. docs/runbook.md has a section of the same name for each.",
            UNITLESS,
            Query(f'max by (alertname, alertstate, severity, {KEY}) (ALERTS{{alertname=~"Dbserve.*"}})', ""),
            keys={
                "alertname": "Alert",
                "alertstate": "State",
                "severity": "Severity",
                "job_id": "Job",
                "block": "Block",
            },
        )
    ]


def _ages() -> list[Builder[Panel]]:
    return [
        lines(
            "Age of the heartbeat",
            "Of running blocks. Workers tell of themselves every second or two; after a lease (15 s) without an "
            "answer they "
            "stop, and the reconciler replaces them. 60 s means that it did not (alert DbserveBlockHeartbeatOld).",
            SECONDS,
            Query(age("dbserve_block_heartbeat_timestamp_seconds"), BLOCK_LEGEND),
            limits=[(10, ORANGE), (60, RED)],
        ),
        lines(
            "Age of the last step",
            "Of running blocks. Compare with the step's duration: a heartbeat without steps is a hang "
            "(alert DbserveBlockStalled after the longer of 5 minutes and 10 x p95).",
            SECONDS,
            Query(age("dbserve_block_last_step_timestamp_seconds"), BLOCK_LEGEND),
            limits=[(60, ORANGE), (300, RED)],
        ),
        lines(
            "Age of the last checkpoint",
            "Of running blocks: the work that a crash would cost. A saw-tooth; a tooth twice as high as the others "
            "is a "
            "save that failed or was skipped (alert DbserveBlockCheckpointOld).",
            SECONDS,
            Query(age("dbserve_block_last_checkpoint_timestamp_seconds"), BLOCK_LEGEND),
        ),
        lines(
            "Age of the last checkpoint, in intervals",
            "The same over the time that an interval of steps takes. 1 is usual, 2 is an alert.",
            UNITLESS,
            Query(
                f"{age('dbserve_block_last_checkpoint_timestamp_seconds')} / on ({KEY}) "
                f"(max by ({KEY}) ({selected('dbserve_block_checkpoint_interval_steps')}) / on ({KEY}) "
                f"max by ({KEY}) (rate({selected('dbserve_block_steps_total')}[$__rate_interval])))",
                BLOCK_LEGEND,
            ),
            limits=[(1.5, ORANGE), (2, RED)],
        ),
    ]


def _restarts() -> list[Builder[Panel]]:
    return [
        lines(
            "Restarts by reason",
            "Attempts that were lost, since the job began. preempted and worker_lost: the node. gpu_oom, host_oom: "
            "memory. stalled: a hang. Others: the job itself.",
            COUNT,
            Query(per_block(selected("dbserve_block_restarts_total"), "reason"), f"{BLOCK_LEGEND} {{{{reason}}}}"),
            span=HALF,
        ),
        lines(
            "Lost attempts in the last hour",
            "Per block. Three in an hour is an alert (DbserveBlockRestarts): the next one costs budget, and work "
            "since the last checkpoint.",
            COUNT,
            Query(
                f'(block:dbserve_restarts:increase1h{{{JOB}, block=~"$block"}} '
                f'and on ({KEY}) dbserve_block_info{{node=~"$node"}})',
                BLOCK_LEGEND,
            ),
            limits=[(1, ORANGE), (3, RED)],
        ),
        lines(
            "Blocks that do not train",
            "Blocks of active jobs by status, running ones left out. Pending between attempts is the backoff.",
            COUNT,
            Query('max by (status) (dbserve_blocks{status!~"running|succeeded"})', "{{status}}"),
            stacked=True,
        ),
        lines(
            "Steps, repeated ones included",
            "Steps counted, repeated ones included: a flat line is a block that is not training.",
            COUNT,
            Query(gauge("dbserve_block_steps_total"), BLOCK_LEGEND),
        ),
    ]


def _saves() -> list[Builder[Panel]]:
    duration = "dbserve_checkpoint_save_duration_seconds"
    return [
        lines(
            "Duration of a save",
            "From a checkpoint's first byte to its manifest, p50 and p95 over the chosen time. Saves run beside the "
            "training; one that takes longer than the interval makes the next one be skipped.",
            SECONDS,
            Query(quantile(0.5, duration, JOB, labels=("job_id",), window=RANGE), "{{job_id}} p50"),
            Query(quantile(0.95, duration, JOB, labels=("job_id",), window=RANGE), "{{job_id}} p95"),
        ),
        number(
            "Failed saves",
            "Checkpoints that could not be saved, by stage, since the job began. Training goes on, and the one "
            "before counts; what fails is usually a full disk (alert DbserveCheckpointFailures).",
            COUNT,
            Query(
                f"max by (job_id, stage) (dbserve_checkpoint_failures_total{{{JOB}}})",
                "{{job_id}} {{stage}}",
            ),
            limits=[(1, RED)],
            span=HALF,
        ),
    ]

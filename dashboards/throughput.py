"""4 Throughput: how fast blocks train, what keeps them waiting, and how well more blocks pay."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards.board import Section, board
from dashboards.panels import (
    BLOCK_LEGEND,
    BYTES_PER_SECOND,
    ORANGE,
    RED,
    SAMPLES_PER_SECOND,
    SECONDS,
    SHARE,
    STEPS_PER_SECOND,
    TOKENS_PER_SECOND,
    Query,
    lines,
)
from dashboards.queries import BLOCKS, against_end_to_end, of_step, rate

SPEED = rate("dbserve_block_samples_total", BLOCKS)
WHOLE_NETWORK = (
    'max by (job_id) (rate(dbserve_block_samples_total{job_id=~"$job_id", block="end_to_end"}[$__rate_interval]))'
)


def build() -> Dashboard:
    return board(
        "throughput",
        "Throughput",
        "Samples a second per block and in sum, step durations, data wait, scaling efficiency, and bytes sent "
        "between workers.",
        [
            Section("Speed", _speed()),
            Section("Steps", _steps()),
            Section("Scaling", _scaling()),
            Section("Bytes", _bytes()),
        ],
    )


def _speed() -> list[Builder[Panel]]:
    return [
        lines(
            "Samples a second",
            "Of each block and baseline. A saw-tooth is checkpointing; one block below its likes has a slow GPU or "
            "waits for data.",
            SAMPLES_PER_SECOND,
            Query(rate("dbserve_block_samples_total"), BLOCK_LEGEND),
        ),
        lines(
            "Samples a second, all blocks",
            "The sum over a job's blocks, baselines left out. Doubles when twice as many blocks run at the same speed.",
            SAMPLES_PER_SECOND,
            Query(f"sum by (job_id) ({SPEED})", "{{job_id}}"),
        ),
        lines(
            "Tokens a second",
            "Tokens that each block of a job on text trains on, padding included. Empty for images.",
            TOKENS_PER_SECOND,
            Query(rate("dbserve_block_tokens_total"), BLOCK_LEGEND),
        ),
        lines(
            "Steps a second",
            "Optimizer steps. Steps repeated after a restart count.",
            STEPS_PER_SECOND,
            Query(rate("dbserve_block_steps_total"), BLOCK_LEGEND),
        ),
    ]


def _steps() -> list[Builder[Panel]]:
    return [
        lines(
            "Step duration, p50 and p95",
            "Of one optimizer step, data wait included. A p95 far above p50: something disturbs, e.g. a neighbour on "
            "the node or the artefact store.",
            SECONDS,
            Query(of_step(0.5), f"{BLOCK_LEGEND} p50"),
            Query(of_step(0.95), f"{BLOCK_LEGEND} p95"),
        ),
        lines(
            "Share of time spent waiting for data",
            "Seconds a second in which a block had no batch. Above 10 % the GPU idles for the disk's or the "
            "decoder's "
            "sake: give the worker more CPUs, or put the shards nearer.",
            SHARE,
            Query(rate("dbserve_block_data_wait_seconds_total"), BLOCK_LEGEND),
            limits=[(0.1, ORANGE), (0.3, RED)],
            most=1,
        ),
    ]


def _scaling() -> list[Builder[Panel]]:
    return [
        lines(
            "Scaling efficiency",
            "The blocks' samples a second in sum, over the number of blocks that train times the speed of the "
            "fastest: "
            "their mean speed over the best one's. 1: every block runs as fast as the fastest, so B blocks do B "
            "times the "
            "work of one. Low: blocks share a device, wait for data, or own unlike numbers of layers.",
            SHARE,
            Query(f"avg by (job_id) ({SPEED} > 0) / max by (job_id) ({SPEED} > 0)", "{{job_id}}"),
            limits=[(0.0, RED), (0.7, ORANGE), (0.9, "green")],
            most=1,
        ),
        lines(
            "Speed of a block, of end-to-end",
            "A block's samples a second over those of its job's end_to_end baseline while both train. B equal "
            "blocks of "
            "a deep network come near B. Empty without that baseline.",
            SHARE,
            Query(against_end_to_end(SPEED, WHOLE_NETWORK), BLOCK_LEGEND),
        ),
    ]


def _bytes() -> list[Builder[Panel]]:
    return [
        lines(
            "Gradients sent beyond a block",
            "Measured bytes a second that a block sends to others than its own replicas while it trains. Blocks never "
            "talk to each other: anything but 0 breaks the promise (alert DbserveBlockSendsGradients).",
            BYTES_PER_SECOND,
            Query(rate("dbserve_block_gradient_sent_bytes_total", 'to="others"'), BLOCK_LEGEND),
            limits=[(0.001, RED)],
        ),
        lines(
            "Gradients among replicas",
            "The same among the workers of one task, as the leading one sends them: the replicas of a block, and the "
            "workers of data_parallel, at every step. A task of one worker sends nothing.",
            BYTES_PER_SECOND,
            Query(rate("dbserve_block_gradient_sent_bytes_total", 'to="replicas"'), BLOCK_LEGEND),
        ),
        lines(
            "Shards read",
            "Bytes a second read from shards. High at the beginning, when a node decodes its data, and near 0 later, "
            "when it is mapped from the cache.",
            BYTES_PER_SECOND,
            Query(rate("dbserve_block_shard_read_bytes_total"), BLOCK_LEGEND),
        ),
    ]

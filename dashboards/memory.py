"""3 Memory: what a block needs, against the plan, the device, and end-to-end training."""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards.board import Section, board
from dashboards.panels import BLOCK_LEGEND, BYTES, HALF, ORANGE, RED, SHARE, WHOLE, Query, bars, lines, number
from dashboards.queries import BLOCKS, against, against_end_to_end, gauge, memory

DEVICE = gauge("dbserve_block_device_memory_bytes")
END_TO_END = 'max by (job_id) (dbserve_block_memory_bytes{job_id=~"$job_id", block="end_to_end", kind="peak"})'


def build() -> Dashboard:
    return board(
        "memory",
        "Memory",
        "Peak memory of each block against what was predicted, what the device has, and what end-to-end training "
        "takes.",
        [Section("Against the limits", _limits()), Section("Against end-to-end", _saved()), Section("Parts", _parts())],
    )


def _limits() -> list[Builder[Panel]]:
    return [
        lines(
            "Peak of the device",
            "Peak bytes in training over the bytes of the device: the GPU's memory, else the host's. "
            "Above 95 % the next larger batch or a fragmented allocator ends it (alert "
            "DbserveBlockMemoryNearlyFull).",
            SHARE,
            Query(against(memory("peak"), DEVICE), BLOCK_LEGEND),
            limits=[(0.85, ORANGE), (0.95, RED)],
            most=1,
        ),
        lines(
            "Peak and prediction",
            "Peak bytes measured in training, and the plan's prediction. The two lines of a block should lie on "
            "each other.",
            BYTES,
            Query(memory("peak"), f"{BLOCK_LEGEND} peak"),
            Query(memory("predicted"), f"{BLOCK_LEGEND} predicted"),
        ),
        lines(
            "Peak over prediction",
            "1 means that the plan was right. Above 1.1 the planner may have cut blocks that do not fit: report it "
            "with the job's plan.",
            SHARE,
            Query(against(memory("peak"), memory("predicted")), BLOCK_LEGEND),
            limits=[(1.1, ORANGE), (1.25, RED)],
        ),
        lines(
            "Device memory",
            "Bytes of the memory that each block trains in. Differs where nodes differ.",
            BYTES,
            Query(DEVICE, BLOCK_LEGEND),
        ),
    ]


def _saved() -> list[Builder[Panel]]:
    return [
        number(
            "Largest block of end-to-end",
            "As predicted by the plan and, where the job trains an end_to_end baseline, as measured. "
            "This is what the method saves; 1 would be nothing.",
            SHARE,
            Query('max by (job_id, kind) (dbserve_job_memory_ratio{job_id=~"$job_id"})', "{{job_id}} {{kind}}"),
            limits=[(0.8, ORANGE), (1, RED)],
            span=WHOLE,
        ),
        bars(
            "Peak of each block and baseline",
            "The last peak. end_to_end is the whole network trained at once, data_parallel one of its workers.",
            BYTES,
            Query(memory("peak"), BLOCK_LEGEND),
        ),
        lines(
            "Peak of end-to-end",
            "Each block's peak over that of its job's end_to_end baseline. Empty without that baseline.",
            SHARE,
            Query(against_end_to_end(memory("peak", BLOCKS), END_TO_END), BLOCK_LEGEND),
            limits=[(1, RED)],
        ),
    ]


def _parts() -> list[Builder[Panel]]:
    parts = gauge("dbserve_block_memory_bytes", 'kind=~"parameters|gradients|optimizer|activations"', labels=("kind",))
    held = gauge("dbserve_block_memory_bytes", 'kind=~"allocated|reserved"', labels=("kind",))
    return [
        lines(
            "What it is made of",
            "Parameters, gradients, optimizer state and activations. Choose one block to see them add up. "
            "Activations shrink with a smaller micro-batch or activation_checkpointing; the others do not.",
            BYTES,
            Query(parts, f"{BLOCK_LEGEND} {{{{kind}}}}"),
            stacked=True,
            span=HALF,
        ),
        lines(
            "CUDA allocator",
            "Allocated: tensors that live. Reserved: what the allocator holds. Reserved far above allocated is "
            "fragmentation. Empty on CPUs.",
            BYTES,
            Query(held, f"{BLOCK_LEGEND} {{{{kind}}}}"),
        ),
        lines(
            "Host memory",
            "Resident set of each worker, whatever it trains on. Climbing without end is a leak, and ends in host_oom.",
            BYTES,
            Query(gauge("dbserve_block_host_memory_bytes"), BLOCK_LEGEND),
        ),
    ]

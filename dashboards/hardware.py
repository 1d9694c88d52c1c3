"""7 Hardware and Ray: GPUs as NVIDIA's DCGM exporter sees them, joined to the blocks that hold them; Ray's own series.

DCGM's series carry the GPU's UUID, dbserve_block_info the same: so a GPU's numbers appear under the block's name.
"""

from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards.board import Section, board
from dashboards.panels import BYTES, COUNT, ORANGE, RED, SHARE, UNITLESS, WHOLE, Query, lines, number, rows
from dashboards.queries import KEY, selected

WATT, CELSIUS = "watt", "celsius"
MEBIBYTE = 1024 * 1024
WHERE = selected("dbserve_block_info", 'node=~"$node"')
RUNNING = f'and on ({KEY}) dbserve_block_status{{status="running"}} == 1'
HOLDING = f"max by ({KEY}, gpu_uuid) ({WHERE} {RUNNING})"
LEGEND = "{{job_id}} {{block}} {{gpu_uuid}}"


def of_gpu(metric: str, factor: float = 1) -> str:
    """A DCGM series under the names of the blocks that hold the GPU; a GPU that several share appears under each."""
    renamed = f'label_replace({metric}, "gpu_uuid", "$1", "UUID", "(.+)")'
    scaled = f" * {factor:g}" if factor != 1 else ""
    return f"max by (gpu_uuid) ({renamed}{scaled}) * on (gpu_uuid) group_right () {HOLDING}"


def build() -> Dashboard:
    return board(
        "hardware",
        "Hardware and Ray",
        "GPUs by the blocks that hold them (needs NVIDIA's DCGM exporter), and the Ray cluster (needs Ray's metrics).",
        [Section("Where blocks run", _places()), Section("GPUs (DCGM)", _gpus()), Section("Ray", _ray())],
    )


def _places() -> list[Builder[Panel]]:
    return [
        rows(
            "Blocks and their GPUs",
            "Which block holds which GPU of which node, at which attempt. No GPU: it trains on the CPU.",
            UNITLESS,
            Query(f"max by ({KEY}, node, gpu_uuid, attempt) ({WHERE} {RUNNING})", ""),
            keys={"job_id": "Job", "block": "Block", "node": "Node", "gpu_uuid": "GPU", "attempt": "Attempt"},
            span=WHOLE,
        )
    ]


def _gpus() -> list[Builder[Panel]]:
    return [
        lines(
            "GPU utilisation",
            "Share of time in which a kernel ran. Low while the block runs: it waits for data or for the CPU; see "
            "Throughput.",
            SHARE,
            Query(of_gpu("DCGM_FI_DEV_GPU_UTIL", 0.01), LEGEND),
            most=1,
        ),
        lines(
            "GPU memory in use",
            "Of the whole GPU, other processes included. More than the block's own peak: something else holds memory.",
            BYTES,
            Query(of_gpu("DCGM_FI_DEV_FB_USED", MEBIBYTE), LEGEND),
        ),
        lines(
            "Power",
            "Near the board's limit all the time: the GPU is busy. Far below at high utilisation: small kernels.",
            WATT,
            Query(of_gpu("DCGM_FI_DEV_POWER_USAGE"), LEGEND),
        ),
        lines(
            "Temperature",
            "Above 85 degrees most boards slow down, and so does the block.",
            CELSIUS,
            Query(of_gpu("DCGM_FI_DEV_GPU_TEMP"), LEGEND),
            limits=[(80, ORANGE), (88, RED)],
        ),
        number(
            "XID errors",
            "The last error code that the driver reported. 0: none. 48, 63, 64, 79 are the hardware's: drain the node.",
            UNITLESS,
            Query(of_gpu("DCGM_FI_DEV_XID_ERRORS"), LEGEND),
            limits=[(1, RED)],
            span=WHOLE,
        ),
    ]


def _ray() -> list[Builder[Panel]]:
    return [
        lines(
            "CPU of the nodes",
            "Share of a node's CPUs in use. Full nodes make data wait grow.",
            SHARE,
            Query("max by (ip) (ray_node_cpu_utilization) / 100", "{{ip}}"),
            limits=[(0.9, ORANGE)],
            most=1,
        ),
        lines(
            "Memory of the nodes",
            "Share of a node's memory in use. Above 95 % Ray's memory monitor kills workers (host_oom).",
            SHARE,
            Query("max by (ip) (ray_node_mem_used) / max by (ip) (ray_node_mem_total)", "{{ip}}"),
            limits=[(0.85, ORANGE), (0.95, RED)],
            most=1,
        ),
        lines(
            "Disk of the nodes",
            "Share in use of the disk that holds Ray's session. Full disks fail checkpoints and caches.",
            SHARE,
            Query("max by (ip) (ray_node_disk_utilization_percentage) / 100", "{{ip}}"),
            limits=[(0.8, ORANGE), (0.95, RED)],
            most=1,
        ),
        lines(
            "Actors by state",
            "A block's worker is an actor. PENDING_CREATION for long: no node has room for it.",
            COUNT,
            Query("sum by (State) (max by (State, Name, JobId, SessionName) (ray_actors))", "{{State}}"),
        ),
        lines(
            "GPUs and CPUs",
            "What the cluster has, by whether it is in use.",
            COUNT,
            Query('sum by (Name, State) (ray_resources{Name=~"CPU|GPU"})', "{{Name}} {{State}}"),
        ),
        lines(
            "Nodes",
            "Nodes by state. Failed ones appear after a crash or a preemption.",
            COUNT,
            Query('sum by (__name__) ({__name__=~"ray_cluster_(active|idle|pending|failed)_nodes"})', "{{__name__}}"),
        ),
        lines(
            "Memory of Ray's processes",
            "Resident set by component. Workers of blocks are ray::BlockActor; the raylet's own should stay flat.",
            BYTES,
            Query("sum by (ip, Component) (ray_component_rss_bytes)", "{{ip}} {{Component}}"),
        ),
    ]

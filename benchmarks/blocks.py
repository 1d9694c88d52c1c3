"""What a block costs against the whole network, at the shape of the published ViT: python -m benchmarks.blocks

12 layers, width 128, MLP 3072, 4 heads, patch 4, dropout 0.1, 32 x 32 x 3, B = 3. Bytes are counted (parameters,
gradients, optimizer, activations) and set beside the planner's prediction; the time of B block steps is divided by that
of an end-to-end step, taken alternately in one run. Data: random pixels. Runs without ray, redis and fastapi.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts, MemoryPlan
from dbserve.contracts.status import MemoryBytes
from dbserve.planner import load_card, plan_job
from workers.data import Dataset, Split
from workers.trainer import StepReport, train_block

KINDS = ("parameters", "gradients", "optimizer", "activations")
CONDITIONINGS = ("add", "adaln_low_rank")


@dataclass(frozen=True)
class Bytes:
    """Of one network in training: measured, the planner's, and how far that is off."""

    measured: dict[str, int]
    predicted: dict[str, int]
    error: float  # predicted / measured - 1, of the totals


@dataclass(frozen=True)
class Comparison:
    """One block against the end-to-end network."""

    conditioning: str
    block: Bytes
    end_to_end: Bytes
    bytes_ratio: float
    bytes_ratio_predicted: float
    block_step_seconds: float  # median of one block's step
    end_to_end_step_seconds: float  # median
    time_ratio: float  # median over repeats of (B block steps) / (one end-to-end step)
    time_ratios: tuple[float, ...]


def spec_of(conditioning: str, arguments: argparse.Namespace) -> JobSpec:
    """The published shape as a job."""
    shape = {"depth": 12, "width": 128, "mlp": 3072, "heads": 4, "patch": 4, "dropout": 0.1}
    return JobSpec.model_validate(
        {
            "name": "bench",
            "architecture": {"kind": "vit", "options": {**shape, "conditioning": conditioning}},
            "data": {"uri": "random"},
            "blocks": {"count": 3},
            "training": {"steps": 1_000_000, "batch_size": arguments.batch_size, "precision": arguments.precision},
            "checkpoint": {"every_steps": 1},  # a report, and so a clock, at every step on CUDA too
        }
    )


def random_images(rows: int) -> tuple[DataFacts, Dataset]:
    random = np.random.default_rng(0)
    split = Split(
        inputs=random.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8),
        labels=random.integers(0, 10, rows, dtype=np.int64),
    )
    facts = DataFacts(
        train_shards=("random",),
        test_shards=(),
        train_rows=rows,
        test_rows=rows,
        validation_rows=rows,
        image_shape=(32, 32, 3),
        encoding="raw",
        class_names=tuple("0123456789"),
    )
    return facts, Dataset(train=split, validation=split, test=split)


def compare(conditioning: str, arguments: argparse.Namespace) -> Comparison:
    """Trains the three blocks and the end-to-end network in turns, one step each."""
    spec = spec_of(conditioning, arguments)
    facts, data = random_images(4 * arguments.batch_size)
    plan = plan_job(spec, load_card("vit"), facts)
    names = [f"block-{block.index}" for block in plan.blocks]
    trainings = {
        name: train_block(spec, plan, plan.task(name), data, device=arguments.device) for name in (*names, "end_to_end")
    }
    first = {name: next(training) for name, training in trainings.items()}  # counts bytes; its time is not used
    ratios: list[float] = []
    block_seconds: list[float] = []
    whole_seconds: list[float] = []
    for repeat in range(arguments.repeats):
        turns = list(trainings.items())
        seconds = {name: _timed(training) for name, training in (turns if repeat % 2 else reversed(turns))}
        whole_seconds.append(seconds["end_to_end"])
        block_seconds.extend(seconds[name] for name in names)
        ratios.append(sum(seconds[name] for name in names) / seconds["end_to_end"])
    for training in trainings.values():
        training.close()
    block = max((_bytes(first[name], plan.blocks[i].memory) for i, name in enumerate(names)), key=_total)
    end_to_end = _bytes(first["end_to_end"], plan.end_to_end.memory)
    return Comparison(
        conditioning=conditioning,
        block=block,
        end_to_end=end_to_end,
        bytes_ratio=_total(block) / _total(end_to_end),
        bytes_ratio_predicted=plan.memory_ratio,
        block_step_seconds=statistics.median(block_seconds),
        end_to_end_step_seconds=statistics.median(whole_seconds),
        time_ratio=statistics.median(ratios),
        time_ratios=tuple(ratios),
    )


def _timed(training: Any) -> float:
    """Seconds of one step; reading the report's loss has waited for the device."""
    began = time.perf_counter()
    next(training)
    return time.perf_counter() - began


def _bytes(report: StepReport, predicted: MemoryPlan) -> Bytes:
    memory = report.memory or MemoryBytes()
    measured = {kind: int(getattr(memory, kind)) for kind in KINDS}
    plan = {kind: int(getattr(predicted, kind)) for kind in KINDS}
    return Bytes(measured, plan, sum(plan.values()) / sum(measured.values()) - 1)


def _total(part: Bytes) -> int:
    return sum(part.measured.values())


def machine(device: str) -> dict[str, str]:
    """Where the figures come from."""
    facts = {
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    return facts | {name: version(name) for name in ("torch", "numpy", "pydantic")}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def markdown(comparisons: Sequence[Comparison], where: dict[str, str], arguments: argparse.Namespace) -> str:
    lines = [
        "# A block against the whole network",
        "",
        "ViT of 12 layers, width 128, MLP 3072, 4 heads, patch 4, dropout 0.1, 32 x 32 x 3, B = 3; "
        f"batch {arguments.batch_size}, {arguments.precision}, {arguments.repeats} repeats.",
        "",
        "| conditioning | what | parameters | gradients | optimizer | activations | total, MB | planned | error |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in comparisons:
        for name, part in (("one block", row.block), ("end-to-end", row.end_to_end)):
            kinds = " | ".join(f"{part.measured[kind] / 1e6:.1f}" for kind in KINDS)
            planned = sum(part.predicted.values()) / 1e6
            lines.append(
                f"| {row.conditioning} | {name} | {kinds} | {_total(part) / 1e6:.1f} | {planned:.1f} "
                f"| {part.error:+.2%} |"
            )
    lines += ["", "| conditioning | bytes ratio | planned | time ratio | block step | end-to-end step | ratios |"]
    lines += ["|---|--:|--:|--:|--:|--:|---|"]
    lines += [
        f"| {row.conditioning} | **{row.bytes_ratio:.3f}** | {row.bytes_ratio_predicted:.3f} "
        f"| **{row.time_ratio:.3f}** | {row.block_step_seconds:.3f} s | {row.end_to_end_step_seconds:.3f} s "
        f"| {', '.join(f'{ratio:.2f}' for ratio in row.time_ratios)} |"
        for row in comparisons
    ]
    lines += [
        "",
        "Bytes: parameters + gradients + optimizer state + tensors saved for the backward pass, of one block over "
        "those of the end-to-end network. Time: the sum of the three blocks' steps over one end-to-end step, same "
        "batch size, steps taken alternately; the median of the repeats.",
        "",
        ", ".join(f"{key} {value}" for key, value in where.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--conditioning", choices=CONDITIONINGS, action="append", help="default: both")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    comparisons = [compare(conditioning, arguments) for conditioning in arguments.conditioning or CONDITIONINGS]
    where = machine(arguments.device)
    text = markdown(comparisons, where, arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    document = {
        "batch_size": arguments.batch_size,
        "precision": arguments.precision,
        "machine": where,
        "comparisons": [asdict(row) for row in comparisons],
    }
    (arguments.output / "blocks.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (arguments.output / "blocks.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

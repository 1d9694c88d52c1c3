"""What a block costs against the whole network, for every architecture: python -m benchmarks.blocks

Bytes are counted (parameters, gradients, optimizer, activations) and set beside the planner's prediction; the time of B
blocks' steps is divided by that of an end-to-end step, taken in turns in one run; then what answering costs. On CUDA
also the most bytes allocated and the share of the device's peak. Data: random. Runs without ray, redis and fastapi.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.answering import Cost, costs_of
from benchmarks.machine import machine, peak_flops
from benchmarks.shapes import SHAPES, Shape, job_of
from benchmarks.training import Comparison, Pace, compare
from workers.allocation import keep_freed_memory

CUDA_ROWS = 16  # a GPU's batch, in batches of a CPU
ANSWER_ROWS = 4
ANSWER_STEPS = 24  # divisible by the blocks, so that each block takes its share


def run(
    shapes: Sequence[Shape], *, repeats: int, device: str, precision: str, batch_size: int | None
) -> Iterator[tuple[Comparison, tuple[Cost, ...]]]:
    """Every shape's figures, as soon as they are there."""
    for shape in shapes:
        rows = batch_size or shape.batch_size * (CUDA_ROWS if device.startswith("cuda") else 1)
        job = job_of(shape, batch_size=rows, precision=precision)
        comparison = compare(job, repeats=repeats, device=device)
        yield comparison, tuple(costs_of(job, rows=ANSWER_ROWS, steps=ANSWER_STEPS, device=device))


def markdown(
    comparisons: Sequence[Comparison], costs: Sequence[Cost], where: dict[str, str], *, device: str, precision: str
) -> str:
    """All figures as one page."""
    on_cuda = device.startswith("cuda")
    lines = [
        "# A block against the whole network",
        "",
        ", ".join(f"{key} {value}" for key, value in where.items()) + f", {precision}",
        "",
        *(f"- **{row.shape}**: {row.what}; B = {row.blocks}, batch {row.batch_size}" for row in comparisons),
        "",
        "## Bytes in training",
        "",
        "| shape | one block, MB | planned | error | end-to-end, MB | planned | error | ratio | planned |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_bytes_row(row) for row in comparisons),
        "",
        "Parameters + gradients + optimizer state + tensors saved for the backward pass, of the largest block over "
        "those of the end-to-end network.",
        "",
        "## Time in training",
        "",
        "| shape | ratio | runs | " + ("" if on_cuda else "ratio, CPU time | ") + "block step | end-to-end step "
        "| block | end-to-end |",
        "|---|--:|---|" + ("" if on_cuda else "--:|") + "--:|--:|--:|--:|",
        *(_time_row(row) for row in comparisons),
        "",
        "Ratio: the sum of the blocks' steps over one end-to-end step, same batch size, steps taken in turns; the "
        "median of the runs, least to greatest beside it. Blocks train on workers of their own, all at once.",
        "",
        *(_cuda_section(comparisons, device, precision) if on_cuda else ()),
        "## Answering",
        "",
        "| shape | what | blocks | end-to-end | blocks, layer runs | end-to-end |",
        "|---|---|--:|--:|--:|--:|",
        *(
            f"| {cost.shape} | {cost.what} | {cost.blocks_seconds:.3f} s | {cost.whole_seconds:.3f} s "
            f"| {cost.blocks_layers} | {cost.whole_layers} |"
            for cost in costs
        ),
    ]
    return "\n".join(lines) + "\n"


def _bytes_row(row: Comparison) -> str:
    parts = " | ".join(
        f"{part.total / 1e6:.2f} | {sum(part.predicted.values()) / 1e6:.2f} | {part.error:+.2%}"
        for part in (row.block_bytes, row.whole_bytes)
    )
    return f"| {row.shape} | {parts} | **{row.bytes_ratio:.3f}** | {row.bytes_ratio_predicted:.3f} |"


def _time_row(row: Comparison) -> str:
    spread = f"{min(row.time_ratios):.2f} to {max(row.time_ratios):.2f} of {len(row.time_ratios)}"
    cpu = "" if row.cpu_ratio is None else f" {row.cpu_ratio:.3f} |"
    return (
        f"| {row.shape} | **{row.time_ratio:.3f}** | {spread} |{cpu} {row.block.step_seconds * 1e3:.1f} ms "
        f"| {row.whole.step_seconds * 1e3:.1f} ms | {_speed(row, row.block)} | {_speed(row, row.whole)} |"
    )


def _speed(row: Comparison, pace: Pace) -> str:
    return f"{pace.units_per_second:,.0f} {row.unit}/s"


def _cuda_section(comparisons: Sequence[Comparison], device: str, precision: str) -> Iterator[str]:
    peak = peak_flops(device, precision)
    yield from ("## On the GPU", "")
    yield "| shape | block, allocated | end-to-end | ratio | block, MFU | end-to-end |"
    yield "|---|--:|--:|--:|--:|--:|"
    for row in comparisons:
        allocated = [pace.peak_allocated or 0 for pace in (row.block, row.whole)]
        shares = ["-" if pace.mfu is None else f"{pace.mfu:.2%}" for pace in (row.block, row.whole)]
        yield (
            f"| {row.shape} | {allocated[0] / 1e6:.1f} MB | {allocated[1] / 1e6:.1f} MB "
            f"| {allocated[0] / max(1, allocated[1]):.3f} | {shares[0]} | {shares[1]} |"
        )
    stated = "unknown for this device, so no MFU is stated" if peak is None else f"{peak / 1e12:g} TFLOP/s"
    yield from ("", f"MFU: counted FLOPs of the matrix products over the step's time and the peak, {stated}.", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES], action="append", help="default: all")
    parser.add_argument("--batch-size", type=int, help=f"default: the shape's own, {CUDA_ROWS} times that on CUDA")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; one makes CPU time the work itself")
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    arguments = parser.parse_args()
    keep_freed_memory()  # as workers do
    torch.set_num_threads(arguments.threads)
    comparisons: list[Comparison] = []
    costs: list[Cost] = []
    for comparison, answered in run(
        [shape for shape in SHAPES if not arguments.shape or shape.name in arguments.shape],
        repeats=arguments.repeats,
        device=arguments.device,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
    ):
        comparisons.append(comparison)
        costs.extend(answered)
    where = machine(arguments.device)
    text = markdown(comparisons, costs, where, device=arguments.device, precision=arguments.precision)
    arguments.output.mkdir(parents=True, exist_ok=True)
    document = {
        "precision": arguments.precision,
        "machine": where,
        "comparisons": [asdict(row) for row in comparisons],
        "answering": [asdict(cost) for cost in costs],
    }
    (arguments.output / "blocks.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (arguments.output / "blocks.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

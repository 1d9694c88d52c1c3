"""The measurements themselves, on shapes small enough for a test."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.answering import costs_of
from benchmarks.blocks import markdown, run
from benchmarks.machine import machine, peak_flops
from benchmarks.shapes import SHAPES, Shape, job_of
from benchmarks.training import flops_of

SMALL = {
    "vit": {"depth": 3, "width": 16, "mlp": 32, "heads": 2},
    "dit": {"depth": 3, "width": 16, "heads": 2},
    "mdm": {"depth": 3, "width": 16, "heads": 2},
    "llama": {"depth": 4, "width": 16, "heads": 2},
    "recurrent": {"width": 16, "heads": 2},
}


def small(shape: Shape) -> Shape:
    length = 16 if shape.sequence_length else None
    return replace(shape, options={**shape.options, **SMALL[shape.kind]}, sequence_length=length)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_counted_bytes_stand_beside_the_plan_and_blocks_are_timed_against_the_whole(shape: Shape) -> None:
    ((comparison, costs),) = run([small(shape)], repeats=2, device="cpu", precision="fp32", batch_size=2)
    assert abs(comparison.block_bytes.error) < 0.01
    assert abs(comparison.whole_bytes.error) < 0.01
    assert comparison.bytes_ratio == pytest.approx(comparison.bytes_ratio_predicted, rel=0.01)
    assert len(comparison.time_ratios) == len(comparison.cpu_ratios) == 2
    assert comparison.time_ratio > 0
    assert comparison.block.units_per_second > 0
    assert comparison.block.flops is comparison.block.mfu is comparison.block.peak_allocated is None
    page = markdown([comparison], costs, machine("cpu"), device="cpu", precision="fp32")
    assert f"**{comparison.bytes_ratio:.3f}**" in page
    assert "GPU" not in page
    assert [cost.shape for cost in costs] == ([] if shape.kind == "vit" else [shape.name])


@pytest.mark.parametrize("name", ["dit", "mdm"])
def test_a_step_of_sampling_asks_one_block_and_so_a_share_of_the_layers(name: str) -> None:
    job = job_of(small(next(shape for shape in SHAPES if shape.name == name)), batch_size=2)
    (cost,) = costs_of(job, rows=2, steps=6, device="cpu")
    assert cost.whole_layers == 3 * cost.blocks_layers > 0


def test_a_block_costs_its_share_of_the_matrix_products() -> None:
    shape = next(shape for shape in SHAPES if shape.name == "mdm")
    job = job_of(replace(small(shape), options={**shape.options, "depth": 6}), batch_size=2)
    share = flops_of(job, "block-0", "cpu") / flops_of(job, "end_to_end", "cpu")
    assert 1 / 3 < share < 0.4, "a third of the layers, and a head of its own"


def test_a_device_of_unknown_peak_has_no_mfu() -> None:
    assert peak_flops("cpu", "fp32") is None


def test_the_whole_command_runs_where_only_torch_is_installed(tmp_path: Path) -> None:
    code = """
import sys
class Bare:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "redis", "fastapi", "pydantic_settings", "prometheus_client", "uvicorn"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Bare())
import runpy
sys.argv = ["benchmarks.blocks", "--shape", "dit", "--repeats", "1", "--batch-size", "1", "--output", sys.argv[1]]
runpy.run_module("benchmarks.blocks", run_name="__main__")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    document = json.loads((tmp_path / "blocks.json").read_text())
    assert [row["shape"] for row in document["comparisons"]] == ["dit"]
    assert "A block against the whole network" in (tmp_path / "blocks.md").read_text()

import argparse

import torch

from benchmarks.blocks import compare, machine, markdown


def test_the_measurement_sets_counted_bytes_beside_the_plan_and_times_blocks_against_the_whole() -> None:
    torch.set_num_threads(1)
    arguments = argparse.Namespace(batch_size=2, repeats=1, device="cpu", precision="fp32")
    comparison = compare("add", arguments)
    assert abs(comparison.block.error) < 0.05
    assert abs(comparison.end_to_end.error) < 0.05
    assert comparison.bytes_ratio < 0.356
    assert len(comparison.time_ratios) == 1
    assert comparison.time_ratio > 0
    assert f"**{comparison.bytes_ratio:.3f}**" in markdown([comparison], machine("cpu"), arguments)

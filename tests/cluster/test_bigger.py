"""A network whose end-to-end training no worker can hold, trained as blocks by workers of that very size."""

import pytest

from benchmarks.bigger import MIB, complaints, job, limit_workers, run
from tests.acceptance.conftest import Service

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LIMIT = 1000 * MIB


def test_blocks_succeed_in_turn_where_end_to_end_training_runs_out_of_memory(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    service = Service(tmp_path_factory.mktemp("bigger") / "data", "--num-cpus", "1")
    try:
        limit_workers(service.process.pid, LIMIT)
        spec = job(depth=24, width=256, blocks=3, steps=1, evaluation={"baselines": ["end_to_end"], "rows": 64})
        with service.client() as client:
            limited = run(client, service.process.pid, spec, LIMIT)
    finally:
        service.stop()
    assert complaints(limited) == []
    assert limited.plan.end_to_end.memory.total > 3 * max(block.memory.total for block in limited.plan.blocks)
    assert limited.report is not None
    assert limited.report.memory.ratio_kind == "predicted"
    for block in limited.plan.blocks:
        peak = limited.outcome(f"block-{block.index}").peak
        assert peak is not None
        assert block.memory.total < peak.anonymous < LIMIT

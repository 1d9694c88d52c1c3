"""Every architecture's networks, blocks and baselines alike, with their state shared out over two workers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import JobPlan, Vocabulary
from dbserve.planner import load_card, plan_job
from tests.fellows import Fellows
from tests.jobs import FACTS, small_spec
from tests.plans import TEXT
from tests.training import dataset
from workers.data import Dataset, Split
from workers.trainer import train_block

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, LENGTH = 20, 12
TEXTS = TEXT.model_copy(
    update={"sequence_length": LENGTH, "vocabulary": Vocabulary(kind="characters", size=SIZE, sha256="0" * 64)}
)
OPTIONS: dict[str, dict[str, Any]] = {
    "dit": {"depth": 2, "width": 16, "heads": 2, "patch": 4},
    "mdm": {"depth": 2, "width": 16, "heads": 2},
    "llama": {"depth": 2, "width": 16, "heads": 2},
    "recurrent": {"width": 16, "heads": 2},
    "vit": {"depth": 2, "width": 16, "heads": 2, "patch": 4, "conditioning": "adaln", "dropout": 0.1},
}


@pytest.fixture(scope="module")
def fellows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fellows]:
    others = Fellows(1, tmp_path_factory.mktemp("fellows"))
    yield others
    others.close()


def job(kind: str, **training: Any) -> tuple[JobSpec, JobPlan, Dataset]:
    spec = small_spec(
        architecture={"kind": kind, "options": OPTIONS[kind]},
        blocks={"count": 1 if kind == "recurrent" else 2},
        training={"steps": 3, "batch_size": 16, "lr": 1e-3, **training},
        resources={"replicas": 2, "min_replicas": 1, "sharding": "state"},
        evaluation={"baselines": ["end_to_end"]},
    )
    images = kind in ("dit", "vit")
    plan = plan_job(spec, load_card(kind), FACTS if images else TEXTS)
    if images:
        return spec, plan, dataset()
    tokens = np.random.default_rng(0).integers(0, SIZE, 100 * LENGTH).astype(np.uint16)
    rows = Split.of_text(tokens, LENGTH)
    return spec, plan, Dataset(rows, rows.first(20), rows)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("task", ["block-0", "end_to_end"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_sharded_state_learns_what_one_worker_learns(
    fellows: Fellows, kind: str, task: str, checkpointing: bool
) -> None:
    spec, plan, data = job(kind, activation_checkpointing=checkpointing)
    shared = fellows.train(2, spec, plan, plan.task(task), data=data)
    alone = [(report, report.capture()) for report in train_block(spec, plan, plan.task(task), data)]
    assert [report.loss for report, _ in shared] == pytest.approx([report.loss for report, _ in alone], rel=1e-5)
    norms = [report.grad_norm for report, _ in alone]
    assert [report.grad_norm for report, _ in shared] == pytest.approx(norms, rel=1e-4)
    bands, expected_bands = shared[-1][0].eval_loss, alone[-1][0].eval_loss
    assert [band.loss for band in bands] == pytest.approx([band.loss for band in expected_bands], rel=1e-4)
    first, expected = shared[0][1].optimizer, alone[0][1].optimizer
    assert first.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=1e-7, msg=name)
    share, whole = shared[0][0].memory, alone[0][0].memory
    assert share is not None
    assert whole is not None
    assert share.optimizer == pytest.approx(whole.optimizer / 2, rel=0.2)
    assert share.activations == pytest.approx(whole.activations, rel=0.05)

"""examples/architectures/mixer.py is what docs/architectures.md walks through: it must work as it stands there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dbserve.artefacts import LocalArtefacts
from dbserve.contracts.plan import JobPlan, TaskKind
from dbserve.contracts.report import Quality
from dbserve.contracts.status import CheckpointRef
from dbserve.planner import plan_job
from examples.architectures.mixer import MIXER
from tests.artefacts import save
from tests.jobs import FACTS, small_spec
from workers import models
from workers.assemble import assemble
from workers.data import Batch, Dataset, Split
from workers.evaluate import evaluate
from workers.memory import counting_saved_bytes
from workers.trainer import build_network, loss_of, train_block

SPEC = small_spec(
    architecture={"kind": "mixer", "options": {"depth": 4, "width": 32, "patch": 2}},
    training={"steps": 60, "batch_size": 32, "lr": 5e-3},
    evaluation={"baselines": ["end_to_end"], "batch_size": 100},
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the file lay in workers/models."""
    monkeypatch.setitem(models.ARCHITECTURES, "mixer", MIXER)


def plan_of(shape: tuple[int, int, int] = (8, 8, 1), precision: str = "fp32") -> JobPlan:
    training = SPEC.training.model_copy(update={"precision": precision})
    facts = FACTS.model_copy(update={"image_shape": shape})
    return plan_job(SPEC.model_copy(update={"training": training}), MIXER.card(), facts)


def bright(rows: int, seed: int) -> Split:
    """Images whose brightness is their label."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, rows)
    images = labels[:, None, None, None] * 22 + random.integers(0, 40, (rows, 8, 8, 1))
    return Split(inputs=images.astype(np.uint8), labels=labels.astype(np.int64))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (12, 8, 3)])
def test_its_card_knows_every_parameter_and_nearly_every_saved_byte(
    shape: tuple[int, int, int], precision: str
) -> None:
    plan = plan_of(shape, precision)
    height, width, channels = shape
    rows = SPEC.training.batch_size
    batch = Batch(torch.zeros((rows, channels, height, width), dtype=torch.uint8), torch.arange(rows) % 10, 0.0)
    for task, planned in ((plan.task("block-0"), plan.blocks[0]), (plan.task("end_to_end"), plan.end_to_end)):
        network = build_network(SPEC, plan, task)
        loss = loss_of(plan, task, network)
        with (
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
            counting_saved_bytes(network) as saved,
        ):
            result = loss(batch, torch.Generator().manual_seed(0))  # keeps what was saved alive
        assert result.dtype == torch.float32
        assert sum(parameter.numel() for parameter in network.parameters()) == planned.parameters
        assert saved.total == pytest.approx(planned.memory.activations, rel=0.002)


def test_one_file_is_enough_to_plan_train_assemble_and_examine(tmp_path: Path) -> None:
    plan = plan_of()
    data = Dataset(train=bright(1000, 0), validation=bright(100, 1), test=bright(300, 2))
    finals: dict[str, CheckpointRef] = {}
    for task in plan.tasks:
        if task.steps:
            *_, last = train_block(SPEC, plan, task, data)
            finals[task.name] = save(tmp_path, task.name, last.capture(), plan, run=f"job/{task.name}/1")
    blocks = {task.index: finals[task.name] for task in plan.tasks if task.kind is TaskKind.BLOCK}
    assemble(plan, LocalArtefacts(tmp_path), blocks, "model", job_id="job")

    places = {name: tmp_path / ref.path for name, ref in finals.items()}
    report = evaluate(SPEC, plan, data, tmp_path / "model", places, [], job_id="job", model_id="job")

    assert isinstance(report.quality, Quality)
    assert report.quality.chain.accuracy > 0.6  # one in ten by chance
    assert report.memory.ratio == pytest.approx(report.memory.ratio_predicted, rel=0.002)

"""Every job file under examples/ is a job that can be planned, whatever the machine has of its data."""

from pathlib import Path

import pytest

from dbserve.contracts.plan import DataFacts, Vocabulary
from dbserve.jobfile import parse_job
from dbserve.planner import load_card, plan_job

JOBS = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
IMAGES = DataFacts(
    train_shards=("/nowhere/train.parquet",),
    test_shards=(),
    train_rows=50_000,
    test_rows=10_000,
    validation_rows=5_000,
    encoding="raw",
    image_shape=(28, 28, 1),
    class_names=tuple("0123456789"),
)
SHAPES = {"digits": (8, 8, 1), "cifar": (32, 32, 3), "fashion-vit": (28, 28, 1), "fashion-dit": (14, 14, 1)}
LETTERS = " abcdefghijklmnopqrstuvwxyz"


def facts_of(name: str, modality: str, sequence_length: int) -> DataFacts:
    """What the shards of that example say, in short."""
    if modality == "images":
        [shape] = [shape for prefix, shape in SHAPES.items() if name.startswith(prefix)]
        return IMAGES.model_copy(update={"image_shape": shape})
    vocabulary = Vocabulary(kind="characters", size=len(LETTERS), symbols=tuple(LETTERS), sha256="0" * 64)
    text = {"image_shape": None, "class_names": (), "encoding": "text"}
    return IMAGES.model_copy(update={**text, "vocabulary": vocabulary, "sequence_length": sequence_length})


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_an_example_can_be_planned(path: Path) -> None:
    spec = parse_job(path.read_bytes(), "yaml")
    card = load_card(spec.architecture.kind)
    plan = plan_job(spec, card, facts_of(path.stem, card.modality, spec.data.sequence_length))
    assert spec.name == path.stem
    assert plan.memory_ratio < 1 or len(plan.blocks) == 1

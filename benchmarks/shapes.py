"""The jobs that are measured, and random data for them: shapes known elsewhere, or small."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts, JobPlan, Vocabulary
from dbserve.planner import load_card, plan_job
from workers.data import Dataset, Split

TEXT_SYMBOLS = 65


@dataclass(frozen=True)
class Shape:
    """A job to measure. `image` (height, width, channels) or `sequence_length`; `batch_size` is that of a CPU."""

    name: str
    what: str
    kind: str
    options: dict[str, Any]
    blocks: int
    batch_size: int
    image: tuple[int, int, int] | None = None
    sequence_length: int | None = None
    training: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def units(self) -> int:
        """Of one row: 1 image, or its tokens."""
        return self.sequence_length or 1


PUBLISHED = {"depth": 12, "width": 128, "mlp": 3072, "heads": 4, "patch": 4, "dropout": 0.1}
SHAPES = (
    Shape("vit", "ViT as published, 12 layers, 32x32x3", "vit", PUBLISHED, 3, 16, image=(32, 32, 3)),
    Shape(
        "vit_adaln",
        "the same, conditioned by low-rank adaLN",
        "vit",
        {**PUBLISHED, "conditioning": "adaln_low_rank"},
        3,
        16,
        image=(32, 32, 3),
    ),
    Shape(
        "dit",
        "DiT, 6 layers of width 128, 28x28x1, patch 4",
        "dit",
        {"depth": 6, "width": 128, "heads": 4, "patch": 4},
        3,
        32,
        image=(28, 28, 1),
    ),
    Shape(
        "mdm",
        "masked diffusion, 6 layers of width 128, 128 tokens, loss in chunks",
        "mdm",
        {"depth": 6, "width": 128, "heads": 4, "loss_chunk": 1024},
        3,
        16,
        sequence_length=128,
    ),
    Shape(
        "llama",
        "causal decoder, 8 layers of width 128, 128 tokens",
        "llama",
        {"depth": 8, "width": 128, "heads": 4},
        4,
        8,
        sequence_length=128,
    ),
    Shape(
        "recurrent",
        "recurrent depth: prelude 1, core 2 run 4 times, coda 1; 64 tokens",
        "recurrent",
        {"depth": 4, "prelude": 1, "core": 2, "coda": 1, "steps": 4, "width": 128},
        1,
        8,
        sequence_length=64,
    ),
)


@dataclass(frozen=True)
class Job:
    """A shape, planned, with its data."""

    shape: Shape
    spec: JobSpec
    plan: JobPlan
    data: Dataset


def job_of(shape: Shape, *, batch_size: int, precision: str = "fp32") -> Job:
    """The shape as a job on four batches of random rows."""
    rows = batch_size
    spec = JobSpec.model_validate(
        {
            "name": "bench",
            "architecture": {"kind": shape.kind, "options": shape.options},
            "data": {"uri": "random"},
            "blocks": {"count": shape.blocks},
            "training": {"steps": 1_000_000, "batch_size": rows, "precision": precision, **shape.training},
            "checkpoint": {"every_steps": 1},  # a report, and so a clock, at every step on CUDA too
            "evaluation": {"baselines": ["end_to_end"]},
        }
    )
    facts, data = _images(shape.image, 4 * rows) if shape.image else _text(shape.sequence_length or 0, 4 * rows)
    return Job(shape, spec, plan_job(spec, load_card(shape.kind), facts), data)


def _images(image: tuple[int, int, int], rows: int) -> tuple[DataFacts, Dataset]:
    random = np.random.default_rng(0)
    split = Split(
        inputs=random.integers(0, 256, (rows, *image), dtype=np.uint8),
        labels=random.integers(0, 10, rows, dtype=np.int64),
    )
    facts = _facts(rows, encoding="raw", image_shape=image, class_names=tuple("0123456789"))
    return facts, Dataset(train=split, validation=split, test=split)


def _text(length: int, rows: int) -> tuple[DataFacts, Dataset]:
    tokens = np.random.default_rng(0).integers(0, TEXT_SYMBOLS, (rows + 1) * length).astype(np.uint16)
    split = Split.of_text(tokens, length)
    symbols = tuple(chr(ord("0") + index) for index in range(TEXT_SYMBOLS))
    vocabulary = Vocabulary(kind="characters", size=TEXT_SYMBOLS, symbols=symbols, sha256="random")
    facts = _facts(rows, encoding="text", vocabulary=vocabulary, sequence_length=length)
    return facts, Dataset(train=split, validation=split, test=split)


def _facts(rows: int, **kind: Any) -> DataFacts:
    return DataFacts(
        train_shards=("random",), test_shards=(), train_rows=rows, test_rows=rows, validation_rows=rows, **kind
    )

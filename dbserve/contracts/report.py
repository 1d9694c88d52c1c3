"""The report: the evidence a job leaves. Its JSON schema is published at docs/report.schema.json and over REST."""

import json
import sys
from typing import Literal

from pydantic import BaseModel, Field

from dbserve.contracts.plan import MemoryPlan
from dbserve.contracts.status import MemoryBytes

DecodeRule = Literal["chain", "product_of_experts", "first_block"]


class Score(BaseModel, frozen=True):
    """One way of answering, on the held-out test rows."""

    accuracy: float = Field(ge=0.0, le=1.0)
    standard_error: float = Field(ge=0.0, description="of the accuracy over the test rows: sqrt(a(1-a)/n)")
    cross_entropy: float = Field(description="nats")
    expected_calibration_error: float = Field(ge=0.0, le=1.0, description="15 equal-width confidence bins")
    layer_evaluations: int = Field(ge=0, description="layers run to answer for one image")


class ShallowSingle(Score, frozen=True):
    """The mean over the ensemble's members: what end-to-end training fits into one worker's memory."""

    members: tuple[float, ...]  # accuracy of each


class Quality(BaseModel, frozen=True):
    """Classification: the assembled model's three ways of answering, and the baselines."""

    family: Literal["classification"] = "classification"
    chain: Score
    product_of_experts: Score
    first_block: Score
    end_to_end: Score | None = None
    shallow_ensemble: Score | None = None
    shallow_single: ShallowSingle | None = None
    shallow_long: Score | None = Field(default=None, description="one shallow network, blocks x steps")
    data_parallel: Score | None = None


class Metric(BaseModel, frozen=True):
    """What a column of a table holds."""

    key: str
    title: str
    unit: str = Field(default="", description="e.g. bits/character, nats, s; empty: a pure number")
    better: Literal["higher", "lower"] | None = None
    note: str = Field(default="", description="what it measures and how, in one sentence")


class Measured(BaseModel, frozen=True):
    value: float
    standard_error: float | None = None


class Contestant(BaseModel, frozen=True):
    """One way of answering: the assembled blocks, a baseline, or a floor (what the data score against themselves)."""

    key: str = Field(description="blocks, end_to_end, shallow, shallow_long, shallow_ensemble, data_parallel, floor")
    title: str
    note: str = ""
    ours: bool = False
    layer_evaluations: int | None = Field(default=None, description="layers run for one answer (image, or token)")
    values: dict[str, Measured] = Field(description="by metric key; what was not measured is left out")
    paired: Measured | None = Field(
        default=None,
        description="the blocks' primary value less this one's, with that difference's standard error: row by row, "
        "so that what both find hard cancels",
    )


class BlockFacts(BaseModel, frozen=True):
    """What one block was measured to do in its interval; `values` by metric key."""

    index: int
    sigma_min: float
    sigma_max: float
    values: dict[str, float | None]


class Sample(BaseModel, frozen=True):
    """Something a model made, to look at: a text, or a PNG (base64) with its size in pixels."""

    title: str
    caption: str = ""
    text: str | None = None
    png: str | None = None
    width: int | None = None
    height: int | None = None


class Comparison(BaseModel, frozen=True):
    """Every family but classification: who reached what, block by block, and samples."""

    family: Literal["generation", "masked_text", "next_token"]
    primary: str = Field(description="the metric's key that the headline states")
    metrics: tuple[Metric, ...]
    contestants: tuple[Contestant, ...]  # the assembled blocks first
    block_metrics: tuple[Metric, ...] = ()
    blocks: tuple[BlockFacts, ...] = ()
    samples: tuple[Sample, ...] = ()


class MemoryRow(BaseModel, frozen=True):
    task: str
    predicted: MemoryPlan
    measured: MemoryBytes | None


class MemoryReport(BaseModel, frozen=True):
    """`ratio` = largest block / end-to-end: measured where the baseline ran, else predicted."""

    ratio: float
    ratio_kind: Literal["measured", "predicted"]
    ratio_predicted: float
    rows: tuple[MemoryRow, ...]


class CostRow(BaseModel, frozen=True):
    """What a trained task cost. Layer evaluations = steps x batch size x layers."""

    task: str
    layers: int
    steps: int
    batch_size: int
    layer_evaluations: int
    wall_seconds: float
    step_seconds_mean: float
    samples_per_second: float
    data_wait_share: float
    bytes_per_worker: int | None
    attempts: int
    node: str | None
    learning_rate: float | None = Field(default=None, description="peak rate; of a scan, the one that was kept")
    workers: int = 1


class LossPoint(BaseModel, frozen=True):
    step: int
    loss: float  # mean since the previous point


class LossCurve(BaseModel, frozen=True):
    task: str
    points: tuple[LossPoint, ...]


class BlockDiagnosis(BaseModel, frozen=True):
    """Cheap tests, each of which has caught a real failure (docs/method.md says how to read them)."""

    index: int
    sigma_min: float
    sigma_max: float
    information_share: float | None = Field(default=None, description="of the fall of the cross-entropy along sigma")
    accuracy_alone: float = Field(description="this block alone, z = 0, at its upper edge")
    accuracy_at_sigma_max: float = Field(description="this block alone, z = 0, at sigma_max")
    accuracy_after: float = Field(description="the chain stopped after this block")
    z_only_accuracy: float = Field(description="label read off z at the upper edge by Bayes' rule, without the image")
    shuffled_image_accuracy: float = Field(description="teacher-noised z, another image: near z_only if z dominates")
    true_image_accuracy: float = Field(description="teacher-noised z at the upper edge, true image")
    loss_teacher: float = Field(description="cross-entropy on teacher-noised z at the upper edge, nats")
    loss_handoff: float = Field(description="cross-entropy on the z the previous blocks really hand over, nats")
    handoff_gap: float = Field(description="loss_handoff - loss_teacher")
    agreement_with_previous: float | None = Field(default=None, description="share of rows with the same answer")
    amplification: float = Field(description="change of the chain's output per change of this block's (10 % push)")


class Report(BaseModel, frozen=True):
    """Everything measured about one job."""

    schema_version: Literal[1] = 1
    job_id: str
    job_name: str
    model_id: str
    contract_hash: str
    created_at: str  # ISO 8601, UTC
    architecture: str
    dataset: str
    train_rows: int
    validation_rows: int
    test_rows: int
    classes: int | None = Field(default=None, description="None: text without classes")
    blocks: int
    depth: int
    seed: int
    steps_per_task: int
    trunk_steps: int
    decode: DecodeRule | None = Field(default=None, description="chosen on validation rows; of classification only")
    validation_accuracy: dict[DecodeRule, float] = Field(default_factory=dict[DecodeRule, float])
    quality: Quality | Comparison = Field(discriminator="family")
    experimental: bool = Field(default=False, description="no recipe of this architecture is known to be worth it")
    memory: MemoryReport
    cost: tuple[CostRow, ...]
    loss: tuple[LossCurve, ...]
    diagnosis: tuple[BlockDiagnosis, ...] = Field(default=(), description="of classification only")
    swap_accuracy: float | None = Field(default=None, description="chain after one block was put in another's place")
    warnings: tuple[str, ...]
    findings: tuple[str, ...] = Field(description="plain sentences: what was won and what was lost, with the figures")
    versions: dict[str, str]
    hardware: str


def report_schema() -> str:
    """The published JSON schema of a report, as docs/report.schema.json holds it (`make schema`)."""
    schema = Report.model_json_schema(mode="serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(report_schema())

"""Plans as the tests of the planner need them: the published ViT on CIFAR's facts, and a card of masked text."""

from typing import Any

import pytest
import yaml

from dbserve.contracts.card import ArchitectureCard, NoiseDefaults
from dbserve.contracts.job import JobSpec
from dbserve.contracts.plan import DataFacts, JobPlan, Vocabulary
from dbserve.errors import ConfigInvalid
from dbserve.planner import load_card, plan_job

CIFAR = DataFacts(
    train_shards=("train.parquet",),
    test_shards=("test.parquet",),
    train_rows=45_000,
    test_rows=10_000,
    validation_rows=5_000,
    image_shape=(32, 32, 3),
    encoding="encoded",
    class_names=tuple("0123456789"),
)
SAMPLE = """
name: cifar-vit
architecture: {kind: vit, options: {depth: 12, width: 128, heads: 4, patch: 4}}
data: {uri: ./shards/train-*.parquet, test_uri: ./shards/test-*.parquet}
blocks: {count: 3, overlap: 0.05}
noise: {p_mean: -1.2, p_std: 1.2, sigma_min: 0.002, sigma_max: 80.0}
training: {steps: 2000, batch_size: 128, lr: 5.0e-4, seed: 0}
checkpoint: {every_steps: 200}
evaluation: {baselines: [end_to_end, shallow_ensemble]}
"""


def spec_of(**changes: Any) -> JobSpec:
    """The sample job with top-level keys merged (blocks and architecture: replaced)."""
    document = yaml.safe_load(SAMPLE)
    for key, change in changes.items():
        merged = isinstance(change, dict) and key not in ("blocks", "architecture")
        document[key] = {**document.get(key, {}), **change} if merged else change
    return JobSpec.model_validate(document)


def planned(facts: DataFacts = CIFAR, card: ArchitectureCard | None = None, **changes: Any) -> JobPlan:
    """The plan of the sample job with top-level keys merged."""
    spec = spec_of(**changes)
    return plan_job(spec, card or load_card(spec.architecture.kind), facts)


def vit(**options: Any) -> dict[str, Any]:
    return {"kind": "vit", "options": {"depth": 12, "width": 128, "heads": 4, "patch": 4, **options}}


def refused(pointer: str, facts: DataFacts = CIFAR, card: ArchitectureCard | None = None, **changes: Any) -> str:
    """The message of the refusal, whose pointer must be this one."""
    with pytest.raises(ConfigInvalid) as refusal:
        planned(facts, card, **changes)
    assert refusal.value.pointer == pointer
    return str(refusal.value)


TEXT = DataFacts(
    train_shards=("train.parquet",),
    test_shards=(),
    train_rows=9_000,
    test_rows=500,
    validation_rows=500,
    encoding="text",
    vocabulary=Vocabulary(kind="bytes", size=256, sha256="0"),
    sequence_length=64,
)
UNIFORM: dict[str, Any] = {"noise": {"p_mean": None, "p_std": None, "sigma_min": None, "sigma_max": None}}


def masking_card(**changes: Any) -> ArchitectureCard:
    """A card of masked text with ViT's options and invented sizes: a layer has 12 width^2 weights, the rest 1000."""
    card = load_card("vit")
    matrices = "layers * 12 * width * width"
    network = card.denoiser.model_copy(
        update={
            "parameters": f"{matrices} + 1000 + vocabulary",
            "activations": "layers * batch * sequence_length * width * bytes",
            "checkpointed": "batch * sequence_length * width * bytes",
            "hidden_matrices": matrices,
        }
    )
    update: dict[str, Any] = {
        "kind": "masked",
        "family": "masked_text",
        "modality": "text",
        "rules": (),
        "definitions": (),
        "code_dim": "1",
        "code_norm": None,
        "noise": NoiseDefaults(
            process="masking", p_mean=None, p_std=None, sigma_min="1 / sequence_length", sigma_max="1", low_reach="0.5"
        ),
        "denoiser": network,
        "baseline": network,
    }
    return card.model_copy(update=update | changes)

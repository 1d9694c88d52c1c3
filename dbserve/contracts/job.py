"""The job specification: what a user asks for. Unknown keys, NaN and infinities are refused."""

import hashlib
import json
import re
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

MAX_BLOCKS = 64
MAX_REPLICAS = 64
MAX_STEPS = 100_000_000
LEAST_SHARE = 0.0001  # of a CPU or a GPU: Ray counts no finer
LEAST_NOISE = (
    1e-6  # of a noise level and of sigma_data: what stands in denominators, squared, must not vanish in float32
)

Name = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$")]
Label = Annotated[str, StringConstraints(max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$|^$")]

AS_STORED = "as stored"  # the context of validation of what an earlier version may have taken: it can still be read
_RAY_WORD = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"  # Ray's own pattern, which is Kubernetes'


def _of_ray(pattern: str) -> tuple[AfterValidator, FieldInfo]:
    """Ray is asked for nodes by labels that match, and refuses a request in which any does not."""
    known = re.compile(pattern)

    def matching(text: str, info: ValidationInfo) -> str:
        if info.context != AS_STORED and not known.fullmatch(text):
            raise PydanticCustomError(
                "string_pattern_mismatch", "String should match pattern '{pattern}'", {"pattern": pattern}
            )
        return text

    return AfterValidator(matching), Field(json_schema_extra={"pattern": pattern})


NodeLabelKey = Annotated[Label, *_of_ray(rf"^({_RAY_WORD}/)?{_RAY_WORD}$")]
NodeLabel = Annotated[Label, *_of_ray(rf"^({_RAY_WORD})?$")]
Uri = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# Keys that came after the first digests were kept: at their defaults they leave a job's digest as it was.
LATER_RESOURCES = ("replicas", "min_replicas", "sharding", "placement", "gpu_type", "node_labels")
Baseline = Literal["end_to_end", "shallow", "shallow_ensemble", "shallow_long", "data_parallel"]
Partition = Literal["equi_probability", "uniform_log", "equal_information", "explicit"]


class Strict(BaseModel, frozen=True):
    """Base of everything that enters from outside: no unknown keys, no coercion, no NaN, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ArchitectureSpec(Strict, frozen=True):
    """Which network; its options are validated against the architecture's own schema."""

    kind: str = Field(min_length=1, max_length=63)
    options: dict[str, JsonValue] = Field(default_factory=dict)
    source: Uri | None = Field(
        default=None,
        description="a local directory with an existing network (config.json of transformers or diffusers, perhaps "
        "safetensors): its settings become options, and every block starts from its own layers of it",
    )


class Augmentation(Strict, frozen=True):
    """Random changes of a training image, a function of (seed, task, step)."""

    crop_padding: int = Field(default=0, ge=0, le=16, description="zero-pad by this many pixels, crop back at random")
    flip: bool = Field(default=False, description="mirror left-right with probability 1/2")


class DataSpec(Strict, frozen=True):
    """Labelled images, or text, in parquet shards: `builtin:digits`, a directory, a file or a glob; local or fsspec.

    Which of the two is the architecture's to say; the keys of the other one are refused when they are given.
    """

    uri: Uri
    test_uri: Uri | None = None
    test_fraction: float = Field(default=0.2, gt=0.0, lt=1.0, description="held-out rows when test_uri is absent")
    validation_fraction: float = Field(default=0.1, ge=0.0, lt=0.9, description="of the training rows; decides decode")
    image_column: str = Field(default="image", min_length=1, max_length=255)
    label_column: str = Field(default="label", min_length=1, max_length=255)
    image_size: int | None = Field(default=None, ge=1, le=8192, description="resize to this many pixels square")
    augment: Augmentation = Augmentation()
    text_column: str = Field(default="text", min_length=1, max_length=255)
    vocabulary: Literal["characters", "bytes"] = "characters"
    tokenizer: Uri | None = Field(default=None, description="a Hugging Face tokenizer.json; replaces vocabulary")
    sequence_length: int = Field(default=128, ge=2, le=65_536, description="tokens of a window of text")

    @field_validator("tokenizer")
    @classmethod
    def _one_vocabulary(cls, tokenizer: str | None, info: ValidationInfo) -> str | None:
        if tokenizer is not None and info.data.get("vocabulary") == "bytes":
            raise ValueError("a tokenizer replaces vocabulary: leave vocabulary out")
        return tokenizer


class BranchSpec(Strict, frozen=True):
    """A trunk: one network of L/B layers trained on every sigma first; every block starts from its copy."""

    steps: int = Field(ge=1, le=MAX_STEPS)


class BlocksSpec(Strict, frozen=True):
    """How the network is cut. Exactly one of count, layers_per_block, layers and max_bytes_per_worker.

    What is left out (None) is the architecture's best value.
    """

    count: int | None = Field(default=None, ge=1, le=MAX_BLOCKS)
    layers_per_block: int | None = Field(default=None, ge=1)
    layers: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, strict=False, min_length=1, max_length=MAX_BLOCKS
    )
    max_bytes_per_worker: int | None = Field(
        default=None, ge=1, description="the smallest number of equal blocks of which each trains in so many bytes"
    )
    partition: Partition | None = None
    edges: tuple[Annotated[float, Field(ge=LEAST_NOISE)], ...] | None = Field(
        default=None,
        strict=False,
        min_length=2,
        max_length=MAX_BLOCKS + 1,
        validate_default=True,
        description="of partition: explicit",
    )
    overlap: float | None = Field(
        default=None, ge=0.0, lt=0.5, description="gamma: widens a training interval on both sides"
    )
    branch: BranchSpec | None = None
    train: Literal["all"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = "all"

    @field_validator("edges")
    @classmethod
    def _edges_of_explicit(cls, edges: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        explicit = info.data.get("partition") == "explicit"
        if edges is None and explicit:
            raise PydanticCustomError("missing", "partition: explicit needs them")
        if edges is not None and "partition" in info.data and not explicit:
            raise ValueError("edges belong to partition: explicit")
        return edges

    @field_validator("train")
    @classmethod
    def _a_subset(cls, train: Literal["all"] | tuple[int, ...]) -> Literal["all"] | tuple[int, ...]:
        if train == ():
            raise ValueError("train names no block")
        if train != "all" and len(set(train)) != len(train):
            raise ValueError("train names a block twice")
        return train

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> Self:
        ways = ("count", "layers_per_block", "layers", "max_bytes_per_worker")
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(ways)}; got {given or 'none'}")
        return self


class NoiseSpec(Strict, frozen=True):
    """The log-normal of the noise level sigma. What is left out is the architecture's best value.

    Where noise is masking (mdm), sigma_min and sigma_max are the range of the probability of a mask, and there is no
    p_mean, no p_std.
    """

    p_mean: float | None = Field(default=None, ge=-20.0, le=20.0, description="mean of ln sigma")
    p_std: float | None = Field(default=None, gt=0.0, le=10.0, description="standard deviation of ln sigma")
    sigma_min: float | None = Field(default=None, ge=LEAST_NOISE, le=1e6)
    sigma_max: float | None = Field(default=None, ge=LEAST_NOISE, le=1e6)
    sigma_data: float = Field(default=0.5, ge=LEAST_NOISE, le=1e3)


class TrainingSpec(Strict, frozen=True):
    """How every block and every baseline is trained; steps are per task, as in the paper.

    What is left out (None) is the architecture's best value, except grad_clip, where null means none.
    """

    steps: int = Field(ge=1, le=MAX_STEPS)
    batch_size: int = Field(default=128, ge=1, le=1_048_576)
    accumulate: int = Field(default=1, ge=1, le=65_536, description="micro-batches a step; divides batch_size")
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0.0, le=10.0)] | Literal["scan"] | None = Field(
        default=None, description="scan: every task first tries a few rates on a short training and keeps the best"
    )
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = Field(
        default=(0.9, 0.999), strict=False
    )
    schedule: Literal["cosine", "constant", "wsd"] = Field(
        default="cosine", description="wsd: constant, then linearly to 0 over the last fifth of the steps"
    )
    warmup: int = Field(default=0, ge=0, le=MAX_STEPS, description="steps of linear warmup")
    weight_decay: float = Field(default=0.01, ge=0.0, le=10.0)
    grad_clip: float | None = Field(default=1.0, gt=0.0, description="largest gradient norm; null: no clipping")
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float | None = Field(
        default=None, ge=0.0, lt=1.0, description="decay of the averaged weights, which answer; 0: none are kept"
    )
    activation_checkpointing: bool = Field(default=False, description="recompute each layer in the backward pass")
    compile: bool = Field(default=False, description="torch.compile; needs a C++ compiler on every worker")
    seed: Seed = 0

    @field_validator("accumulate")
    @classmethod
    def _divides(cls, accumulate: int, info: ValidationInfo) -> int:
        if (rows := info.data.get("batch_size", accumulate)) % accumulate:
            raise ValueError(f"accumulate ({accumulate}) does not divide batch_size ({rows})")
        return accumulate

    @field_validator("warmup")
    @classmethod
    def _ends(cls, warmup: int, info: ValidationInfo) -> int:
        if warmup > (steps := info.data.get("steps", warmup)):
            raise ValueError(f"warmup ({warmup}) is longer than the training ({steps} steps)")
        return warmup


class ResourcesSpec(Strict, frozen=True):
    """What a task holds, and where. A trained task may have several replicas, each of which holds as much.

    Replicas share out the rows of every step's one batch, so that what is learnt is what one worker would have learnt;
    assembly and evaluation have one.
    """

    gpus_per_block: float = Field(default=0.0, ge=0.0, le=64.0, description="of each replica; below 1: of one GPU")
    cpus_per_block: float = Field(default=1.0, ge=LEAST_SHARE, le=1024.0, description="of each replica")
    replicas: int = Field(default=1, ge=1, le=MAX_REPLICAS, description="that train one task together")
    min_replicas: int | None = Field(
        default=None, ge=1, le=MAX_REPLICAS, description="the fewest that it trains with; null: all of them"
    )
    sharding: Literal["none", "state"] = Field(
        default="none", description="state: each replica keeps its share of parameters, gradients and optimizer state"
    )
    placement: Literal["pack", "spread"] | None = Field(
        default=None, description="fill a node before the next, or use as many as there are; null: the scheduler's way"
    )
    gpu_type: NodeLabel | None = Field(default=None, min_length=1, description="as Ray calls it (its accelerator type)")
    node_labels: dict[NodeLabelKey, NodeLabel] = Field(
        default_factory=dict, max_length=32, description="that a node must have, each with this very value"
    )

    @field_validator("gpus_per_block")
    @classmethod
    def _countable(cls, gpus: float) -> float:
        if 0.0 < gpus < LEAST_SHARE:
            raise ValueError(f"the least part of a GPU is {LEAST_SHARE:g}; 0: none")
        return gpus

    @field_validator("min_replicas")
    @classmethod
    def _at_most_all(cls, least: int | None, info: ValidationInfo) -> int | None:
        if least is not None and least > (most := info.data.get("replicas", least)):
            raise ValueError(f"min_replicas ({least}) is more than replicas ({most})")
        return least

    @field_validator("sharding")
    @classmethod
    def _among_several(cls, sharding: str, info: ValidationInfo) -> str:
        if sharding == "state" and info.data.get("replicas") == 1:
            raise ValueError("one replica has nobody to share its state with: replicas must be more than 1")
        return sharding

    @field_validator("gpu_type")
    @classmethod
    def _of_a_gpu(cls, gpu_type: str | None, info: ValidationInfo) -> str | None:
        if gpu_type is not None and info.data.get("gpus_per_block") == 0.0:
            raise ValueError("gpu_type needs gpus_per_block above 0")
        return gpu_type

    @property
    def fewest(self) -> int:
        """Replicas that a trained task starts with at least."""
        return self.replicas if self.min_replicas is None else self.min_replicas


class CheckpointSpec(Strict, frozen=True):
    every_steps: int = Field(default=200, ge=1, le=MAX_STEPS)
    keep_last: int = Field(default=2, ge=1, le=100)
    grace_seconds: float = Field(
        default=30.0,
        ge=0.0,
        le=3600.0,
        description="how long a worker that is to stop (cancel, pause, SIGTERM) may take for a last checkpoint",
    )


class RetrySpec(Strict, frozen=True):
    """Attempts of one task, and the wait between them: backoff doubles up to its maximum.

    Crashes and preemptions have a budget each: a night of preemptions costs nothing of what is left for a crash.
    """

    max_attempts: int = Field(default=3, ge=1, le=100, description="of a task that crashes")
    max_preemptions: int = Field(default=1000, ge=0, le=1_000_000, description="how often a task may be preempted")
    backoff_seconds: float = Field(default=1.0, ge=0.0, le=3600.0)
    max_backoff_seconds: float = Field(default=60.0, ge=0.0, le=86400.0)


class DeadlinesSpec(Strict, frozen=True):
    """When to stop waiting. Seconds; null: never."""

    queue_seconds: float | None = Field(
        default=None, gt=0.0, description="from submission to the first worker; past it the job fails"
    )
    total_seconds: float | None = Field(
        default=None, gt=0.0, description="from submission to the end, pauses included; past it the job fails"
    )
    no_progress_seconds: float | None = Field(
        default=1800.0,
        ge=1.0,
        description="a worker that lives, but takes no step for so long, is replaced (counts as a crash); the start "
        "of an attempt, a trial of lr: scan and a compilation each count as one step",
    )


class QueueSpec(Strict, frozen=True):
    """The job's place among others."""

    priority: int = Field(default=0, ge=-100, le=100, description="higher ones start first; nothing is preempted")
    max_concurrent_blocks: int | None = Field(
        default=None, ge=1, description="how many of its tasks may hold workers at the same time; null: any number"
    )


class EvaluationSpec(Strict, frozen=True):
    """The evidence. Baselines are tasks of the same job, trained with the same noise range, schedule and optimizer.

    end_to_end: all layers; shallow: one network of a block's layers; shallow_ensemble: one of them for every block;
    shallow_long: one of them for blocks x steps; data_parallel: all layers on `blocks` workers, each with its own
    batch, for steps / blocks.
    """

    baselines: tuple[Baseline, ...] = Field(default=("end_to_end", "shallow_ensemble"), strict=False)
    batch_size: int = Field(default=500, ge=1, le=65_536)
    rows: int | None = Field(
        default=None, ge=2, description="of each held-out part at most (one has no standard error); null: all"
    )
    samples: int = Field(default=256, ge=0, le=100_000, description="made by a generating model; 0: none")
    sampling_steps: int = Field(default=50, ge=1, le=10_000, description="of the sampler, shared out over the blocks")

    @field_validator("baselines")
    @classmethod
    def _none_twice(cls, baselines: tuple[Baseline, ...]) -> tuple[Baseline, ...]:
        if len(set(baselines)) != len(baselines):
            raise ValueError("baselines names one twice")
        return baselines


class JobSpec(Strict, frozen=True):
    """One training job."""

    name: Name
    labels: dict[Label, Label] = Field(default_factory=dict, max_length=32)
    architecture: ArchitectureSpec
    data: DataSpec
    blocks: BlocksSpec
    noise: NoiseSpec = NoiseSpec()
    training: TrainingSpec
    resources: ResourcesSpec = ResourcesSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    retry: RetrySpec = RetrySpec()
    deadlines: DeadlinesSpec = DeadlinesSpec()
    queue: QueueSpec = QueueSpec()
    evaluation: EvaluationSpec = EvaluationSpec()

    def digest(self) -> str:
        """sha256 of the canonical JSON, in hex: the same for JSON and YAML, whether or not defaults are written out.

        It is also the same in every version that knows the keys which are used.
        """
        said = self.model_dump(mode="json")
        untouched = ResourcesSpec().model_dump(mode="json")
        for key in LATER_RESOURCES:
            if said["resources"][key] == untouched[key]:
                del said["resources"][key]
        canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

"""The job specification: what a user asks for. Unknown keys, NaN and infinities are refused."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

MAX_BLOCKS = 64
MAX_STEPS = 100_000_000

Name = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$")]
Label = Annotated[str, StringConstraints(max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$|^$")]
Uri = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Strict(BaseModel, frozen=True):
    """Base of everything that enters from outside: no unknown keys, no coercion, no NaN, no infinity."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ArchitectureSpec(Strict, frozen=True):
    """Which network; its options are validated against the architecture's own schema."""

    kind: str = Field(min_length=1, max_length=63)
    options: dict[str, JsonValue] = Field(default_factory=dict)


class Augmentation(Strict, frozen=True):
    """Random changes of a training image, a function of (seed, task, step)."""

    crop_padding: int = Field(default=0, ge=0, le=16, description="zero-pad by this many pixels, crop back at random")
    flip: bool = Field(default=False, description="mirror left-right with probability 1/2")


class DataSpec(Strict, frozen=True):
    """Labelled images in parquet shards: `builtin:digits`, a directory, a file or a glob; local or fsspec."""

    uri: Uri
    test_uri: Uri | None = None
    test_fraction: float = Field(default=0.2, gt=0.0, lt=1.0, description="held-out rows when test_uri is absent")
    validation_fraction: float = Field(default=0.1, ge=0.0, lt=0.9, description="of the training rows; decides decode")
    image_column: str = Field(default="image", min_length=1, max_length=255)
    label_column: str = Field(default="label", min_length=1, max_length=255)
    augment: Augmentation = Augmentation()


class BranchSpec(Strict, frozen=True):
    """A trunk: one network of L/B layers trained on every sigma first; every block starts from its copy."""

    steps: int = Field(ge=1, le=MAX_STEPS)


class BlocksSpec(Strict, frozen=True):
    """How the network is cut. Exactly one of count, layers_per_block and layers."""

    count: int | None = Field(default=None, ge=1, le=MAX_BLOCKS)
    layers_per_block: int | None = Field(default=None, ge=1)
    layers: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        default=None, strict=False, min_length=1, max_length=MAX_BLOCKS
    )
    partition: Literal["equi_probability", "uniform_log"] = "equi_probability"
    overlap: float = Field(default=0.05, ge=0.0, lt=0.5, description="gamma: widens a training interval in log sigma")
    branch: BranchSpec | None = None
    train: Literal["all"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = "all"

    @model_validator(mode="after")
    def _one_way_to_cut(self) -> Self:
        given = [name for name in ("count", "layers_per_block", "layers") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of count, layers_per_block, layers; got {given or 'none'}")
        if self.train != "all" and len(set(self.train)) != len(self.train):
            raise ValueError("train names a block twice")
        if self.train == ():
            raise ValueError("train names no block")
        return self


class NoiseSpec(Strict, frozen=True):
    """The log-normal of the noise level sigma. What is left out is the architecture's best value."""

    p_mean: float | None = Field(default=None, ge=-20.0, le=20.0, description="mean of ln sigma")
    p_std: float | None = Field(default=None, gt=0.0, le=10.0, description="standard deviation of ln sigma")
    sigma_min: float | None = Field(default=None, gt=0.0, le=1e6)
    sigma_max: float | None = Field(default=None, gt=0.0, le=1e6)
    sigma_data: float = Field(default=0.5, gt=0.0, le=1e3)


class TrainingSpec(Strict, frozen=True):
    """How every block and every baseline is trained; steps are per task, as in the paper."""

    steps: int = Field(ge=1, le=MAX_STEPS)
    batch_size: int = Field(default=128, ge=1, le=1_048_576)
    optimizer: Literal["adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0.0, le=10.0)
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = Field(
        default=(0.9, 0.999), strict=False
    )
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = Field(default=0, ge=0, le=MAX_STEPS, description="steps of linear warmup")
    weight_decay: float = Field(default=0.01, ge=0.0, le=10.0)
    grad_clip: float | None = Field(default=1.0, gt=0.0, description="largest gradient norm; null: no clipping")
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: Seed = 0

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup > self.steps:
            raise ValueError(f"warmup ({self.warmup}) is longer than the training ({self.steps} steps)")
        return self


class ResourcesSpec(Strict, frozen=True):
    """What one task holds on its worker."""

    gpus_per_block: float = Field(default=0.0, ge=0.0, le=64.0)
    cpus_per_block: float = Field(default=1.0, gt=0.0, le=1024.0)


class CheckpointSpec(Strict, frozen=True):
    every_steps: int = Field(default=200, ge=1, le=MAX_STEPS)
    keep_last: int = Field(default=2, ge=1, le=100)


class RetrySpec(Strict, frozen=True):
    """Attempts of one task, and the wait between them: backoff doubles up to its maximum."""

    max_attempts: int = Field(default=3, ge=1, le=100)
    backoff_seconds: float = Field(default=1.0, ge=0.0, le=3600.0)
    max_backoff_seconds: float = Field(default=60.0, ge=0.0, le=86400.0)


class EvaluationSpec(Strict, frozen=True):
    """The evidence. Baselines are tasks of the same job, trained for the same steps with the same optimizer."""

    baselines: tuple[Literal["end_to_end", "shallow_ensemble"], ...] = Field(
        default=("end_to_end", "shallow_ensemble"), strict=False
    )
    batch_size: int = Field(default=500, ge=1, le=65_536)

    @model_validator(mode="after")
    def _no_baseline_twice(self) -> Self:
        if len(set(self.baselines)) != len(self.baselines):
            raise ValueError("baselines names one twice")
        return self


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
    evaluation: EvaluationSpec = EvaluationSpec()

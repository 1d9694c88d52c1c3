"""The plan: what a job becomes before anything runs. All that blocks must share is here, frozen and hashed."""

import hashlib
import json
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, JsonValue

from dbserve.contracts.job import TrainingSpec


class Vocabulary(BaseModel, frozen=True):
    """The tokens of a text: token k of `characters` is symbols[k], of `bytes` the byte k, of a `tokenizer` its file's.

    `sha256` is the digest of the tokenizer's file, or of the symbols; blocks of two vocabularies cannot stand together.
    """

    kind: Literal["bytes", "characters", "tokenizer"]
    size: int
    symbols: tuple[str, ...] = ()
    tokenizer: str | None = None  # absolute uri of the file
    sha256: str


class DataFacts(BaseModel, frozen=True):
    """What the shards themselves say, read from parquet footers (no pixel is decoded).

    `train_shards` and `test_shards` are absolute uris in order; `test_shards` is empty when the held-out rows are
    split off `train_shards`. Rows of text are windows of `sequence_length` tokens.
    """

    train_shards: tuple[str, ...]
    test_shards: tuple[str, ...]
    train_rows: int
    test_rows: int
    validation_rows: int
    encoding: Literal["raw", "encoded", "float32", "text"]  # float32: arrays, e.g. latents
    image_shape: tuple[int, int, int] | None = None  # (height, width, channels); None: text
    class_names: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None  # None: images
    sequence_length: int | None = None


class Contract(BaseModel, frozen=True):
    """What all blocks must hold in common. Its digest is carried by every checkpoint and weight file."""

    architecture: str
    options: dict[str, JsonValue]  # complete: defaults filled in
    image_shape: tuple[int, int, int] | None = None  # None: text
    class_names: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None  # None: images
    sequence_length: int | None = None
    preprocessing: str  # "x/127.5-1" of a uint8 pixel, "identity" of a float32 array, "tokens" of text
    codes_seed: int
    code_dim: int
    p_mean: float | None  # None: masking
    p_std: float | None
    sigma_min: float  # masking: the least probability of a mask
    sigma_max: float
    sigma_data: float
    edges: tuple[float, ...]  # B + 1, descending: edges[0] = sigma_max belongs to block 0
    layers: tuple[tuple[int, int], ...]  # per block: [start, stop)

    @property
    def image(self) -> tuple[int, int, int]:
        """(height, width, channels) where the data are images; ValueError where they are text."""
        if self.image_shape is None:
            raise ValueError(f"{self.architecture} was planned for text")
        return self.image_shape

    @property
    def tokens(self) -> tuple[Vocabulary, int]:
        """The vocabulary and the tokens of a window where the data are text; ValueError where they are images."""
        if self.vocabulary is None or self.sequence_length is None:
            raise ValueError(f"{self.architecture} was planned for images")
        return self.vocabulary, self.sequence_length

    def digest(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def differences(self, other: "Contract") -> tuple[str, ...]:
        """Names of the fields in which two contracts differ."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) != getattr(other, name))


class MemoryPlan(BaseModel, frozen=True):
    """Predicted bytes of one network in training, at the job's batch size."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    total: int


class NetworkPlan(BaseModel, frozen=True):
    """Size of one network: its layers, its trainable parameters (a count), its bytes in training."""

    layers: tuple[int, int]  # [start, stop)
    parameters: int
    memory: MemoryPlan


class BlockPlan(NetworkPlan, frozen=True):
    """One denoising block. Block 0 owns sigma_max and the first layers."""

    index: int
    sigma_min: float
    sigma_max: float
    train_sigma_min: float
    train_sigma_max: float


class TaskKind(StrEnum):
    TRUNK = "trunk"
    BLOCK = "block"
    END_TO_END = "end_to_end"
    SHALLOW = "shallow"
    SHALLOW_LONG = "shallow_long"
    DATA_PARALLEL = "data_parallel"
    ASSEMBLY = "assembly"
    EVALUATION = "evaluation"


BASELINES = frozenset({TaskKind.END_TO_END, TaskKind.SHALLOW, TaskKind.SHALLOW_LONG, TaskKind.DATA_PARALLEL})
TRAINED = BASELINES | {TaskKind.TRUNK, TaskKind.BLOCK}


class TaskPlan(BaseModel, frozen=True):
    """A node of the job's graph; it starts when every task in `needs` has succeeded and every one in `after` has ended.

    `name` is unique in the job: trunk, block-0, end_to_end, shallow-0, shallow_long, data_parallel, assembly,
    evaluation. A task of several `workers` takes their batches together in one step.
    """

    name: str
    kind: TaskKind
    index: int = 0  # of a block or of a member of the shallow ensemble
    steps: int = 0  # optimizer steps; 0 where nothing is trained
    workers: int = 1  # each with a batch of its own, gradients averaged
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()  # what it can do without, should it fail


class JobPlan(BaseModel, frozen=True):
    """Everything a worker needs besides the spec."""

    contract: Contract
    contract_hash: str
    data: DataFacts
    training: TrainingSpec  # nothing left open: the architecture's best values filled in
    blocks: tuple[BlockPlan, ...]
    end_to_end: NetworkPlan
    shallow: NetworkPlan
    memory_ratio: float  # largest block total / end-to-end total
    tasks: tuple[TaskPlan, ...]
    gpus: float  # held when every block runs at once
    warnings: tuple[str, ...] = ()

    def network_of(self, task: TaskPlan) -> NetworkPlan:
        """What each worker of a trained task trains. A trunk is built as block 0 is. ValueError: it trains nothing."""
        match task.kind:
            case TaskKind.TRUNK | TaskKind.BLOCK:
                return self.blocks[task.index]
            case TaskKind.END_TO_END | TaskKind.DATA_PARALLEL:
                return self.end_to_end
            case TaskKind.SHALLOW | TaskKind.SHALLOW_LONG:
                return self.shallow
            case _:
                raise ValueError(f"{task.name} trains no network")

    def task(self, name: str) -> TaskPlan:
        """The task of that name; KeyError when the plan has none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(name)

"""The plan: what a job becomes before anything runs. All that blocks must share is here, frozen and hashed."""

import hashlib
import json
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, JsonValue


class DataFacts(BaseModel, frozen=True):
    """What the shards themselves say, read from parquet footers (no pixel is decoded).

    `train_shards` and `test_shards` are absolute uris in order; `test_shards` is empty when the held-out rows are
    split off `train_shards`.
    """

    train_shards: tuple[str, ...]
    test_shards: tuple[str, ...]
    train_rows: int
    test_rows: int
    validation_rows: int
    image_shape: tuple[int, int, int]  # (height, width, channels)
    encoding: Literal["raw", "encoded"]
    class_names: tuple[str, ...]


class Contract(BaseModel, frozen=True):
    """What all blocks must hold in common. Its digest is carried by every checkpoint and weight file."""

    architecture: str
    options: dict[str, JsonValue]  # complete: defaults filled in
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    preprocessing: str  # how a uint8 pixel becomes a float, e.g. "x/127.5-1"
    codes_seed: int
    code_dim: int
    p_mean: float
    p_std: float
    sigma_min: float
    sigma_max: float
    sigma_data: float
    edges: tuple[float, ...]  # B + 1, descending: edges[0] = sigma_max belongs to block 0
    layers: tuple[tuple[int, int], ...]  # per block: [start, stop)

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
    ASSEMBLY = "assembly"
    EVALUATION = "evaluation"


TRAINED = frozenset({TaskKind.TRUNK, TaskKind.BLOCK, TaskKind.END_TO_END, TaskKind.SHALLOW})
BASELINES = frozenset({TaskKind.END_TO_END, TaskKind.SHALLOW})


class TaskPlan(BaseModel, frozen=True):
    """A node of the job's graph; it starts when every task in `needs` has succeeded and every one in `after` has ended.

    `name` is unique in the job: trunk, block-0, end_to_end, shallow-0, assembly, evaluation.
    """

    name: str
    kind: TaskKind
    index: int = 0  # of a block or of a member of the shallow ensemble
    steps: int = 0  # optimizer steps; 0 where nothing is trained
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()  # what it can do without, should it fail


class JobPlan(BaseModel, frozen=True):
    """Everything a worker needs besides the spec."""

    contract: Contract
    contract_hash: str
    data: DataFacts
    blocks: tuple[BlockPlan, ...]
    end_to_end: NetworkPlan
    shallow: NetworkPlan
    memory_ratio: float  # largest block total / end-to-end total
    tasks: tuple[TaskPlan, ...]
    gpus: float  # held when every block runs at once
    warnings: tuple[str, ...] = ()

    def task(self, name: str) -> TaskPlan:
        """The task of that name; KeyError when the plan has none."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(name)
